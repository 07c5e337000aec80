"""One run: cameras, faults one after the other, and what came of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.chaos.audit import Auditor, Verdict
from tests.chaos.clients import Camera, Cameras, Ears, picture
from tests.chaos.faults import INJECTIONS
from tests.chaos.load import part
from tests.chaos.schedule import Fault
from tests.chaos.site import ChaosSite, Sample
from tests.e2e.site import until

RECOVERY_LIMIT_S = 5.0
WATCH_RECOVERY_S = 15.0
"""Beyond this the next fault comes all the same."""
STANDSTILL_S = 30.0
"""At the end: without a further answer for so long, what is open is lost."""
SAMPLE_S = 1.0
LOOK_S = 0.1

Say = Callable[[str], None]


@dataclass(slots=True)
class Happened:
    """A fault as it came; times in seconds since the cameras began."""

    kind: str
    began_s: float
    ended_s: float
    recovery_s: float | None
    """From its end until a result came for a snapshot sent after its end; None: never."""
    loading_s: float
    """Of that the time in which Triton loaded models."""

    @property
    def own_recovery_s(self) -> float:
        """What counts."""
        return float("inf") if self.recovery_s is None else max(0.0, self.recovery_s - self.loading_s)


@dataclass(slots=True)
class Report:
    """All that is to be said of a run."""

    seed: int
    cameras: int
    per_second: float
    disk: str
    verdict: Verdict
    faults: list[Happened]
    samples: list[Sample]
    unexpected_exits: list[str]
    starts: int
    """Of the gateway."""
    triton_crashes: list[str]
    """The end of its log each time when it ended by itself."""
    received: int
    settled: int
    """Snapshots and the sum of outcomes, as the last gateway counted them."""
    counted_wrong: list[str]
    by_second: dict[int, dict[str, int]]
    latency_p50_ms: float
    latency_p99_ms: float

    @property
    def failures(self) -> list[str]:
        """Why the run has failed, in words; empty when all promises were kept."""
        return self.broken + [
            f"{fault.kind} at {fault.began_s:.0f} s: recovered after {fault.own_recovery_s:.1f} s"
            for fault in self.faults
            if fault.own_recovery_s > RECOVERY_LIMIT_S
        ]

    @property
    def broken(self) -> list[str]:
        """The promises that were broken, whatever the machine did: those that no other load can excuse."""
        verdict = self.verdict
        found = []
        if verdict.lost:
            found.append(f"{len(verdict.lost)} snapshots lost, such as {', '.join(verdict.lost[:5])}")
        if verdict.never_taken:
            found.append(f"{verdict.never_taken} snapshots never got from their camera to the broker")
        if verdict.wrong_duplicates:
            found.append(f"{len(verdict.wrong_duplicates)} with another result_id: {verdict.wrong_duplicates[:5]}")
        if defects := verdict.outcomes.get("INTERNAL_ERROR"):
            found.append(f"{defects} snapshots met a defect of the gateway; see its log")
        if verdict.strangers:
            found.append(f"{verdict.strangers} answers to what nobody has sent")
        found += [f"the gateway ended {text}" for text in self.unexpected_exits]
        return found + self.counted_wrong

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "failures": self.failures}


@dataclass
class Run:
    """The site with its cameras and its auditor while the faults come."""

    site: ChaosSite
    auditor: Auditor
    cameras: Cameras
    say: Say
    began: float
    samples: list[Sample] = field(default_factory=list)
    counted_wrong: list[str] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """In a thread: supervise, and sample, until the end."""
        sampled = 0.0
        while not self._end.wait(LOOK_S):
            self.site.supervisor.look()
            self.site.triton_keeper.look()
            if time.monotonic() - sampled < SAMPLE_S:
                continue
            sampled = time.monotonic()
            if (sample := self.site.sample()) is not None:
                self.samples.append(sample)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Supervise in the background."""
        thread = threading.Thread(target=self.watch, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def inject(self, fault: Fault) -> Happened:
        """Let it happen, put it right, and wait for the recovery."""
        pause(self.began + fault.at_s)
        began = time.monotonic()
        self.say(f"{began - self.began:6.1f} s  {fault.kind} for {fault.length_s:.1f} s")
        steps = INJECTIONS[fault.kind](self.site)
        next(steps)
        pause(began + fault.length_s)
        killed = fault.kind == "mosquitto.kill"
        forgotten = self.auditor.forgotten(self.site.broker_saved_at, time.monotonic()) if killed else []
        # The gateway has to come up by itself from here on; what serves others is there when its start returns.
        starting = time.monotonic()
        next(steps, None)
        ended = starting if fault.kind.startswith("gateway") else time.monotonic()
        self.cameras.again(forgotten)
        return self._recovery(fault.kind, began, ended)

    def _recovery(self, kind: str, began: float, ended: float) -> Happened:
        recovered = None
        while recovered is None and time.monotonic() < ended + WATCH_RECOVERY_S:
            time.sleep(LOOK_S)
            ended = max(ended, self.site.triton_keeper.came_back_at)
            recovered = self.auditor.recovered_at(ended)
        happened = Happened(kind, began - self.began, ended - self.began, None, 0.0)
        if recovered is None:
            self.say(f"          no result within {WATCH_RECOVERY_S:.0f} s")
            return happened
        happened.recovery_s = recovered - ended
        if kind in ("triton.kill", "triton.restart") or began < self.site.triton_keeper.came_back_at:
            happened.loading_s = self.site.loading_s(ended, recovered)
        sent, answered = self.auditor.counts
        self.say(f"          recovered after {happened.recovery_s:.2f} s; {answered} of {sent} snapshots are answered")
        return happened

    def drain(self) -> None:
        """Let all that is under way get its outcome, as long as any does."""
        before, since = -1, time.monotonic()
        while self.auditor.open() and time.monotonic() - since < STANDSTILL_S:
            if self.auditor.counts[1] != before:
                before, since = self.auditor.counts[1], time.monotonic()
            time.sleep(LOOK_S)

    def count(self) -> tuple[int, int]:
        """What the gateway has counted, once it is idle."""
        deadline = time.monotonic() + STANDSTILL_S
        tally = self.site.tally()
        while (tally is None or tally[0] != tally[1]) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            tally = self.site.tally()
        received, settled = tally or (-1, -1)
        if received != settled:
            self.counted_wrong.append(f"{received} snapshots received and {settled} outcomes")
        return received, settled

    def report(
        self, seed: int, cameras: int, per_second: float, happened: list[Happened], tally: tuple[int, int]
    ) -> Report:
        """All of it, with times in seconds since the cameras began."""
        latencies = self.auditor.latencies_s()
        return Report(
            seed=seed,
            cameras=cameras,
            per_second=per_second,
            disk=self.site.disk.how,
            verdict=self.auditor.verdict(),
            faults=happened,
            samples=[replace(sample, at=sample.at - self.began) for sample in self.samples],
            unexpected_exits=self.site.supervisor.unexpected,
            starts=self.site.supervisor.starts,
            triton_crashes=self.site.triton_keeper.crashes,
            received=tally[0],
            settled=tally[1],
            counted_wrong=self.counted_wrong,
            by_second={at - int(self.began): dict(some) for at, some in sorted(self.auditor.by_second().items())},
            latency_p50_ms=round(part(latencies, 0.5) * 1000, 1),
            latency_p99_ms=round(part(latencies, 0.99) * 1000, 1),
        )


def pause(until_moment: float) -> None:
    """The faults come at their times, whatever the site does."""
    time.sleep(max(0.0, until_moment - time.monotonic()))


def run(
    folder: Path,
    faults: Sequence[Fault],
    *,
    seed: int,
    seconds: float,
    cameras: int,
    per_second: float,
    say: Say,
    variants: tuple[str, ...] = ("onnx", "torch"),
) -> Report:
    """The whole bench in an empty folder; ends all that it has started, also at an exception."""
    auditor = Auditor()
    with contextlib.ExitStack() as stack:
        say("Starting Mosquitto, Triton and the gateway")
        site = stack.enter_context(ChaosSite(folder, variants))
        ears = Ears(site.broker.port, site.gateway.topic, site.answers, auditor)
        stack.callback(ears.close)
        port, topic = site.broker.port, site.gateway.topic
        devices = [Camera(port, topic, f"camera-{n:02}", picture(n), auditor) for n in range(cameras)]
        many = Cameras(dict.fromkeys(devices, per_second / cameras))
        stack.callback(many.close)
        many.start()
        until(lambda: auditor.counts[1] > cameras, "the first answers")
        going = Run(site, auditor, many, say, time.monotonic())
        with going.watched():
            happened = [going.inject(fault) for fault in faults]
            pause(going.began + seconds)
            many.stop()
            say("The cameras have stopped; waiting for the last answers")
            going.drain()
            tally = going.count()
            site.supervisor.terminate()
        return going.report(seed, cameras, per_second, happened, tally)
