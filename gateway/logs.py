"""Logging: a sentence plus stable keys, as JSON lines or as text for terminals.

On the way of a line: its level, the count for the metrics, folding, and only then its time, its traceback and its form.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from gateway.log_folding import Event, Folding, Kind, exception_kind, kind_of, shape, without_traceback
from gateway.log_foreign import Unformatted, kept_of
from gateway.log_level import LogLevel
from gateway.log_memory import LEVELS, LogMemory, as_json

MEMORY = LogMemory()
"""Of this process, as its log is."""
_NOISY = ("aiohttp.access", "httpx", "httpcore", "PIL", "asyncio", "grpc", "watchfiles")


def _say_again(kind: Kind, event: Event, times: int, for_s: float) -> None:
    """Write the line for those that were folded: the last of them, and how many they were."""
    name, level = kind[:2]
    say = getattr(structlog.get_logger(name), level if level in LEVELS else "error")
    text = event.get("event")
    more = {"event": str(text) if isinstance(text, Unformatted) else text, "repeated": times, "for_s": round(for_s, 1)}
    say(**{**event, **more})


FOLDING = Folding(_say_again)
LEVEL = LogLevel(rising=FOLDING.end)


class _Counts:
    """Lines by level, folded ones too; those from before there are metrics are added to them."""

    def __init__(self) -> None:
        self._before = dict.fromkeys(LEVELS, 0)
        self._counters: Mapping[str, Callable[[float], None]] = {}

    def count(self, level: str) -> None:
        level = level if level in LEVELS else "error"
        if self._counters:
            self._counters[level](1)
        else:
            self._before[level] += 1

    def go_to(self, counters: Mapping[str, Callable[[float], None]]) -> None:
        self._counters = counters
        for level, times in self._before.items():
            counters[level](times)
        self._before = dict.fromkeys(LEVELS, 0)


_COUNTS = _Counts()


def count_lines(counter: Callable[[str], Callable[[float], None]]) -> None:
    """Have the lines of this process counted; `counter` gives what counts those of a level."""
    _COUNTS.go_to({level: counter(level) for level in LEVELS})


def _fold(logger: Any, method: str, event: Event) -> Event:
    if "repeated" in event:
        return event
    _COUNTS.count(method)
    if method == "debug":  # whoever asks for them wants each of them
        return event
    kept = without_traceback(event) if event.get("exc_info") else event
    if not FOLDING.admits(kind_of(logger.name, method, event), kept):
        raise structlog.DropEvent
    return event


class _FoldForeign(logging.Filter):
    """The same for lines of libraries; ours have passed `_fold`. Nothing of a record is formatted here."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict):
            return True
        level = record.levelname.lower()
        _COUNTS.count(level)
        if record.levelno <= logging.DEBUG:
            return True
        text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        said = text if record.args else shape(text)
        kind = record.name, level, said, record.lineno, exception_kind(record.exc_info)
        return FOLDING.admits(kind, kept_of(record, text))


_OF_PROCESS: dict[str, Any] = {}


def name_process(**keys: Any) -> None:
    """Have these keys in every line of this process, whichever thread writes it."""
    _OF_PROCESS.update(keys)


def _add_process(_logger: Any, _method: str, event: Event) -> Event:
    for key, value in _OF_PROCESS.items():
        if event.get(key) is None:
            event[key] = value
    return event


_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    _add_process,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure_logging(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send the gateway's log and that of its libraries to `stream` (stderr) in one form: json, text or sentence."""
    FOLDING.end()
    out = stream or sys.stderr
    if log_format == "json":
        render: list[Any] = [structlog.processors.format_exc_info, _json]
    elif log_format == "sentence":
        render = [structlog.processors.format_exc_info, _escape_values, _sentence]
    else:
        # The pretty traceback shows the values of local variables: tokens and pictures would be in the log.
        console = structlog.dev.ConsoleRenderer(colors=use_colour(out), exception_formatter=_plain_traceback)
        render = [_keep, _escape_values, console]
    handler = logging.StreamHandler(out)
    handler.addFilter(_FoldForeign())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.getLogger().handlers = [handler]
    LEVEL.configure(level)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A client that hangs up is no error here, and what is one our own middleware logs.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            _fold,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def finish_logging() -> None:
    """Say what was folded and not said yet; for those who end the process without Python's own end."""
    FOLDING.end()


atexit.register(finish_logging)


def _json(_logger: Any, _method: str, event: Event) -> str:
    line = as_json(event)
    MEMORY.keep(event, line)
    return line


def _keep(logger: Any, method: str, event: Event) -> Event:
    """Of a line in another form."""
    said = structlog.processors.format_exc_info(logger, method, dict(event))
    MEMORY.keep(said, as_json(said))
    return event


def _escape_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Names come from outside: one with an escape sequence in it would steer the terminal of whoever reads the log."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = _escaped(value)
    return event


def _escaped(text: str) -> str:
    return "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text)


def _plain_traceback(out: TextIO, exc_info: Any) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write(_escaped(text.getvalue()))


def _sentence(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """`What (where): why. How to mend it`, for commands that a person runs, as their errors are written too."""
    said = dict(event)
    text, traceback = str(said.pop("event", "")), said.pop("exception", "")
    reason, fix = said.pop("reason", ""), said.pop("fix", "")
    details = ", ".join(f"{key} {value}" for key, value in said.items() if key not in ("level", "timestamp"))
    text += f" ({details})" if details else ""
    text += f": {reason}" if reason else ""
    text += f". {fix}" if fix else ""
    return f"edge-gateway: {text}\n{traceback}".rstrip()


def use_colour(stream: TextIO) -> bool:
    """Colour only on a terminal that knows it, and never under NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
