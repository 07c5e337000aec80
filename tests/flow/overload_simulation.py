"""Cameras at their own pace, the real queue, and a Triton of a set capacity, on a clock that costs no time."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from gateway.flow.schedule import Schedule
from gateway.messages import Job, ReplyTopics, Snapshot
from gateway.models.catalog import ServedModel
from tests.flow.builders import origin, served

IN_FLIGHT = 4
EXPIRY_S = 0.05
TOPICS = ReplyTopics("r", "c", "e")


@dataclass(frozen=True, slots=True)
class Camera:
    """Sends `rate` frames a second, each late by up to `jitter` of its period, in bursts of `burst`."""

    name: str
    rate: float
    priority: int = 0
    size: int = 1
    jitter: float = 0.5
    burst: int = 1
    model: ServedModel = field(default_factory=served)
    start: float = 0.0
    until: float = float("inf")

    def times(self, chance: random.Random, end: float) -> Iterator[float]:
        """When its frames arrive."""
        period = self.burst / self.rate
        for number in count():
            at = self.start + (number + chance.random() * self.jitter) * period
            if at >= min(end, self.until):
                return
            yield from [at] * self.burst


@dataclass(slots=True)
class Ledger:
    """What became of the frames of each camera."""

    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    served: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    ages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """How old each served frame was when its turn came, in seconds."""
    full: int = 0
    late: int = 0
    longest: int = 0
    """The most jobs that ever waited."""
    heaviest: int = 0
    """The most bytes that ever waited."""
    emptied_at: float = 0.0
    """When the last job that waited got a place in flight."""
    backwards: int = 0
    """Frames that were served after a newer one of their camera."""

    def share(self, name: str) -> float:
        """Which part of its frames a camera got answers to."""
        return self.served[name] / self.sent[name]


class _Run:
    """The places in flight, and what was seen of the jobs."""

    def __init__(self, queue: Schedule, capacity: float, chance: random.Random) -> None:
        self.queue = queue
        self.ledger = Ledger()
        self._capacity = capacity
        self._chance = chance
        self._free_at = [0.0] * IN_FLIGHT
        self._latest: dict[str, float] = {}
        self._waiting: dict[int, int] = {}

    def arrive(self, job: Job) -> None:
        """A frame comes in."""
        ledger = self.ledger
        self.serve(job.snapshot.origin.received_at)
        ledger.sent[job.snapshot.origin.device_id] += 1
        self._waiting[id(job)] = job.size
        for gone in self.queue.put(job):
            del self._waiting[id(gone)]
            ledger.full += 1
        self.serve(job.snapshot.origin.received_at)
        ledger.longest = max(ledger.longest, len(self.queue))
        ledger.heaviest = max(ledger.heaviest, sum(self._waiting.values()))

    def expire(self, now: float) -> None:
        """What is too late goes, and what nobody would look at any more."""
        self.serve(now)
        for job in self.queue.expired(now):
            del self._waiting[id(job)]
            self.ledger.late += 1
        for job in self.queue.outpaced(now):
            del self._waiting[id(job)]
            self.ledger.full += 1

    def serve(self, now: float) -> None:
        """Give what waits to the places that have become free until now."""
        while self._free_at[0] <= now and (job := self.queue.take()) is not None:
            arrived = job.snapshot.origin.received_at
            at = max(self._free_at[0], arrived)
            self._count(job.snapshot.origin.device_id, arrived, at)
            del self._waiting[id(job)]
            if not len(self.queue):
                self.ledger.emptied_at = at
            heapq.heapreplace(self._free_at, at + IN_FLIGHT / self._capacity * self._chance.uniform(0.75, 1.25))

    def finish(self, now: float) -> None:
        """Serve all that is left from now on."""
        while len(self.queue):
            self.expire(now)
            now += EXPIRY_S

    def _count(self, name: str, arrived: float, at: float) -> None:
        self.ledger.backwards += arrived < self._latest.get(name, arrived)
        self._latest[name] = arrived
        self.ledger.served[name] += 1
        self.ledger.ages[name].append(at - arrived)


def simulate(
    queue: Schedule, cameras: list[Camera], *, capacity: float, seconds: float, deadline_s: float = 10.0, seed: int = 0
) -> Ledger:
    """Run for so many seconds, then until the queue is empty; every frame is served, full or late in the end."""
    chance = random.Random(seed)
    run, next_expiry = _Run(queue, capacity, chance), 0.0
    arrivals = [(at, camera) for camera in cameras for at in camera.times(chance, seconds)]
    for at, camera in sorted(arrivals, key=lambda each: each[0]):
        while next_expiry <= at:
            run.expire(next_expiry)
            next_expiry += EXPIRY_S
        run.arrive(frame(camera, at, deadline_s))
    run.finish(next_expiry)
    return run.ledger


def frame(camera: Camera, at: float, deadline_s: float = 10.0) -> Job:
    """One frame of a camera that arrives at this time."""
    sent = origin(device_id=camera.name, received_at=at)
    snapshot = Snapshot(origin=sent, image=b"x" * camera.size, priority=camera.priority)
    return Job(snapshot, camera.model, at + deadline_s, TOPICS)


def fair_shares(rates: Mapping[str, float], capacity: float) -> dict[str, float]:
    """What max-min fairness gives each camera, in frames a second."""
    shares, left = {}, capacity
    by_rate = sorted(rates.items(), key=lambda each: each[1])
    for number, (name, rate) in enumerate(by_rate):
        shares[name] = min(rate, left / (len(by_rate) - number))
        left -= shares[name]
    return shares
