"""Logging: a sentence plus stable keys, as JSON lines or as text for terminals."""

from __future__ import annotations

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
        ]
    elif log_format == "sentence":
        render = [structlog.processors.format_exc_info, _sentence]
    else:
        # The pretty traceback shows the values of local variables: tokens and pictures would be in the log.
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=use_colour(out), exception_formatter=plain)]
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
