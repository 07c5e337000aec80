"""The last lines of the log, in memory, for whoever looks at the gateway from afar."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
"""From the least to the most important; CRITICAL of a library counts as error."""
EVENTS = 500
MAX_BYTES = 512 * 1024
MAX_LINE = 8 * 1024
"""Characters of a line; of a longer one each text is cut, a traceback to its end."""
TRACEBACK_LENGTH = 3000
TEXT_LENGTH = 300


class LogMemory:
    """Lines as JSON objects, the newest EVENTS of them and at most MAX_BYTES; written by one thread at a time."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque()
        self._size = 0

    def keep(self, event: Mapping[str, Any], line: str) -> None:
        """Keep an event, of which `line` is the JSON text."""
        if len(line) > MAX_LINE:
            line = as_json({key: _cut(key, value) for key, value in list(event.items())[:30]})
        self._lines.append((rank(str(event.get("level"))), line))
        self._size += len(line)
        while len(self._lines) > EVENTS or self._size > MAX_BYTES:
            self._size -= len(self._lines.popleft()[1])

    def read(self, level: str = "debug", contains: str = "", limit: int = EVENTS) -> list[str]:
        """The newest `limit` lines of at least this level that contain a text in any case, the newest last."""
        least, wanted = rank(level), json.dumps(contains, ensure_ascii=False)[1:-1].lower()
        found: list[str] = []
        for importance, line in reversed(list(self._lines)):
            if importance >= least and (not wanted or wanted in line.lower()):
                found.append(line)
                if len(found) == limit:
                    break
        return found[::-1]


def rank(level: str) -> int:
    """The place of a level in LEVELS; one that is none of them counts as the highest."""
    return LEVELS.index(level) if level in LEVELS else len(LEVELS) - 1


def as_json(event: Mapping[str, Any]) -> str:
    """One line of printable JSON, whatever the values are."""
    try:
        line = json.dumps(event, ensure_ascii=False, allow_nan=False, default=repr)
    except (ValueError, TypeError, RecursionError):  # not a number, or nested without end: nothing JSON knows
        line = json.dumps({str(key): _known(value) for key, value in event.items()}, ensure_ascii=False)
    if line.isprintable():
        return line
    # JSON leaves some characters as they are that steer terminals, such as U+009B, or turn the text around.
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


def _known(value: object) -> object:
    return value if value is None or isinstance(value, str | int) else repr(value)[:TEXT_LENGTH]


def _cut(key: str, value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text[-TRACEBACK_LENGTH:] if key == "exception" else text[:TEXT_LENGTH]
