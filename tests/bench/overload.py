"""What becomes of ten times as many snapshots as can be answered: shares, age, priority, drops, cost, recovery.

Not a test: it asserts nothing and its figures are those of this machine at this moment.
Run it with `python -m tests.bench.overload`.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import structlog

from gateway.testing import MemoryTriton
from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, signature, snapshot_json
from tests.harness import HELMET, Site, sees, site, until

CAPACITY = 40
IN_FLIGHT = 4
OVERLOAD_S = 30.0
CALM_S = 10.0
REFUSED = 1000
WAITING = 80
"""More than the queue and the places in flight hold of the messages that are to be refused."""
PICTURE = jpeg(640, 480)


@dataclass(frozen=True, slots=True)
class Cameras:
    """A class of cameras that all send at the same rate, in snapshots a second."""

    name: str
    count: int
    rate: float
    priority: int = 0

    @property
    def devices(self) -> list[str]:
        """Their ids."""
        return [f"{self.name}-{number}" for number in range(self.count)]


CALM = (Cameras("slow", 100, 0.1), Cameras("urgent", 1, 5, priority=10))
OVERLOAD = (*CALM, Cameras("fast", 100, 3.65), Cameras("fastest", 1, 20))


class Fleet:
    """Sends at set rates, each camera at times of its own, a little early or late."""

    def __init__(self, place: Site) -> None:
        self._place = place
        self._chance = random.Random(0)
        self.sent: Counter[str] = Counter()

    async def send(self, classes: tuple[Cameras, ...], seconds: float) -> None:
        """Send for so long."""
        due = sorted(
            (at, device, cameras.priority)
            for cameras in classes
            for device in cameras.devices
            for at in self._times(cameras.rate, seconds)
        )
        started = time.monotonic()
        for at, device, priority in due:
            await asyncio.sleep(max(0.0, started + at - time.monotonic()))
            self._place.snapshot(snapshot_json(PICTURE, device_id=device, priority=priority))
            self.sent[device] += 1

    def _times(self, rate: float, seconds: float) -> list[float]:
        phase = self._chance.random()
        return [(number + phase + self._chance.uniform(0, 0.2)) / rate for number in range(int(seconds * rate))]


def percentiles(values: list[float]) -> str:
    """Median and 99th percentile of milliseconds."""
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms"


def print_shares(place: Site, sent: Counter[str], seconds: float) -> None:
    """What each class of cameras got in the overload, and how old it was when its turn came and at its result."""
    for cameras in OVERLOAD:
        mine = [body for body in place.results if body["device_id"].rsplit("-", 1)[0] == cameras.name]
        each = Counter(body["device_id"] for body in mine)
        rates = [each[device] / seconds for device in cameras.devices]
        part = 100 * len(mine) / sum(sent[device] for device in cameras.devices)
        queued = percentiles([body["metadata"]["timings_ms"]["queued"] for body in mine])
        total = percentiles([body["metadata"]["timings_ms"]["total"] for body in mine])
        print(
            f"{cameras.name:8} {cameras.count:4} cameras at {cameras.rate:5.2f}/s: {part:5.1f} % answered, "
            f"{min(rates):.2f} to {max(rates):.2f}/s each; in the queue {queued}; to the result {total}"
        )


async def measure(place: Site) -> None:
    """Calm, overload, calm again."""
    fleet = Fleet(place)
    await fleet.send(CALM, CALM_S)
    await until(lambda: len(place.results) == fleet.sent.total())
    place.seen.clear()
    fleet.sent.clear()
    began = time.monotonic()
    await fleet.send(OVERLOAD, OVERLOAD_S)
    ended = time.monotonic()
    refused = Counter(body["error"]["code"] for body in place.errors)
    offered = fleet.sent.total() / (ended - began)
    print(f"offered {offered:.0f}/s for {ended - began:.0f} s, capacity {CAPACITY}/s; refused {dict(refused)}")
    await until(lambda: len(place.results) + len(place.errors) == fleet.sent.total())
    print(f"the queue is empty {time.monotonic() - ended:.2f} s after the overload")
    print_shares(place, fleet.sent, ended - began)
    place.seen.clear()
    await fleet.send(CALM, CALM_S)
    print(f"calm again: to the result {percentiles([b['metadata']['timings_ms']['total'] for b in place.results])}")
    print(f"outcomes {place.outcomes()}")


async def cost(place: Site, code: str) -> None:
    """CPU of messages that are refused, beyond that of the same messages on a topic which nobody takes."""
    spent = []
    for topic in ("nobody/takes/this", SNAPSHOT_TOPIC):
        started = time.process_time()
        for _ in range(REFUSED):
            place.snapshot(snapshot_json(PICTURE, device_id="flood"), topic)
            await asyncio.sleep(0)
        if topic == SNAPSHOT_TOPIC:
            await until(lambda: len(place.errors) >= REFUSED - WAITING)
        spent.append(time.process_time() - started)
    codes = {error["error"]["code"] for error in place.errors}
    each_ms = 1000 * (spent[1] - spent[0]) / REFUSED
    print(
        f"{code}: {each_ms:.2f} ms CPU a message of {len(PICTURE) * 4 / 3000:.0f} kB{'' if codes == {code} else codes}"
    )


def triton() -> MemoryTriton:
    """Answers CAPACITY snapshots a second when IN_FLIGHT of them are asked at once."""
    server = MemoryTriton()
    for name in ("detector-onnx", "detector-torch"):
        server.add_model(signature(name), sees(HELMET), latency_s=IN_FLIGHT / CAPACITY)
    return server


async def main() -> None:
    """Print all figures."""
    with tempfile.TemporaryDirectory() as folder:
        async with site(Path(folder), triton=triton(), max_in_flight=IN_FLIGHT) as place:
            await measure(place)
            place.triton.hold("detector-onnx")
            place.seen.clear()
            await cost(place, "QUEUE_FULL")
            place.triton.release("detector-onnx")
        async with site(Path(folder), triton=triton(), rate_limit_per_topic=1) as place:
            await cost(place, "RATE_LIMITED")


if __name__ == "__main__":
    with Path(os.devnull).open("w") as nowhere:  # logging is part of the cost
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(nowhere)
        )
        asyncio.run(main())
