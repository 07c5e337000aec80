"""Latencies in an HDR histogram: three digits at any height, from a microsecond to two minutes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hdrh.histogram import HdrHistogram

PERCENTILES = (50.0, 95.0, 99.0, 99.9)
HIGHEST_US = 120_000_000
_CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.99, 100.0)


class Latencies:
    """Milliseconds from the moment at which a snapshot was due to its answer.

    From the moment it was due, not from the moment it was sent: where an answer is late, those that wait behind it
    count as late too, which is the correction of coordinated omission.
    """

    def __init__(self, milliseconds: Iterable[float] = ()) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_US, 3)
        for value in milliseconds:
            self.add(value)

    def add(self, milliseconds: float) -> None:
        """Record one; two minutes are the most."""
        self._histogram.record_value(max(1, min(HIGHEST_US, round(milliseconds * 1000))))

    @property
    def count(self) -> int:
        """How many were recorded."""
        return int(self._histogram.get_total_count())

    def percentile(self, share: float) -> float:
        """Milliseconds within which `share` percent lie; 0 when nothing was recorded."""
        return float(self._histogram.get_value_at_percentile(share)) / 1000 if self.count else 0.0

    def percentiles(self) -> Mapping[str, float]:
        """p50, p95, p99 and p99.9 in milliseconds."""
        return {f"p{share:g}": self.percentile(share) for share in PERCENTILES}

    def curve(self) -> list[tuple[float, float]]:
        """(percentile, milliseconds), rising, for a plot."""
        return [(share, self.percentile(share)) for share in _CURVE]
