"""Lines of libraries, which pass `logging` itself: what is kept of one that is folded, until it is said how many."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Any

from gateway.log_folding import Event, exception_of
from gateway.log_memory import TEXT_LENGTH

MAX_ARGUMENTS = 8
MAX_BITS = 64
"""Of a whole number."""
MAX_FORMAT = 1000
"""Characters; of a longer text only the beginning is kept, and nothing is put into it."""


class Unformatted:
    """A text with what is to be put into it: `str` does that, for one line in place of thousands that are folded.

    It holds scalars alone. An object would live on with all that it knows, and may say something else by then.
    """

    __slots__ = ("_arguments", "_text")

    def __init__(self, text: str, arguments: object) -> None:
        """`arguments` are those of a record: a tuple, a mapping, or nothing."""
        self._text = text if len(text) <= MAX_FORMAT else text[:TEXT_LENGTH]
        self._arguments = _scalars(arguments) if len(text) <= MAX_FORMAT else None

    def __str__(self) -> str:
        if not self._arguments:
            return self._text[:TEXT_LENGTH]
        try:
            return (self._text % self._arguments)[:TEXT_LENGTH]
        except (TypeError, ValueError, KeyError, OverflowError):  # it wants the object itself, or does not fit at all
            return self._text[:TEXT_LENGTH]


def kept_of(record: logging.LogRecord, text: str) -> Event:
    """The event to keep of a record of which `text` is the message; nothing of it is formatted yet."""
    kept: Event = {"event": Unformatted(text, record.args)}
    error = exception_of(record.exc_info)
    if error is not None:
        kept["error"] = type(error).__name__
    return kept


def _scalars(arguments: object) -> tuple[Any, ...] | dict[str, Any] | None:
    if isinstance(arguments, dict):
        return {name: _scalar(arguments[name]) for name in islice(arguments, MAX_ARGUMENTS) if isinstance(name, str)}
    return tuple(map(_scalar, arguments[:MAX_ARGUMENTS])) if isinstance(arguments, tuple) else None


def _scalar(value: object) -> object:
    kind = type(value)  # one that is derived from these formats itself in its own way
    if isinstance(value, str) and kind is str:
        return value[:TEXT_LENGTH]
    fits = isinstance(value, int) and value.bit_length() <= MAX_BITS
    if value is None or kind in (bool, float) or (kind is int and fits):
        return value
    return f"<{kind.__name__}>"
