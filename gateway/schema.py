"""Strict parsing of what people write (gateway.yaml, model.yaml): a typo names the nearest key."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from gateway.errors import ConfigError
from gateway.topics import fill, names_in, safe_text
from gateway.yaml_file import Loc, Mark, YamlMapping, read_yaml

__all__ = [
    "ANSWER_PARTS", "MAX_PROBLEMS", "PLACE_PARTS", "Problem", "StrictModel", "in_line", "output_topic", "parse",
    "problems_of", "read_yaml", "unknown_key",
]  # fmt: skip

PLACE_PARTS = ("business_unit", "facility", "gateway_id")
"""The named parts that every output topic may hold."""
ANSWER_PARTS = (*PLACE_PARTS, "device_id", "model_name")
"""Those that the topic of an answer to a snapshot may hold."""
MAX_PROBLEMS = 20
"""Named at once of one mapping; who has more of them has given the wrong file."""
MAX_TEXT = 500
"""Characters of one problem."""
MAX_NAMED = 20
"""Known names in a message when none of them is near."""
MAX_TEMPLATE = 512
"""Characters of an output topic: filled with the longest names, it still fits into MQTT's 64 KiB."""
_UNKNOWN = "unknown_key"

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: the key as people write it (`mqtt.input_topics[0]`, "" for the whole), what, and its path."""

    key: str
    text: str
    loc: Loc


class StrictModel(BaseModel):
    """A frozen record whose unknown keys are errors that name the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _name_nearest_key(cls, data: Any) -> Any:
        if data is None:  # in YAML a key with nothing after it, such as `mqtt:` with all its lines commented out
            return {}
        if isinstance(data, dict):
            known = [name if field.alias is None else field.alias for name, field in cls.model_fields.items()]
            wrong = [str(key) for key in data if key not in known][:MAX_PROBLEMS]
            if unknown := {key: unknown_key(key, known) for key in wrong}:
                raise PydanticCustomError(_UNKNOWN, "{said}", {"said": "; ".join(unknown.values()), "keys": unknown})
        return data


def unknown_key(key: str, known: Iterable[str], what: str = "key") -> str:
    """Say that a key is unknown, with the nearest known one or else all of them."""
    names, key = sorted(known), key[:100]
    nearest = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.65)
    some = ", ".join(names) if len(names) <= MAX_NAMED else f"{', '.join(names[:MAX_NAMED])} and others"
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"known {what}s: {some}"
    return f"unknown {what} {key!r} ({hint})"


def output_topic(template: str, known: Iterable[str]) -> str:
    """The template itself; raises ValueError when nothing could be published there."""
    known = set(known)
    if unknown := sorted(names_in(template) - known):
        raise ValueError(unknown_key(unknown[0], known, "part"))
    if not template or set(template) & set("+#"):
        raise ValueError("a topic to publish on or to be commanded on is not empty and has no wildcards")
    if len(template) > MAX_TEMPLATE or safe_text(template) != template:
        raise ValueError(f"an output topic has at most {MAX_TEMPLATE} characters, none of them a control character")
    if set(fill(template, dict.fromkeys(known, ""))) & set("{}"):
        raise ValueError(f"a named part is one of {', '.join(f'{{{name}}}' for name in sorted(known))}")
    return template


def parse(model: type[M], data: dict[str, Any], where: str) -> M:
    """Validate `data` as `model`; raises ConfigError with every problem, and its line if `data` comes from a file."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        texts = [in_line(problem, data) for problem in problems_of(error, data)]
        fix = "Correct the named key" + "s" * (len(texts) > 1)
        raise ConfigError("; ".join(texts), where=where, fix=fix) from error


def parse_secret(model: type[M], data: dict[str, Any], where: str) -> M:
    """As `parse`, for what may hold passwords: no value and no unknown key is said, the line tells where it is."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        items = error.errors(include_url=False)[:MAX_PROBLEMS]
        texts = [text for item in items for text in _without_values(dict(item), data)]
        fix = "Correct the named key" + "s" * (len(texts) > 1)
        raise ConfigError("; ".join(dict.fromkeys(texts)), where=where, fix=fix) from None


