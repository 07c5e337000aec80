"""How far the two variants of each model have agreed of late, and how long each of them took."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator

from gateway.messages import Comparison, VariantResult

STEP_S = 10
STEPS = 180
"""The last 30 minutes."""
MAX_MODELS = 256
BOUNDS_MS = (0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10_000)
"""Upper ends of the buckets of a distribution; the last bucket has none."""


class Distribution:
    """How long a variant took, in buckets."""

    __slots__ = ("counts", "total_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        self.total_ms = 0.0

    def observe(self, took_ms: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(BOUNDS_MS, took_ms)] += 1
        self.total_ms += took_ms


class Agreement:
    """Of one model in one kind of comparison; counts are of those that agree, do not, and are not known."""

    __slots__ = ("latency", "series", "totals")

    def __init__(self) -> None:
        self.totals = [0, 0, 0]
        self.series: deque[tuple[int, list[int]]] = deque(maxlen=STEPS)
        """Epoch second at which each step of STEP_S begins, and its counts; steps without any are left out."""
        self.latency: dict[str, Distribution] = {}

    def count(self, place: int, at: float) -> None:
        """Count one comparison at `at`, in epoch seconds."""
        begins = int(at) // STEP_S * STEP_S
        if not self.series or self.series[-1][0] < begins:  # a frame that was taken in before counts with the last
            self.series.append((begins, [0, 0, 0]))
        self.series[-1][1][place] += 1
        self.totals[place] += 1


class Agreements:
    """By model and kind."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Agreement] = {}

    def __iter__(self) -> Iterator[tuple[tuple[str, str], Agreement]]:
        return iter(self._of.items())

    def count(self, model: str, kind: str, comparison: Comparison, match: bool | None, at: float) -> None:
        """Count a comparison of two variants; `match` is None where one of them failed, `at` epoch seconds."""
        found = self._of.get((model, kind))
        if found is None:
            if len(self._of) >= MAX_MODELS:
                del self._of[next(iter(self._of))]
            found = self._of[model, kind] = Agreement()
        found.count(2 if match is None else 0 if match else 1, at)
        for result in (comparison.first, comparison.second):
            if result.error is None:
                self._observe(found, result)

    @staticmethod
    def _observe(agreement: Agreement, result: VariantResult) -> None:
        distribution = agreement.latency.get(result.variant)
        if distribution is None:
            distribution = agreement.latency[result.variant] = Distribution()
        distribution.observe(result.infer_ms)
