"""The log of this process, written into a string, and the process's own as it was afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import structlog

from gateway.logs import FOLDING, LEVEL, configure_logging


class LogStream(io.StringIO):
    """What the log has written."""

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Each line as an object; the log is JSON."""
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The entries of one event."""
        return [each for each in self.entries if each["event"] == event]


@contextlib.contextmanager
def logging_into_a_string(level: str = "info", log_format: str = "json") -> Iterator[LogStream]:
    """Configure the log as `serve` does, for the time of a `with` block."""
    root, stream = logging.getLogger(), LogStream()
    handlers, number, configured = root.handlers, root.level, LEVEL.configured
    before = structlog.get_config()
    configure_logging(level, log_format, stream)
    try:
        yield stream
    finally:
        FOLDING.end()
        LEVEL.follow(None)
        LEVEL.configured = configured
        root.handlers = handlers
        root.setLevel(number)
        structlog.configure(**before)
