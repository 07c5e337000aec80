"""Strict parsing of what people write (gateway.yaml, model.yaml): a typo names the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gateway.errors import ConfigError
from gateway.topics import fill, names_in

MAX_YAML_BYTES = 1 << 20
PLACE_PARTS = ("business_unit", "facility", "gateway_id")
"""The named parts that every output topic may hold."""
ANSWER_PARTS = (*PLACE_PARTS, "device_id", "model_name")
"""Those that the topic of an answer to a snapshot may hold."""

M = TypeVar("M", bound=BaseModel)


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
            unknown = [unknown_key(str(key), known) for key in data if key not in known]
            if unknown:
                raise ValueError("; ".join(unknown))
        return data


def unknown_key(key: str, known: Iterable[str], what: str = "key") -> str:
    """Say that a key is unknown, with the nearest known one or else all of them."""
    names = sorted(known)
    nearest = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.6)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"known {what}s: {', '.join(names)}"
    return f"unknown {what} '{key}' ({hint})"


def output_topic(template: str, known: Iterable[str]) -> str:
    """The template itself; raises ValueError when nothing could be published there."""
    known = set(known)
    if unknown := sorted(names_in(template) - known):
        raise ValueError(unknown_key(unknown[0], known, "part"))
    if not template or set(template) & set("+#\x00"):
        raise ValueError("an output topic is not empty and has no wildcards")
    if set(fill(template, dict.fromkeys(known, ""))) & set("{}"):
        raise ValueError(f"a named part is one of {', '.join(f'{{{name}}}' for name in sorted(known))}")
    return template


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a small YAML file that must be a mapping; raises ConfigError."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError("the file is larger than 1 MiB", where=str(path), fix="A configuration is a few lines")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), fix="Check the path and its permissions"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"is not valid YAML{line}: {error.problem or error.context}",
            where=str(path),
            fix="Correct it; texts with { } [ ] : or # need quotes",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"is not valid YAML: {reason}", where=str(path), fix="Correct the file") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError("must be a mapping of keys to values", where=str(path), fix="Write lines such as 'name: x'")
    return data


def parse(model: type[M], data: dict[str, Any], where: str) -> M:
    """Validate `data` as `model`; raises ConfigError with every problem in one line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe(error), where=where, fix="Correct the named keys") from error


def describe(error: ValidationError, as_written: Callable[[str], str] = str) -> str:
    """All problems of a validation as `key: what is wrong` in one line; `as_written` turns a key into its spelling."""
    problems = []
    for item in error.errors(include_url=False):
        first, *rest = item["loc"] or ("",)
        key = ".".join([as_written(str(first)), *map(str, rest)])
        text = _in_plain_words(item["type"], item["msg"])
        if item["type"] not in ("value_error", "missing"):
            text += f", not {repr(item['input'])[:60]}"
        problems.append(f"{key}: {text}" if key else text)
    return "; ".join(problems)


def _in_plain_words(kind: str, text: str) -> str:
    """What pydantic says, without the words of a programmer."""
    if kind == "missing":
        return "is missing"
    if kind == "model_type":
        return "must be a mapping of keys to values"
    return text.removeprefix("Value error, ").replace("Input should be", "must be")
