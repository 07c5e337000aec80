"""What the log says of a spool's disk."""

from __future__ import annotations

import structlog

from gateway.adapters.spool import Spool, SpoolFailed

log = structlog.get_logger(__name__)


class Complaints:
    """Says once that the disk does not take answers, until it does."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._said: str | None = None

    def full(self) -> None:
        """There is no room below SPOOL_MAX_BYTES."""
        self._say(
            "The spool is full; answers wait in memory, and snapshots behind them",
            "Bring the broker back, or raise SPOOL_MAX_BYTES",
            bytes=self._spool.bytes,
        )

    def failed(self, failure: SpoolFailed) -> None:
        """The disk did not take something, or give it."""
        self._say(
            "The disk of the spool does not work; answers wait in memory, and those it has may be sent twice",
            "Make room on the disk, or make SPOOL_DIR writable; it is tried again",
            reason=str(failure),
        )

    def settled(self) -> None:
        """It works; the next trouble is said again."""
        self._said = None

    def _say(self, what: str, fix: str, **more: object) -> None:
        if self._said != what:
            self._said = what
            log.error(what, file=str(self._spool.file), fix=fix, **more)
