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
        if self._is_new("full"):
            log.error(
                "The spool is full; answers wait in memory, and snapshots behind them",
                file=str(self._spool.file),
                bytes=self._spool.bytes,
                fix="Bring the broker back, or raise SPOOL_MAX_BYTES",
            )

    def failed(self, failure: SpoolFailed) -> None:
        """The disk did not take something, or give it."""
        if self._is_new("failed"):
            log.error(
                "The disk of the spool does not work; answers wait in memory, and those it has may be sent twice",
                file=str(self._spool.file),
                reason=str(failure),
                fix="Make room on the disk, or make SPOOL_DIR writable; it is tried again",
            )

    def settled(self) -> None:
        """It works; the next trouble is said again."""
        self._said = None

    def _is_new(self, trouble: str) -> bool:
        before, self._said = self._said, trouble
        return before != trouble
