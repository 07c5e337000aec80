"""MQTT topics: the rules for filters, and named parts (`edge-ai/{facility}/camera`) as filter, parser and template."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

DEVICE_PARTS = ("asset", "device_id", "camera_id", "camera", "device", "sensor")
"""The named parts that say which device a topic belongs to, the first of them that it has."""
_NAME = re.compile(r"\{([a-z_]+)\}")
_SPECIAL = re.compile(r"[+#/]")
# MQTT's strings must not hold NUL and surrogates; brokers and clients may also hang up on control characters, the byte
# order mark and non-characters, the last two code points of each plane among them.
_NON_CHARACTERS = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_UNSAFE = re.compile(rf"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff{_NON_CHARACTERS}]")


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """One input topic as configured, `{name}` or `+` per level, `#` at the end, `$share/group/` in front."""

    text: str

    @property
    def subscription(self) -> str:
        """The MQTT filter to subscribe."""
        return _NAME.sub("+", self.text)

    def parse(self, topic: str) -> tuple[dict[str, str], list[str]] | None:
        """The named parts and the unnamed wildcard parts of a topic, or None when it does not match."""
        levels, given = _levels(self.text), topic.split("/")
        named: dict[str, str] = {}
        unnamed: list[str] = []
        for index, (level, name) in enumerate(levels):
            if level == "#":
                unnamed += given[index:]
                return named, unnamed
            if index >= len(given):
                return None
            if name:
                named[name] = given[index]
            elif level == "+":
                unnamed.append(given[index])
            elif level != given[index]:
                return None
        return (named, unnamed) if len(levels) == len(given) else None


@functools.lru_cache(maxsize=256)
def _levels(text: str) -> tuple[tuple[str, str], ...]:
    """The levels of a pattern, each with its name or "". Patterns are configured; no stranger fills the cache."""
    names = ((level, _NAME.fullmatch(level)) for level in without_share(text).split("/"))
    return tuple((level, name[1] if name else "") for level, name in names)


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription receives a topic, by MQTT 5 section 4.7; `$share/<group>/` in front counts as absent."""
    if topic.startswith("$") and without_share(topic_filter)[:1] in ("+", "#"):
        return False
    return TopicPattern(topic_filter).parse(topic) is not None


def without_share(text: str) -> str:
    """The filter behind `$share/<group>/`."""
    if text.startswith("$share/"):
        parts = text.split("/", 2)
        return parts[2] if len(parts) == 3 else text
    return text


def specificity(pattern: str) -> int:
    """How narrow a filter is: literal levels count most, `#` least; for choosing the best of several matches."""
    return sum(0 if level == "#" else 1 if level == "+" else 100 for level in without_share(pattern).split("/"))


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Fill `{name}` in an output template; a value can never add a level or a wildcard to the topic."""
    return _NAME.sub(lambda match: _SPECIAL.sub("_", safe_text(parts[match[1]])) or "_", template)


def safe_text(text: str) -> str:
    """The text without characters over which a broker would end the connection."""
    if text.isascii() and text.isprintable():  # nearly always, and found out in a fraction of the time
        return text
    return _UNSAFE.sub("_", text)


def overlap(first: str, second: str) -> bool:
    """Whether some topic matches both filters."""
    left, right = (_NAME.sub("+", without_share(text)).split("/") for text in (first, second))
    for a, b in zip(left, right, strict=False):
        if "#" in (a, b):
            return True
        if a != b and "+" not in (a, b):
            return False
    longer = left if len(left) > len(right) else right
    return len(left) == len(right) or longer[min(len(left), len(right))] == "#"


def is_publishable(topic: str) -> bool:
    """Whether a message may be published there: not empty, without wildcards and without characters that do harm."""
    return bool(topic) and not set(topic) & set("+#") and safe_text(topic) == topic and len(topic.encode()) <= 65_535


def names_in(template: str) -> set[str]:
    """The named parts which a template needs."""
    return set(_NAME.findall(template))


def problem(text: str) -> str | None:
    """Why a text is no valid subscription, or None."""
    levels = without_share(text).split("/")
    if not text or safe_text(text) != text or len(text.encode()) > 65_535:
        return "it is empty, too long or has a control character"
    if text.startswith("$share/") and (len(text.split("/", 2)) < 3 or set(text.split("/")[1]) & set("+#{")):
        return "a shared subscription is $share/<group>/<topic>"
    if "#" in text and (levels[-1] != "#" or any("#" in level for level in levels[:-1])):
        return "'#' stands alone, as the last level"
    if any("+" in level and level != "+" for level in levels):
        return "'+' stands alone in its level"
    if any(("{" in level or "}" in level) and not _NAME.fullmatch(level) for level in levels):
        return "a named part is a whole level, such as {facility}"
    return None
