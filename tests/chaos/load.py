"""What the soak and the overload have in common: capacity, samples of the process, and plain figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.chaos.audit import RESULT
from tests.chaos.clients import Camera
from tests.chaos.site import ChaosSite, Sample

AT_A_TIME = 8
"""Snapshots under way while capacity is measured: twice MAX_IN_FLIGHT."""
WARM_UP_S = 2.0
TICK_S = 0.002


class Count:
    """A listener that takes no memory, however long it listens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.offered = 0
        self.results = 0
        self.errors = 0

    def sent(self, key: str, camera: str, at: float) -> None:
        """A camera sends one."""
        del key, camera, at
        self.offered += 1  # by the one thread of all cameras

    def accepted(self, key: str, at: float) -> None:
        """Of no interest here."""

    def seen(self, key: str, at: float) -> None:
        """Of no interest here."""

    def answered(self, key: str, result_id: str, outcome: str, at: float) -> None:
        """An answer has come."""
        del key, result_id, at
        with self._lock:
            if outcome == RESULT:
                self.results += 1
            else:
                self.errors += 1

    @property
    def open(self) -> int:
        """Snapshots without an answer."""
        return self.offered - self.results - self.errors


def capacity(cameras: Sequence[Camera], count: Count, numbers: Iterator[int], seconds: float = 8.0) -> float:
    """Results a second when there are always a few snapshots under way; the cameras tell `count`."""
    started, first, begun = time.monotonic(), 0, 0.0
    while time.monotonic() < started + WARM_UP_S + seconds:
        if not begun and time.monotonic() > started + WARM_UP_S:
            first, begun = count.results, time.monotonic()
        if count.open < AT_A_TIME:
            number = next(numbers)
            cameras[number % len(cameras)].send(number)
        else:
            time.sleep(TICK_S)
    return (count.results - first) / (time.monotonic() - begun)


@contextmanager
def sampled(site: ChaosSite, every_s: float) -> Iterator[list[Sample]]:
    """Samples of the gateway's process, which grow in the background."""
    samples: list[Sample] = []
    over = threading.Event()

    def work() -> None:
        while not over.wait(every_s):
            site.supervisor.look()
            if (sample := site.sample()) is not None:
                samples.append(sample)

    thread = threading.Thread(target=work, name="samples", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def part(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies; 0 of none."""
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0
