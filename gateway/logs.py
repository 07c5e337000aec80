"""Logging: a sentence plus stable keys, as JSON lines or as text for terminals."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure_logging(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send the gateway's log and that of its libraries to `stream` (stderr) in one form: json, text or sentence."""
    out = stream or sys.stderr
    if log_format == "json":
        render: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
            _escape_in_json,
        ]
    elif log_format == "sentence":
        render = [structlog.processors.format_exc_info, _escape_values, _sentence]
    else:
        # The pretty traceback shows the values of local variables: tokens and pictures would be in the log.
        console = structlog.dev.ConsoleRenderer(colors=use_colour(out), exception_formatter=_plain_traceback)
        render = [_escape_values, console]
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("aiohttp.access", "httpx", "httpcore", "PIL", "asyncio", "grpc", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A client that hangs up is no error here, and what is one our own middleware logs.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _escape_in_json(_logger: Any, _method: str, line: str) -> str:
    """JSON leaves some characters as they are that steer terminals, such as U+009B, or turn the text around."""
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


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
    """Colour only on a terminal, and never under NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR")
