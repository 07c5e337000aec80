"""`python -m tests.chaos.overload`: ten times what can be answered, for ten minutes, from cameras of many rates.

The model sleeps for a while on each picture, so that ten times its capacity is little work for all others, also on a
small machine. Some steady cameras and an important one send all the time, before and after too: what becomes of them
says how much of the overload is felt. Exit code 1 when a promise was broken; LIMITS says which there are.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.audit import Auditor, Snapshot
from tests.chaos.clients import Camera, Cameras, Ears, picture
from tests.chaos.load import Count, capacity, part, sampled
from tests.chaos.site import ChaosSite, end_in_order
from tests.e2e.site import until
from tests.rollouts import detectors

SERVICE_MS = 40.0
CROWD = 16
STEEPNESS = 1.5
"""Of two neighbours in the crowd one sends so many times more than the other: from one to four hundred."""
STEADY = 4
STEADY_SHARE = 0.3
"""Of the capacity, by all steady cameras together."""
IMPORTANT_RATE = 2.0
IMPORTANT = "important"
PRIORITY = 100
QUIET_S = 10.0
"""Before and after the overload."""
SETTLE_S = 5.0
"""Of the overload, until what the cameras get is judged: the first frames meet a queue that knows of no pressure."""
IN_FLIGHT = 4
DRAIN_S = 60.0
SAY_EVERY_S = 30.0
LIMITS = {
    "memory_mb": 150.0,
    "recovery_s": 2.0,
    "least_share": 0.5,  # of what is fair for a camera
}


@dataclass(frozen=True, slots=True)
class CameraReport:
    """One camera during the overload."""

    name: str
    offered: float
    """Snapshots a second."""
    served: float
    """Results a second."""
    fair: float
    """Results a second, if what can be answered were dealt out evenly and nobody got more than he asks for."""
    age_p50_s: float
    """From the camera to its result, which is mostly the time in the queue."""
    age_p99_s: float


@dataclass(frozen=True, slots=True)
class OverloadReport:
    """What came of it."""

    capacity: float
    offered: float
    cameras: list[CameraReport]
    outcomes: dict[str, int]
    normal_p99_s: float
    """Of the steady and the important cameras before the overload."""
    recovery_s: float
    """After its end, until these were served as before."""
    memory_mb: float
    lost: int
    """Of the snapshots at QoS 1."""
    tally: tuple[int, int] | None
    unexpected_exits: list[str]

    @property
    def failures(self) -> list[str]:
        """Which promises were broken."""
        found = [f"the gateway ended {text}" for text in self.unexpected_exits]
        if self.memory_mb > LIMITS["memory_mb"]:
            found.append(f"resident memory reached {self.memory_mb:.0f} MB")
        if self.recovery_s > LIMITS["recovery_s"]:
            found.append(f"normal again {self.recovery_s:.1f} s after the end")
        if self.lost:
            found.append(f"{self.lost} snapshots lost")
        if self.tally is None or self.tally[0] != self.tally[1]:
            found.append(f"received and outcomes differ: {self.tally}")
        for camera in self.cameras:
            found += self._failures_of(camera)
        return found

    def _failures_of(self, camera: CameraReport) -> Iterator[str]:
        if camera.name == IMPORTANT:
            # Who is in flight already is not interrupted, and then there is one's own turn.
            limit = self.normal_p99_s + 2 * IN_FLIGHT / self.capacity
            if camera.age_p99_s > limit:
                yield f"the important camera waited {camera.age_p99_s:.2f} s, limit {limit:.2f} s"
            return
        if camera.served < LIMITS["least_share"] * camera.fair:
            yield f"{camera.name} got {camera.served:.2f} results a second, {camera.fair:.2f} were fair"
        # The freshest frame of each camera is served, and each has its turn once in a round.
        limit = 2 * (len(self.cameras) + IN_FLIGHT) / self.capacity
        if camera.age_p99_s > limit:
            yield f"{camera.name}: frames served were up to {camera.age_p99_s:.1f} s old, limit {limit:.1f} s"


def fair_shares(offered: Mapping[str, float], total: float) -> dict[str, float]:
    """Deal `total` out so that nobody gets more than he offers, and all who want more get the same (max-min)."""
    shares: dict[str, float] = {}
    left, waiting = total, sorted(offered, key=lambda name: offered[name])
    for number, name in enumerate(waiting):
        shares[name] = min(offered[name], left / (len(waiting) - number))
        left -= shares[name]
    return shares


def recovery(snapshots: Sequence[Snapshot], end: float, limit_s: float) -> float:
    """Seconds from `end` until the first of these snapshots from which on each was served within the limit."""
    recovered = end
    for snapshot in sorted(snapshots, key=lambda each: each.sent_at):
        if snapshot.sent_at >= end and (snapshot.latency_s is None or snapshot.latency_s > limit_s):
            recovered = max(recovered, snapshot.answers[0].at if snapshot.answers else float("inf"))
    return recovered - end


class Overload:
    """The phases of one run."""

    def __init__(self, site: ChaosSite) -> None:
        self._site = site
        self._numbers = itertools.count()
        self._auditor = Auditor()

    def measure(self) -> float:
        """Results a second that the site can give."""
        count = Count()
        ears = Ears(self._site.broker.port, "", self._site.answers, count)
        devices = [
            Camera(self._site.broker.port, self._site.gateway.topic, f"measuring-{n}", picture(n), count)
            for n in range(IN_FLIGHT)
        ]
        try:
            most = capacity(devices, count, self._numbers)
            until(lambda: not count.open, "the last answers")
        finally:
            ears.close()
            for device in devices:
                device.close()
        return most

    def run(self, seconds: float, factor: float) -> OverloadReport:
        """All of it."""
        most = self.measure()
        print(f"capacity {most:.1f} snapshots a second; offering {most * factor:.0f} a second", flush=True)
        with ExitStack() as stack:
            ears = Ears(self._site.broker.port, "", self._site.answers, self._auditor)
            stack.callback(ears.close)
            samples = stack.enter_context(sampled(self._site, 0.5))
            steady, crowd = Cameras(self._steady(most), self._numbers), Cameras(self._crowd(most * factor))
            stack.callback(steady.close)
            stack.callback(crowd.close)
            before = time.monotonic()
            steady.start()
            time.sleep(QUIET_S)
            began = time.monotonic()
            crowd.start()
            self._wait(began, seconds)
            crowd.stop()
            ended = time.monotonic()
            time.sleep(QUIET_S)
            steady.stop()
            self._drain()
            tally = self._site.tally()
            self._site.supervisor.terminate()
            memory_mb = max(sample.rss_mb for sample in samples)
        return self._report(most, (before, began, ended), memory_mb, tally)

    def _steady(self, most: float) -> dict[Camera, float]:
        port, topic = self._site.broker.port, self._site.gateway.topic
        important = Camera(port, topic, IMPORTANT, picture(99), self._auditor, priority=PRIORITY)
        others = [Camera(port, topic, f"steady-{n}", picture(n), self._auditor) for n in range(STEADY)]
        return {important: IMPORTANT_RATE, **dict.fromkeys(others, most * STEADY_SHARE / STEADY)}

    def _crowd(self, rate: float) -> dict[Camera, float]:
        """Of both qualities of service."""
        port, topic = self._site.broker.port, self._site.gateway.topic
        weights = [STEEPNESS**-number for number in range(CROWD)]
        return {
            Camera(port, topic, f"crowd-{number:02}-qos{qos}", picture(number), self._auditor, qos=qos): rate
            * weight
            / sum(weights)
            for number, weight in enumerate(weights)
            for qos in [number % 2]
        }

    def _wait(self, began: float, seconds: float) -> None:
        while (left := began + seconds - time.monotonic()) > 0:
            time.sleep(min(SAY_EVERY_S, left))
            sent, answered = self._auditor.counts
            sample = self._site.sample()
            memory = f"{sample.rss_mb:.0f} MB" if sample else "no process"
            print(f"{time.monotonic() - began:6.0f} s  {answered} of {sent} answered, {memory}", flush=True)

    def _open(self) -> list[str]:
        """At QoS 1 without an answer; what else the broker leaves out under load is its own affair."""
        return [key for key in self._auditor.open() if "qos0" not in key]

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_S
        while self._open() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _report(
        self, most: float, moments: tuple[float, float, float], memory_mb: float, tally: tuple[int, int] | None
    ) -> OverloadReport:
        before, began, ended = moments
        settled = began + SETTLE_S
        during = self._auditor.sent_between(settled, ended)
        watched = (IMPORTANT, *(f"steady-{n}" for n in range(STEADY)))
        quiet = self._auditor.sent_between(before, began)
        normal = part([each.latency_s for name in watched for each in quiet[name] if each.latency_s is not None], 0.99)
        after = self._auditor.sent_between(ended, float("inf"))
        cameras = _camera_reports(during, ended - settled)
        return OverloadReport(
            capacity=most,
            offered=sum(camera.offered for camera in cameras),
            cameras=cameras,
            outcomes=dict(
                Counter(
                    each.answers[0].outcome if each.answers else "none" for some in during.values() for each in some
                ).most_common()
            ),
            normal_p99_s=normal,
            recovery_s=recovery([each for name in watched for each in after.get(name, ())], ended, 2 * normal + 0.1),
            memory_mb=memory_mb,
            lost=len(self._open()),
            tally=tally,
            unexpected_exits=self._site.supervisor.unexpected,
        )


def _camera_reports(during: Mapping[str, Sequence[Snapshot]], seconds: float) -> list[CameraReport]:
    """The most busy one first."""
    ages = {name: [s.latency_s for s in some if s.latency_s is not None] for name, some in during.items()}
    offered = {name: len(some) / seconds for name, some in during.items()}
    served = {name: len(some) / seconds for name, some in ages.items()}
    others = {name: rate for name, rate in offered.items() if name != IMPORTANT}
    fair = fair_shares(others, sum(served[name] for name in others)) | {IMPORTANT: offered.get(IMPORTANT, 0.0)}
    return [
        CameraReport(name, offered[name], served[name], fair[name], part(ages[name], 0.5), part(ages[name], 0.99))
        for name in sorted(during, key=lambda name: -offered[name])
    ]


def table(report: OverloadReport) -> str:
    """For the terminal."""
    lines = [
        "",
        f"offered {report.offered:.0f} a second, capacity {report.capacity:.1f} a second",
        *(f"  {outcome}: {number}" for outcome, number in report.outcomes.items()),
        f"memory at most {report.memory_mb:.0f} MB; normal again {report.recovery_s:.2f} s after the end",
        f"received and outcomes: {report.tally}; lost at QoS 1: {report.lost}",
        f"99th percentile before: {report.normal_p99_s * 1000:.0f} ms",
        "",
        "camera             offered/s  served/s    fair/s   age p50   age p99",
    ]
    lines += [
        f"{each.name:18}{each.offered:10.2f}{each.served:10.2f}{each.fair:10.2f}"
        f"{each.age_p50_s * 1000:7.0f} ms{each.age_p99_s * 1000:7.0f} ms"
        for each in report.cameras
    ]
    return "\n".join([*lines, "", *(f"FAILED: {text}" for text in report.failures)])


def slow_model(milliseconds: float) -> bytes:
    """The detector for Triton's Python backend, which takes its time on each picture."""
    quick = detectors.python_detector()
    slow = quick.replace(b"            self.asked += 1\n", b"            time.sleep(%f)\n" % (milliseconds / 1000), 1)
    slow = slow.replace(b"            if self.asked == None:\n                os._exit(1)\n", b"", 1)
    return slow.replace(b"import os\n", b"import time\n", 1)


def main() -> int:
    """Command line of the overload."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.overload", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--factor", type=float, default=10.0, help="times the capacity that is offered")
    parser.add_argument("--service-ms", type=float, default=SERVICE_MS, help="that the model takes for a picture")
    given = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="edge-gateway-overload-", ignore_cleanup_errors=True) as folder:
        try:
            with ChaosSite(Path(folder), ("python",), content=slow_model(given.service_ms), linked=False) as site:
                report = Overload(site).run(given.minutes * 60, given.factor)
        except KeyboardInterrupt:
            print("Interrupted; all parts have been ended", file=sys.stderr)
            return 130
    print(table(report))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