def _without_values(item: dict[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    kind, loc = item["type"], _in_data(item["loc"], data)
    if kind == _UNKNOWN:
        for key, said in item["ctx"]["keys"].items():
            yield in_line(Problem(_written(loc), f"unknown key {said[said.rindex('(') :]}", (*loc, key)), data)
    else:
        yield in_line(Problem(_written(loc), _one_line(_in_plain_words(kind, item["msg"])), loc), data)


def in_line(problem: Problem, data: Mapping[str, Any]) -> str:
    """`line 3: key: what is wrong`, without the line where it is not known."""
    line = data.line(problem.loc) if isinstance(data, YamlMapping) else None
    place = f"line {line}: " if line else ""
    return f"{place}{problem.key}: {problem.text}" if problem.key else f"{place}{problem.text}"


def problems_of(error: ValidationError, data: Mapping[str, Any]) -> list[Problem]:
    """All problems that a validation found in `data`."""
    items = error.errors(include_url=False)[:MAX_PROBLEMS]
    return list(dict.fromkeys(problem for item in items for problem in _problems(dict(item), data)))


def _problems(item: dict[str, Any], data: Mapping[str, Any]) -> Iterator[Problem]:
    kind, loc = item["type"], _in_data(item["loc"], data)
    if kind == _UNKNOWN:
        for key, said in item["ctx"]["keys"].items():  # in the line of the key, about the mapping around it
            yield Problem(_written(loc), said, (*loc, key))
        return
    text = _in_plain_words(kind, item["msg"])
    if kind == "missing" and isinstance(item["loc"][-1], int):
        text = f"has too few values ({len(item['input'])})"
    elif kind not in ("value_error", "missing", "too_long"):
        text += _found(item["input"], item["msg"], data.marks.get(loc) if isinstance(data, YamlMapping) else None)
    yield Problem(_written(loc), _one_line(text), _spoken_of(text, loc, data))


def _spoken_of(text: str, loc: Loc, data: Mapping[str, Any]) -> Loc:
    """The path of the key with which a text about the mapping at `loc` begins, for its line."""
    named = (*loc, *text.partition(" ")[0].removesuffix(":").split("."))
    return named if isinstance(data, YamlMapping) and named in data.marks else loc


def _written(loc: Loc) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return _one_line("".join(parts).removeprefix("."))


def _one_line(text: str) -> str:
    """What a terminal shows in one line; values of the file may stand in it."""
    text = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _in_data(loc: tuple[int | str, ...], data: Any) -> Loc:
    """The path without what pydantic adds to it, such as the branch of a union that did not fit either."""
    found: list[str | int] = []
    for part in loc:
        inside = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if inside or (isinstance(data, Mapping) and part in data):
            found.append(part)
            data = data[part]
        elif isinstance(data, Mapping) and part != "[key]":  # a key that is missing
            found.append(part)
            data = None
    return tuple(found)


def _found(value: Any, expected: str, mark: Mark | None) -> str:
    """What was there; where YAML made something else of a text, also how to keep it a text."""
    if value is None:
        return ", but has no value"
    plain = mark.plain if mark else None
    wants_text = "string" in expected or "path" in expected or f"'{plain}'" in expected
    if plain is None or not wants_text or not isinstance(value, bool | int | float | datetime.date):
        return f", not {_short(value)}"
    kind = (
        str(value).lower() if isinstance(value, bool) else "a date" if isinstance(value, datetime.date) else "a number"
    )
    return f", and YAML reads {plain} as {kind}; write '{plain}' in quotes"


def _short(value: Any) -> str:
    """The value in at most 60 characters, never written out in full first."""
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, str | bytes) and len(value) > 60:
        return repr(value[:57]) + "..."
    return str(value).lower() if isinstance(value, bool) else repr(value)[:60]


_WORDS = {
    "missing": "is missing",
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_from_float": "must be a valid integer",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
}
_PHRASES = {
    "less than or equal to": "at most",
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than": "below",
    "String should match pattern": "must match",
    "Input should": "must",
    "Tuple should": "must",
    " after validation": "",
}


def _in_plain_words(kind: str, text: str) -> str:
    """What pydantic says, without the words of a programmer."""
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "value_error":
        return text.removeprefix("Value error, ")
    for theirs, ours in _PHRASES.items():
        text = text.replace(theirs, ours)
    return text.partition(", unable to parse")[0]
