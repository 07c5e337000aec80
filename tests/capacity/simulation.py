"""A site, snapshot by snapshot: cameras, the gateway's decoding threads with their bounded queue, and Triton."""

from __future__ import annotations

import collections
import enum
import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.capacity.model import CORES_PER_REPLICA, Plan


class Arrivals(enum.StrEnum):
    """When snapshots come."""

    POISSON = "poisson"
    """At any time, as of very many cameras, or of motion."""
    REGULAR = "regular"
    """Each camera at its own even pace, from a random moment on."""
    TOGETHER = "together"
    """All cameras at the same moment, as with a common trigger or clock."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is simulated. Times in seconds, rates per second."""

    cameras: int
    rate_per_camera: float
    decoders: int
    decode_s: float
    instances: int
    infer_s: float
    queue: int
    """Snapshots that may wait for a decoder; one more is refused."""
    arrivals: Arrivals = Arrivals.POISSON
    replicas: int = 1
    """Gateways that get the snapshots in turn, each with as many decoders and a queue; Triton is there for all."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the snapshots; times in seconds."""

    offered: int
    refused: int
    wait_for_decoder_s: float
    wait_for_triton_s: float
    latencies_s: NDArray[np.float64]
    longest_queue: int

    @property
    def refused_share(self) -> float:
        """0 to 1."""
        return self.refused / self.offered

    def latency_s(self, percentile: float) -> float:
        """Of those that were answered."""
        return float(np.percentile(self.latencies_s, percentile))


def as_planned(needed: Plan, arrivals: Arrivals) -> Line:
    """A whole site with what was planned for it."""
    return Line(
        cameras=needed.site.cameras,
        rate_per_camera=needed.site.rate_per_camera,
        decoders=CORES_PER_REPLICA,
        decode_s=needed.model.gateway_ms / 1000,
        instances=needed.instances,
        infer_s=needed.model.triton_ms / 1000,
        queue=needed.queue_messages,
        arrivals=arrivals,
        replicas=needed.replicas,
    )


def times(line: Line, seconds: float, seed: int) -> Iterator[float]:
    """The moments of all arrivals in order; the same ones for the same seed."""
    chance = random.Random(seed)
    if line.arrivals is Arrivals.POISSON:
        now = 0.0
        while (now := now + chance.expovariate(line.cameras * line.rate_per_camera)) < seconds:
            yield now
        return
    period = 1 / line.rate_per_camera
    together = line.arrivals is Arrivals.TOGETHER
    phases = sorted(0.0 if together else chance.uniform(0, period) for _ in range(line.cameras))
    for turn in range(int(seconds / period)):
        yield from (turn * period + phase for phase in phases)


class _Gateway:
    """One of the replicas: its decoders, and those that wait for them."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._free_at = [0.0] * line.decoders
        self._starts: collections.deque[float] = collections.deque()
        self.longest_queue = 0

    def take(self, now: float) -> float | None:
        """When this snapshot will be decoded; None where it is refused."""
        while self._starts and self._starts[0] <= now:
            self._starts.popleft()
        if len(self._starts) >= self._line.queue:
            return None
        start = max(now, self._free_at[0])
        heapq.heapreplace(self._free_at, start + self._line.decode_s)
        if start > now:
            self._starts.append(start)
            self.longest_queue = max(self.longest_queue, len(self._starts))
        return start


def simulate(line: Line, *, seconds: float, seed: int) -> Outcome:
    """Serve all arrivals of so many seconds, first come, first served."""
    gateways = [_Gateway(line) for _ in range(line.replicas)]
    instances = [0.0] * line.instances
    offered = refused = 0
    decoder_wait = triton_wait = 0.0
    latencies = []
    for now, gateway in zip(times(line, seconds, seed), itertools.cycle(gateways)):
        offered += 1
        start = gateway.take(now)
        if start is None:
            refused += 1
            continue
        ready = start + line.decode_s
        asked = max(ready, instances[0])
        heapq.heapreplace(instances, asked + line.infer_s)
        decoder_wait += start - now
        triton_wait += asked - ready
        latencies.append(asked + line.infer_s - now)
    longest = max(gateway.longest_queue for gateway in gateways)
    served = max(1, len(latencies))
    return Outcome(offered, refused, decoder_wait / served, triton_wait / served, np.array(latencies), longest)
