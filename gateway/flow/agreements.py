"""How far the two variants of each model have agreed since the start, and step by step in the last 30 minutes."""

from __future__ import annotations

import bisect
from collections import OrderedDict, deque
from collections.abc import Iterator

import msgspec

from gateway.messages import Comparison

STEP_S = 10
STEPS = 180
"""The last 30 minutes."""
MAX_MODELS = 256
MAX_VARIANTS = 8
"""Of one model: a rollout brings two names with each version, and those of old versions make room."""
BOUNDS_MS = (0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10_000)
"""Upper ends of the buckets of a distribution; the last bucket has none."""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What a comparison comes to, without what was seen."""

    match: bool | None
    """None where one of the two failed."""
    took_ms: tuple[tuple[str, float], ...]
    """How long each variant took that did not fail."""

    @property
    def label(self) -> str:
        """As the metrics and the console name it: true, false or unknown."""
        return "unknown" if self.match is None else str(self.match).lower()


def verdict_on(comparison: Comparison) -> Verdict:
    """What it comes to."""
    both = (comparison.first, comparison.second)
    match = None if comparison.agreement is None else comparison.agreement.match
    return Verdict(match, tuple((each.variant, each.infer_ms) for each in both if each.error is None))


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
        """Since the start."""
        self.series: deque[tuple[int, list[int]]] = deque(maxlen=STEPS)
        """Second of `time.monotonic()`, which nobody puts back, at which each step of STEP_S begins, and its counts;
        steps without any are left out."""
        self.latency: OrderedDict[str, Distribution] = OrderedDict()
        """Of the MAX_VARIANTS that were compared last, since each was first compared."""

    def count(self, verdict: Verdict, at: float) -> None:
        """Count one comparison of a snapshot that arrived `at`, of `time.monotonic()`."""
        place = 2 if verdict.match is None else 0 if verdict.match else 1
        begins = int(at) // STEP_S * STEP_S
        if not self.series or self.series[-1][0] < begins:  # a frame that was taken in before counts with the last
            self.series.append((begins, [0, 0, 0]))
        self.series[-1][1][place] += 1
        self.totals[place] += 1
        for variant, took_ms in verdict.took_ms:
            self._observe(variant, took_ms)

    def _observe(self, variant: str, took_ms: float) -> None:
        distribution = self.latency.get(variant)
        if distribution is None:
            distribution = self.latency[variant] = Distribution()
        self.latency.move_to_end(variant)
        if len(self.latency) > MAX_VARIANTS:
            self.latency.popitem(last=False)
        distribution.observe(took_ms)


class Agreements:
    """By model and kind."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Agreement] = {}

    def __iter__(self) -> Iterator[tuple[tuple[str, str], Agreement]]:
        return iter(self._of.items())

    def count(self, model: str, kind: str, verdict: Verdict, at: float) -> None:
        """Count a comparison of two variants; `at` of `time.monotonic()`."""
        found = self._of.get((model, kind))
        if found is None:
            if len(self._of) >= MAX_MODELS:
                del self._of[next(iter(self._of))]
            found = self._of[model, kind] = Agreement()
        found.count(verdict, at)
