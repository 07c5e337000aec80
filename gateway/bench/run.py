"""One run: everything of the plan, in order, as far as it comes before Ctrl-C."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gateway.bench import accuracy, decoder, open_loop, sample_model
from gateway.bench.driver import Driver
from gateway.bench.frames import RESOLUTIONS, Frames
from gateway.bench.machine import describe
from gateway.bench.plan import BASE, SAMPLE_SIZE, Case, Part, Plan
from gateway.bench.records import Report, Spread, Start, Steady
from gateway.bench.site import ANSWER_TOPICS, SAMPLE, BenchSite
from gateway.bench.targets import OWN_RATE, targets
from gateway.bench.throughput import Closed
from gateway.bench.triton_alone import search
from gateway.bench.usage import memory
from gateway.errors import StackError

TRANSPORTS = ("bytes", "shared-memory")
CONTESTANTS: tuple[Part, ...] = ("gateway", "script")
LOADED_RATE = 20.0
"""Snapshots a second of the second open loop: below what the script can do, so that both are comparable."""
DUAL_RATE = 40.0
LONGER = 4
"""An open loop takes so many times as long as a closed one: it is the rare latencies that count."""
STARTS = 3

Say = Callable[[str], None]
Step = tuple[str, Callable[[], None]]
Advance = Callable[[float], None]
"""Told which share of the steps is done, between 0 and 1."""


class Run:
    """Measures a plan step by step and keeps what it has found in `report`, whatever happens on the way."""

    def __init__(self, plan: Plan, repository: Path, settings: Mapping[str, str], say: Say) -> None:
        """`settings` are handed to every gateway; `say` gets a line of progress at each step."""
        self._plan = plan
        self._repository = repository
        self._settings = settings
        self._say = say
        self._frames = Frames(quality=plan.quality)
        self.report: Report | None = None
        """None until the parts are up."""

    def measure(self, advance: Advance) -> None:
        """All of the plan; KeyboardInterrupt ends it with what there is, and a step that fails is named in the report.

        Raises StackError where broker or Triton do not start.
        """
        started = time.monotonic()
        sizes = {case.size for case in self._plan.cases} | {BASE.size}
        sizes |= {SAMPLE_SIZE} if self._plan.has("pinned") or self._plan.has("batching") else set()
        try:
            self._say("Starting the broker and Triton")
            with BenchSite(self._repository, sorted(sizes), self._settings) as site:
                self.report = Report(describe(site), self._plan)
                with Driver(site.broker.host, site.broker.port, ANSWER_TOPICS) as driver:
                    self._steps(site, driver, started, advance)
        except KeyboardInterrupt:
            if self.report is None:
                raise
            self.report.interrupted = True
            self._say("Stopped; here is what there is")
        assert self.report is not None
        self.report.seconds = time.monotonic() - started
        self.report.frames = self._frames.sets()
        self.report.targets = targets(self.report)

    def _steps(self, site: BenchSite, driver: Driver, started: float, advance: Advance) -> None:
        closed = Closed(site, driver, self._frames, self._plan)
        steps = [
            *self._throughput(site, closed),
            *self._latency(site, closed, driver),
            *self._triton(site),
            *self._decoder(site),
            *self._own_gateways(site, closed, driver),
        ]
        try:
            for number, (name, step) in enumerate(steps, start=1):
                self._say(f"[{time.monotonic() - started:5.1f} s] {number}/{len(steps)} {name}")
                advance((number - 1) / len(steps))
                try:
                    step()
                except StackError as error:
                    self._say(str(error))
                    self._found().failed.append(name)
        finally:
            closed.close()

    def _found(self) -> Report:
        assert self.report is not None
        return self.report

    def _can(self, site: BenchSite, case: Case, what: str) -> bool:
        if case.size in site.models:
            return True
        self._found().not_measured.append(f"{what}: there is no {SAMPLE} in {self._repository}")
        return False

    def _throughput(self, site: BenchSite, closed: Closed) -> Iterator[Step]:
        if not (self._plan.has("gateway") or self._plan.has("script")):
            return
        cases = [case for case in self._plan.cases if self._can(site, case, f"throughput, {case}")]
        for case in sorted(cases, key=lambda case: case.workers):

            def step(case: Case = case) -> None:
                self._found().throughput.append(closed.measure(case))

            yield f"throughput: {case}", step

    def _latency(self, site: BenchSite, closed: Closed, driver: Driver) -> Iterator[Step]:
        plan, seconds = self._plan, LONGER * self._plan.seconds
        rates = dict.fromkeys((plan.rate, LOADED_RATE) if plan.rate == OWN_RATE else (plan.rate,))
        cases = [(replace(BASE, cameras=1), rate) for rate in rates]
        if SAMPLE_SIZE in {case.size for case in plan.cases} & site.models.keys():
            cases.append((replace(BASE, size=SAMPLE_SIZE, cameras=1), plan.rate))

        def step(name: Part, case: Case, rate: float) -> None:
            contender = closed.gateway() if name == "gateway" else site.start_script(case)
            try:
                run = open_loop.measure(closed, driver, case, contender, name, rate=rate, seconds=seconds)
            finally:
                if name == "script":
                    contender.stop()
            self._found().open_loop.append(run)

        if plan.has("latency"):
            for case, rate in cases:
                for name in [name for name in CONTESTANTS if plan.has(name)] or CONTESTANTS:
                    yield f"latency at {rate:g}/s, {name}: {case}", partial(step, name, case, rate)
        if plan.has("dual"):
            yield f"dual against single at {DUAL_RATE:g}/s", lambda: self._dual(closed, driver)
        if plan.has("start"):
            yield "start to ready", lambda: self._start(site)

    def _dual(self, closed: Closed, driver: Driver) -> None:
        self._found().dual = open_loop.dual_against_single(
            closed,
            driver,
            BASE,
            closed.gateway(),
            rate=DUAL_RATE,
            seconds=self._plan.seconds,
            pairs=self._plan.pairs,
        )

    def _start(self, site: BenchSite) -> None:
        taken, then = [], []
        for _ in range(STARTS):
            started = time.monotonic()
            gateway = site.start_gateway()
            taken.append(time.monotonic() - started)
            then.append(memory(gateway.pid))
            gateway.stop()
        self._found().start = Start(Spread.of(taken), max(then, key=lambda one: one.peak))

    def _triton(self, site: BenchSite) -> Iterator[Step]:
        if not self._plan.has("triton"):
            return
        for size in sorted({case.size for case in self._plan.cases} & site.models.keys()):
            for transport in TRANSPORTS:

                def step(size: int = size, transport: str = transport) -> None:
                    model, seconds = site.models[size], self._plan.seconds / 3
                    found = search(site.triton.grpc_url, site.triton.pid, model, transport, seconds)
                    self._found().triton.append(found)

                yield f"Triton alone, {site.models[size].name}, {transport}", step

    def _decoder(self, site: BenchSite) -> Iterator[Step]:
        if not self._plan.has("decoder"):
            return
        for size, resolution in sorted({(case.size, case.resolution) for case in self._plan.cases}):
            if size in site.models:

                def step(size: int = size, resolution: str = resolution) -> None:
                    model = site.models[size]
                    wanted = decoder.wanted(RESOLUTIONS[resolution], model.width, model.height)
                    row = decoder.measure(resolution, size, self._frames.jpegs(resolution), wanted)
                    self._found().decoder.append(row)

                yield f"decoding alone, {resolution} to {site.models[size].width}", step

    def _own_gateways(self, site: BenchSite, closed: Closed, driver: Driver) -> Iterator[Step]:
        """These start gateways of their own: the one of the closed loops ends before."""
        plan = self._plan
        if {"memory", "pinned", "batching"} & set(plan.parts):
            yield "the gateway of the closed loops ends", closed.close
        if plan.has("memory"):
            for size in sorted({case.size for case in plan.cases} & site.models.keys()):
                case = replace(BASE, size=size)
                yield f"memory: {case}", partial(self._memory, site, closed, driver, case)
        asked: Sequence[str] = [part for part in ("pinned", "batching") if part in plan.parts]
        if asked and self._can(site, Case(size=SAMPLE_SIZE), ", ".join(asked)):
            if "pinned" in asked:
                yield from self._pinned(site, closed, driver)
            for dynamic in (True, False) if "batching" in asked else ():

                def step(dynamic: bool = dynamic) -> None:
                    found = sample_model.batching(site, closed, driver, plan, dynamic=dynamic)
                    self._found().batching.append(found)

                yield f"50 cameras, dynamic batching {'on' if dynamic else 'off'}", step
        if plan.has("accuracy"):
            yield "accuracy of scaled decoding", self._accuracy

    def _pinned(self, site: BenchSite, closed: Closed, driver: Driver) -> Iterator[Step]:
        several = len(os.sched_getaffinity(0)) > 1
        if not several:
            self._found().not_measured.append("gateway and Triton on a core each: there is one core only")
        for placement in sample_model.PLACEMENTS if several else (sample_model.UNPINNED,):

            def step(placement: sample_model.Placement = placement) -> None:
                self._found().pinned.append(sample_model.pinned(site, closed, driver, self._plan, placement))

            yield f"sample model behind the gateway and alone: {placement.name}", step

    def _memory(self, site: BenchSite, closed: Closed, driver: Driver, case: Case) -> None:
        gateway, seconds = site.start_gateway(), LONGER * self._plan.seconds
        try:
            done = driver.closed_loop(closed.feed(case, gateway).make, seconds, case.window, least=case.window)
            self._found().memory.append(Steady(case, done.seconds, len(done.answered), memory(gateway.pid)))
        finally:
            gateway.stop()

    def _accuracy(self) -> None:
        try:
            self._found().accuracy = accuracy.compare()
        except accuracy.NotMeasured as reason:
            self._found().not_measured.append(f"accuracy: {reason}")
