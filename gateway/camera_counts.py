"""What each camera sent and when, for Prometheus: bounded, whatever device ids somebody invents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.errors import DROPPED, Outcome

MOST_CAMERAS = 1024
"""Cameras with samples of their own; what further ones send is counted together, under `OTHERS`."""
LONGEST_NAME = 128
"""Letters of a device id that has samples of its own: a page of much longer ones would be megabytes."""
OTHERS = "other"
FORGOTTEN_AFTER_S = 24 * 3600.0
"""A camera that has been silent for so long gives its samples up, and its place to another one."""
_SWEEP_S = 60.0

OUTCOMES = tuple(Outcome)
FAILED = (Outcome.REJECTED, Outcome.FAILED)


class CameraTotals(NamedTuple):
    """Snapshots of one camera since it is known."""

    published: int
    failed: int
    dropped: int


class _Camera:
    """The snapshots of one camera, by the place of their outcome in `OUTCOMES`; small, for there may be many."""

    __slots__ = ("counts", "seen_at")

    def __init__(self) -> None:
        self.counts = [0] * len(OUTCOMES)
        self.seen_at = 0.0


class CameraCounts(Collector):
    """Counts by device id; samples are made only when somebody scrapes.

    The first cameras keep their places, so that one who invents device ids pushes out none that is there: each id would
    be a new series in Prometheus for ever.
    """

    def __init__(
        self, counts: tuple[str, str], last: tuple[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Names and help of the counter and of the gauge."""
        self._counts = counts
        self._last = last
        self._clock = clock
        self._cameras: dict[str, _Camera] = {}
        self._others = _Camera()
        self._swept_at = float("-inf")

    def count(self, device_id: str, outcome: int, number: int, seen_at: float) -> None:
        """Add deliveries of one snapshot; `outcome` is its place in `OUTCOMES`, `seen_at` of `time.monotonic()`."""
        camera = self._cameras.get(device_id)
        if camera is None:
            camera = self._begin(device_id)
        if seen_at > camera.seen_at:  # answers may come in another order than their snapshots
            camera.seen_at = seen_at
        camera.counts[outcome] += number

    def totals(self, device_id: str) -> CameraTotals | None:
        """What came of a camera's snapshots; None for one that has no samples of its own."""
        camera = self._cameras.get(device_id)
        if camera is None:
            return None
        of = dict(zip(OUTCOMES, camera.counts, strict=True))
        return CameraTotals(of[Outcome.PUBLISHED], sum(of[each] for each in FAILED), sum(of[each] for each in DROPPED))

    def _begin(self, device_id: str) -> _Camera:
        if len(self._cameras) >= MOST_CAMERAS:
            self._forget_silent()
        if len(self._cameras) >= MOST_CAMERAS or len(device_id) > LONGEST_NAME or device_id == OTHERS:
            return self._others
        camera = self._cameras[device_id] = _Camera()
        return camera

    def _forget_silent(self) -> None:
        now = self._clock()
        if now - self._swept_at < _SWEEP_S:
            return
        self._swept_at = now
        silent = [name for name, each in self._cameras.items() if now - each.seen_at > FORGOTTEN_AFTER_S]
        for name in silent:
            del self._cameras[name]

    def collect(self) -> Iterator[Metric]:
        """The counter, with the outcomes that each camera has had, and the gauge."""
        self._forget_silent()
        counter = CounterMetricFamily(*self._counts, labels=("device_id", "outcome"))
        gauge = GaugeMetricFamily(*self._last, labels=("device_id",))
        for name, camera in (*self._cameras.items(), (OTHERS, self._others)):
            for outcome, number in zip(OUTCOMES, camera.counts, strict=True):
                if number:
                    counter.add_metric((name, outcome.value), number)
        epoch = time.time() - self._clock()
        for name, camera in self._cameras.items():
            gauge.add_metric((name,), round(epoch + camera.seen_at, 3))
        yield counter
        yield gauge
