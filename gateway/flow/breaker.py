"""A circuit breaker: a variant that fails again and again is not asked for a while, then tried with one snapshot."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gateway.errors import SnapshotError
from gateway.models.catalog import ServedVariant

UNCLEAR_S = 0.25
"""Until the next try after one that has told nothing of the variant."""


class BreakerState(enum.StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    """The variant is asked."""
    OPEN = "open"
    """It is not, until a while has passed."""
    HALF_OPEN = "half_open"
    """One snapshot is trying it; no other one asks it meanwhile."""


@dataclass(slots=True, eq=False)
class Breaker:
    """The breaker of one variant as it is loaded now; pure bookkeeping, times are seconds of a monotonic clock."""

    version: int
    """The release that the variant is of."""
    variant: ServedVariant
    """The very entry of the catalogue: a variant that is loaded again has another one."""
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    """In a row."""
    late: bool = False
    """Whether it has kept somebody waiting in vain, and has not answered since."""
    asked: int = 0
    """Snapshots that are asking it now."""
    due_at: float = 0.0
    """From when on it may be tried, while open."""
    opened_at: float = 0.0
    last: SnapshotError | None = None
    """How it failed last: a copy, for the one that was raised keeps its snapshot."""

    @property
    def free(self) -> bool:
        """Whether it is asked as usual; one that was late holds up one snapshot at a time, and no more."""
        return self.state is BreakerState.CLOSED and not (self.late and self.asked)

    def due(self, now: float) -> bool:
        """Whether it is open and shall be tried."""
        return self.state is BreakerState.OPEN and now >= self.due_at

    def begin(self, now: float, *, needed: bool, last_resort: bool) -> bool:
        """Let a snapshot ask, which then has to `end`; False when it shall not.

        `needed`: the snapshot waits for this answer, rather than only comparing it. `last_resort`: every other variant
        has failed on it, so that it loses nothing by trying this one before its time. Half open after it means that
        this snapshot is the one that tries the variant.
        """
        if self.state is BreakerState.CLOSED:
            admitted = self.free or last_resort
        else:
            admitted = last_resort or (needed and self.due(now))
            admitted = admitted and self.state is BreakerState.OPEN
            if admitted:
                self.state = BreakerState.HALF_OPEN
        self.asked += admitted
        return admitted

    def end(self) -> None:
        """A snapshot that was let in asks no more."""
        self.asked -= 1

    def succeeded(self) -> None:
        """It has answered, whoever asked: that closes it."""
        self.state, self.failures, self.late, self.last = BreakerState.CLOSED, 0, False, None

    def failed(self, error: SnapshotError, now: float, limit: int, open_s: float, *, late: bool, probing: bool) -> None:
        """It has failed one snapshot; `probing`: the one that tried it while it was half open.

        It opens after `limit` failures in a row. What fails late, having begun before it opened, changes nothing.
        """
        if self.state is BreakerState.CLOSED:
            self.failures += 1
            self.late = self.late or late
            if self.failures >= limit:
                self.opened_at = now
                self._open(now + open_s)
        elif probing and self.state is BreakerState.HALF_OPEN:
            self.failures += 1
            self._open(now + open_s)
        else:
            return
        self.last = error.copy()

    def unclear(self, now: float, *, probing: bool) -> None:
        """What came says nothing of the variant, such as that the connection was lost."""
        if probing and self.state is BreakerState.HALF_OPEN:
            self._open(now + UNCLEAR_S)

    def of_new_load(self, variant: ServedVariant, now: float) -> Breaker:
        """The breaker of the same release when the variant has been loaded again: if it was open, to be tried now.

        It is not closed at once, because what crashes on each snapshot would be asked by many after each load.
        """
        fresh = Breaker(self.version, variant)
        if self.state is not BreakerState.CLOSED:
            fresh.state, fresh.due_at, fresh.opened_at = BreakerState.OPEN, now, self.opened_at
            fresh.failures, fresh.last = self.failures, self.last
        return fresh

    def _open(self, due_at: float) -> None:
        self.state, self.due_at = BreakerState.OPEN, due_at
