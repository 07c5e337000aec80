"""Which Tritons there are, as settings name them, and which of them answers which model: endpoints and placement."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_settings import NoDecode

from gateway.addresses import shown

MOST = 64
"""Endpoints of one gateway, and rules."""
KEYS = ("model", "version", "tenant")
EXAMPLE = "model=detector-*,tenant=north -> gpu-0:8001|gpu-1:8001"

_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PATTERN = re.compile(r"[^\s,;=|>]{1,200}")


def joined(value: Any) -> Any:
    """A list of YAML as the text that the environment would have; anything else as it is."""
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return value


_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Listed = Annotated[str, BeforeValidator(joined), WithJsonSchema(_SCHEMA)]
"""One address, or several with commas between them; in YAML also a list."""
OptionallyListed = Annotated[
    str | None, BeforeValidator(joined), WithJsonSchema({"anyOf": [*_SCHEMA["anyOf"], {"type": "null"}]})
]
"""The same, or nothing."""


@dataclass(frozen=True, slots=True)
class PlacementRule:
    """Where what these patterns match is answered; `*`, `?` and `[...]` in them as in file names."""

    endpoints: tuple[str, ...]
    model: str = "*"
    """Of the model as Triton names it."""
    version: str = "*"
    tenant: str = "*"
    """Of the business unit in the topic of a snapshot."""

    def may_match(self, model: str, version: int | None) -> bool:
        """Whether it can hold for that version of the model, for some tenant; None: any version."""
        return fnmatchcase(model, self.model) and (version is None or fnmatchcase(str(version), self.version))

    def matches(self, model: str, version: str, tenant: str) -> bool:
        """Whether it holds for one request; a request for no version in particular has none that a pattern names."""
        return (
            fnmatchcase(model, self.model)
            and (self.version == "*" or (version != "" and fnmatchcase(version, self.version)))
            and fnmatchcase(tenant, self.tenant)
        )


def endpoints_of(text: str) -> tuple[str, ...]:
    """The `host:port` that a text names, separated by commas; raises ValueError for what is none, or named twice."""
    found = tuple(part.strip() for part in text.split(","))
    for each in found:
        match = _ENDPOINT.fullmatch(each)
        if not match or not 1 <= int(match[2]) <= 65535:
            raise ValueError(f"must be host:port, such as localhost:8001, not '{shown(each)[:200]}'")
    if len({each.lower() for each in found}) < len(found):
        twice = next(each for index, each in enumerate(found) if each.lower() in map(str.lower, found[:index]))
        raise ValueError(f"names {twice} twice; name each Triton once")
    if len(found) > MOST:
        raise ValueError(f"names {len(found)} endpoints, at most {MOST} are possible")
    return found


def urls_of(text: str) -> tuple[str, ...]:
    """The URLs that a text names, separated by commas; one may have commas of its own."""
    return tuple(re.split(r"\s*,\s*(?=[A-Za-z]+://)", text.strip()))


def rules_of(value: Any) -> Any:
    """The rules of a text, separated by `;`, or of a list of texts; raises ValueError for what is no rule."""
    if isinstance(value, str):
        value = [part for part in value.split(";") if part.strip()]
    if not isinstance(value, list | tuple):
        return value
    if len(value) > MOST:
        raise ValueError(f"has {len(value)} rules, at most {MOST} are possible")
    return tuple(_rule(each) if isinstance(each, str) else each for each in value)


def _rule(text: str) -> str:
    parse_rule(text)
    return " ".join(text.split())


PlacementRules = Annotated[tuple[str, ...], NoDecode, BeforeValidator(rules_of)]
"""Rules as they are written; `parse_rule` reads them."""


def parse_rule(text: str) -> PlacementRule:
    """`model=PATTERN[,version=PATTERN][,tenant=PATTERN] -> host:port|host:port`; raises ValueError."""
    said = " ".join(text.split())[:200]
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"a rule says where a model goes, such as '{EXAMPLE}', not '{said}'")
    patterns: dict[str, str] = {}
    for part in left.split(","):
        key, equals, pattern = (each.strip() for each in part.partition("="))
        if not equals or key not in KEYS or key in patterns or not _PATTERN.fullmatch(pattern):
            raise ValueError(f"'{part.strip()[:100]}' is none of model=, version= and tenant= with a pattern: '{said}'")
        patterns[key] = pattern
    return PlacementRule(endpoints_of(right.replace("|", ",")), **patterns)


def places_of(
    rules: Iterable[PlacementRule], endpoints: Sequence[str], model: str, version: int | None = None
) -> tuple[str, ...]:
    """The endpoints that may have that version of a model, for whichever tenant; None: any version of it."""
    found: set[str] = set()
    for rule in rules:
        if rule.may_match(model, version):
            found.update(rule.endpoints)
            if rule.tenant == "*" and (version is not None or rule.version == "*"):
                return tuple(each for each in endpoints if each in found)
    return tuple(endpoints)


def unknown_endpoints(rules: Iterable[str], endpoints: Sequence[str]) -> list[str]:
    """What is wrong with rules that name an endpoint which is not there, each with the nearest that is."""
    named = dict.fromkeys(each for rule in rules for each in parse_rule(rule).endpoints)
    return [
        f"TRITON_PLACEMENT names {each}, which is not in TRITON_GRPC_URL (did you mean {_nearest(each, endpoints)}?)"
        for each in named
        if each not in endpoints
    ]


def _nearest(name: str, endpoints: Sequence[str]) -> str:
    return (difflib.get_close_matches(name, endpoints, n=1, cutoff=0.0) or list(endpoints))[0]
