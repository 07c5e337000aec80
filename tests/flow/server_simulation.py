"""A variant on a server of a set law, asked as often as a limit allows, on a clock that costs no time."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from gateway.flow.concurrency import Came, Limit


@dataclass(frozen=True, slots=True)
class Law:
    """So many executors, each taking up to `batch` of what waits; one run takes `run_s` and `each_s` for each of it."""

    executors: int = 1
    run_s: float = 0.02
    each_s: float = 0.0
    batch: int = 1
    decode_s: float = 0.002
    """From the queue to the server; two pictures are decoded side by side."""
    noise: float = 0.1
    """Standard deviation of the logarithm of each run's time."""

    @property
    def capacity(self) -> float:
        """Answers a second at most."""
        return self.executors * self.batch / (self.run_s + self.batch * self.each_s)


@dataclass(slots=True)
class Run:
    """Keeps as much in flight as the limit allows; `history` has the limit at each answer, with its time."""

    limit: Limit
    law: Law
    chance: random.Random
    now: float = 0.0
    history: list[tuple[float, int]] = field(default_factory=list)
    _events: list[tuple[float, int, tuple[int, ...]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _entered: dict[int, float] = field(default_factory=dict)
    _waiting: list[int] = field(default_factory=list)
    _running: int = 0

    def go(self, seconds: float) -> None:
        """Let so much time pass."""
        until = self.now + seconds
        self._fill()
        while self._events and self._events[0][0] <= until:
            self.now, _, done = heapq.heappop(self._events)
            if done[0] < 0:
                self._waiting.append(-done[0])
            else:
                self._running -= 1
                for number in done:
                    self._leave(number, Came.ANSWER)
            self._execute()
            self._fill()
        self.now = until

    def stall(self, times: int, timeout_s: float = 5.0) -> None:
        """Lose all that is in flight to a time-out, so many times in a row."""
        for _ in range(times):
            self.now += timeout_s
            for number in tuple(self._entered):
                self._leave(number, Came.OVERLOAD)
            self._events.clear()
            self._waiting.clear()
            self._running = 0
            self._fill()

    def rate(self, last_s: float) -> float:
        """Answers a second in the last seconds."""
        return sum(at > self.now - last_s for at, _ in self.history) / last_s

    def mean_limit(self, last_s: float) -> float:
        """Of the answers of the last seconds."""
        limits = [limit for at, limit in self.history if at > self.now - last_s]
        return sum(limits) / len(limits)

    def share_of_limits(self, last_s: float) -> dict[int, float]:
        """Which part of the last answers came under which limit."""
        limits = [limit for at, limit in self.history if at > self.now - last_s]
        counts: dict[int, int] = defaultdict(int)
        for limit in limits:
            counts[limit] += 1
        return {limit: number / len(limits) for limit, number in counts.items()}

    def _fill(self) -> None:
        while self.limit.in_flight < self.limit.limit:
            number = next(self._numbers) + 1
            self.limit.enter(self.now)
            self._entered[number] = self.now
            ready_at = self.now + self.law.decode_s * self.chance.uniform(0.8, 1.2)
            heapq.heappush(self._events, (ready_at, number, (-number,)))

    def _leave(self, number: int, came: Came) -> None:
        self.limit.leave(self.now, self._entered.pop(number), came)
        if came is Came.ANSWER:
            self.history.append((self.now, self.limit.limit))

    def _execute(self) -> None:
        while self._waiting and self._running < self.law.executors:
            some = tuple(self._waiting[: self.law.batch])
            del self._waiting[: len(some)]
            took = (self.law.run_s + len(some) * self.law.each_s) * self.chance.lognormvariate(0, self.law.noise)
            self._running += 1
            heapq.heappush(self._events, (self.now + took, some[0], some))
