"""The level of the log: the configured one, or another that somebody has chosen for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

MAX_FOR_S = 86_400.0


class LogLevel:
    """Of this process. A chosen level holds until its time is up, another is chosen, or LOG_LEVEL changes.

    `changed` gets the chosen level, None where the configured one holds again; the front tells its workers so.
    """

    def __init__(self, rising: Callable[[], None]) -> None:
        """`rising` is called before a higher level holds, for what it would not let through any more."""
        self._rising = rising
        self.configured = "info"
        self.chosen: str | None = None
        self.until: float | None = None
        """When the configured one returns, in seconds since 1970; None where that is not known."""
        self.changed: Callable[[str | None], None] = lambda _chosen: None
        self._returning: asyncio.TimerHandle | None = None
        self._led = False
        """Whether another process says what is chosen, and when that has ended."""

    @property
    def current(self) -> str:
        """The level that holds now."""
        return self.chosen or self.configured

    def configure(self, level: str) -> None:
        """Let LOG_LEVEL be this; a change of it ends what was chosen before."""
        differs, self.configured = level != self.configured, level
        if differs and self.chosen is not None and not self._led:
            self._take(None, None)
        self._apply(self.current)

    def follow(self, level: str | None) -> None:
        """In a worker: hold to what was chosen at the front, which says so in its log."""
        self._led = level is not None
        self._take(level, None)
        self._apply(self.current)

    def choose(self, level: str | None, for_s: float | None = None, by: str = "") -> None:
        """Let another level hold, for so many seconds or for good; None: the configured one. On the event loop."""
        before = self.current
        after = level or self.configured
        self._apply(min(before, after, key=_number))  # so that the line is written under the one or the other
        log.info("The level of the log is changed", log_level=after, before=before, holds_s=for_s, by=by)
        self._take(level, for_s)
        self._apply(after)

    def _take(self, level: str | None, for_s: float | None) -> None:
        if self._returning is not None:
            self._returning.cancel()
            self._returning = None
        self.chosen, self.until = level, None
        if level is not None and for_s is not None:
            self.until = time.time() + for_s
            self._returning = asyncio.get_running_loop().call_later(for_s, self.choose, None, None, "its time is up")
        self.changed(level)

    def _apply(self, level: str) -> None:
        root = logging.getLogger()
        if _number(level) > root.level:
            self._rising()
        root.setLevel(level.upper())


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
