"""How many snapshots one variant may answer at once, found by what more of them bring.

Pure bookkeeping on a clock that the caller reads. What is measured is the rate at which answers come while the limit
is what holds others back; by Little's law that is the number in flight over their mean latency. A little more is tried
now and then, and a little less: more is kept while it brings answers, less while it costs none. A failure that tells
of an overload halves the limit, and each round of answers after it gives one back.
"""

from __future__ import annotations

import enum

LEAST = 2
"""What is kept without failures: with one, the variant would wait for each next picture to be decoded."""
WORTH_MORE = 0.2
"""A raise is kept that brings as much of its own size in rate: 10 % more answers for 50 % more in flight."""
WORTH_LESS = 0.1
"""A cut is kept that costs no more than that; the distance between both keeps noise from deciding."""
WINDOW_ANSWERS = 24
WINDOW_S = 0.5
"""A measurement takes so many answers and so long at least."""
BUSY = 0.8
"""A measurement counts when so much of the limit was in flight on average, else there was nothing to hold back."""
LONGEST_PATIENCE = 32
"""Measurements between two tries when none brings anything."""
SMOOTHING = 0.3
"""The weight of the last measurement in the rate that a try is compared with."""


class Came(enum.Enum):
    """What a question to a variant says of how much it can take."""

    ANSWER = enum.auto()
    OVERLOAD = enum.auto()
    """It did not answer in time, or could not be reached."""
    NOTHING = enum.auto()
    """It was not asked in the end, or the picture was at fault."""


class Limit:
    """The limit of one variant; times are seconds of a monotonic clock that the caller reads."""

    __slots__ = (
        "_answers", "_area", "_area_at", "_base", "_began_at", "_cut_at", "_doubling", "_patience", "_regained",
        "_settled", "_skip", "_target", "_trial", "_up", "_waited", "in_flight", "most",
    )  # fmt: skip

    def __init__(self, most: int) -> None:
        self.most = most
        """What it may find at most."""
        self.in_flight = 0
        self._settled = LEAST
        self._trial: int | None = None
        """The limit that is being tried in place of the settled one."""
        self._base: float | None = None
        """Answers a second at the settled limit, if measured lately."""
        self._doubling = True
        """Whether tries double the limit: at the start, until one brings nothing."""
        self._up = True
        """Whether the next try is a raise."""
        self._patience, self._waited = 1, 0
        self._target = 0
        """The limit before a cut, while it has not been regained."""
        self._regained = 0
        self._cut_at = float("-inf")
        self._answers, self._skip = 0, 0
        self._began_at = self._area_at = float("-inf")
        self._area = 0.0

    @property
    def limit(self) -> int:
        """Snapshots that may be in flight at once now."""
        return max(1, min(self._settled if self._trial is None else self._trial, self.most))

    def enter(self, now: float) -> None:
        """One more is in flight."""
        self._pass(now)
        self.in_flight += 1

    def leave(self, now: float, entered_at: float, came: Came) -> None:
        """One is done that began then."""
        self._pass(now)
        self.in_flight -= 1
        if came is Came.OVERLOAD:
            self._cut(now, entered_at)
        elif came is Came.ANSWER:
            if self._target:
                self._regain(now)
            elif self._skip:
                self._skip -= 1
                self._begin(now)
            else:
                self._answers += 1
                if self._answers >= WINDOW_ANSWERS and now - self._began_at >= WINDOW_S:
                    self._judge(now)

    def _pass(self, now: float) -> None:
        if self.in_flight:
            self._area += self.in_flight * (now - self._area_at)
        self._area_at = now

    def _begin(self, now: float) -> None:
        """Begin to measure."""
        self._began_at, self._answers, self._area = now, 0, 0.0

    def _judge(self, now: float) -> None:
        """Draw the conclusion of a measurement, and begin the next one."""
        seconds = now - self._began_at
        rate, busy = self._answers / seconds, self._area / seconds >= BUSY * self.limit
        before = self.limit
        if self._trial is not None:
            self._end_trial(rate, busy)
        elif not busy:
            self._base = None
        else:
            self._base = rate if self._base is None else self._base + SMOOTHING * (rate - self._base)
            self._waited += 1
            if self._waited >= self._patience:
                self._begin_trial()
        if self.limit != before:
            self._skip = self.in_flight  # those that began under the other limit tell of neither
        self._begin(now)

    def _begin_trial(self) -> None:
        self._waited = 0
        settled = self._settled = max(1, min(self._settled, self.most))
        step = settled if self._doubling else max(1, settled // 4)
        tried = min(settled + step, self.most) if self._up else max(settled - step, LEAST)
        if tried == settled:
            self._up = not self._up
            return
        self._trial = tried

    def _end_trial(self, rate: float, busy: bool) -> None:
        tried, base = self._trial, self._base
        assert tried is not None
        assert base is not None
        self._trial = None
        more = abs(tried - self._settled) / min(tried, self._settled)
        kept = rate > base * (1 + WORTH_MORE * more) if self._up else rate >= base / (1 + WORTH_LESS * more)
        if busy and kept:
            self._settled, self._base, self._patience = tried, rate, 1
            return
        self._doubling, self._up = False, not self._up
        self._patience = min(2 * self._patience, LONGEST_PATIENCE)

    def _cut(self, now: float, entered_at: float) -> None:
        """Halve the limit, once for all that were in flight together."""
        if entered_at < self._cut_at:
            return
        self._target = self._target or self._settled
        self._settled = max(1, self.limit // 2)
        self._trial, self._base, self._cut_at, self._regained = None, None, now, 0

    def _regain(self, now: float) -> None:
        """After a cut: one more for each round of answers, up to what there was before."""
        self._regained += 1
        if self._regained < self._settled:
            return
        self._settled, self._regained = self._settled + 1, 0
        if self._settled >= self._target:
            self._settled = max(self._target, LEAST)
            self._target, self._patience, self._waited, self._up = 0, 1, 0, True
            self._skip = self.in_flight
            self._begin(now)
