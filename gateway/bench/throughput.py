"""Closed loops: the gateway and the script in turn (A B A B), with the CPU of every process involved."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from gateway.bench import decoder
from gateway.bench.driver import Driver, Round
from gateway.bench.frames import RESOLUTIONS, Feed, Frames
from gateway.bench.plan import Case, Plan
from gateway.bench.records import Contestant, Memory, Spread, Throughput
from gateway.bench.site import BenchSite, Contender
from gateway.bench.triton_alone import COUNTS, read_counts
from gateway.bench.usage import Usage, memory

OTHERS = ("triton", "broker", "driver")


@dataclass(slots=True)
class Tally:
    """What one contestant did in all its turns."""

    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    others: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: Memory = field(default_factory=Memory)
    snapshots: int = 0
    errors: int = 0
    unanswered: int = 0

    def add(self, done: Round, spent: dict[str, float], memory: Memory) -> None:
        """One turn."""
        self.rates.append(done.rate)
        self.cpu_ms.append(spent["itself"])
        for name in OTHERS:
            self.others[name].append(spent[name])
        self.memory = memory
        self.snapshots += len(done.due)
        self.errors += done.errors
        self.unanswered += done.unanswered

    def contestant(self) -> Contestant:
        """Its figures."""
        others = {name: statistics.median(values) for name, values in self.others.items()}
        rate, cpu = Spread.of(self.rates), Spread.of(self.cpu_ms)
        return Contestant(rate, cpu, others, self.memory, self.snapshots, self.errors, self.unanswered)


class Closed:
    """Measures cases; the gateways that it starts are kept for the next case, one for each number of workers."""

    def __init__(self, site: BenchSite, driver: Driver, frames: Frames, plan: Plan) -> None:
        self._site = site
        self._driver = driver
        self._frames = frames
        self._plan = plan
        self._gateways: dict[int, Contender] = {}

    def gateway(self, workers: int = 1) -> Contender:
        """A running gateway with so many processes; only one runs at a time."""
        if workers not in self._gateways:
            self.close()
            self._gateways[workers] = self._site.start_gateway(WORKERS=str(workers))
        return self._gateways[workers]

    def close(self) -> None:
        """End the gateways."""
        while self._gateways:
            self._gateways.popitem()[1].stop()

    def measure(self, case: Case) -> Throughput:
        """Both contestants in turn, as many times as the plan says, as far as they are in it."""
        tallies: dict[str, Tally] = {}
        decoded: list[tuple[float, float]] = []
        with contextlib.ExitStack() as stack:
            contenders = {}
            if self._plan.has("gateway"):
                contenders["gateway"] = self.gateway(case.workers)
            if self._plan.has("script"):
                contenders["script"] = self._site.start_script(case)
                stack.callback(contenders["script"].stop)
            for name, contender in contenders.items():
                tallies[name] = Tally()
                self._warm(case, contender)
            for _ in range(self._plan.pairs):
                for name, contender in contenders.items():
                    self.turn(case, contender, tallies[name])
                if self._plan.has("decoder"):
                    decoded.append(self._decoding(case))
        return _row(case, tallies, decoded)

    def _decoding(self, case: Case) -> tuple[float, float]:
        """To the smallest sufficient size, and to the gateway's."""
        model, jpegs = self._site.models[case.size], self._frames.jpegs(case.resolution)
        wanted = decoder.wanted(RESOLUTIONS[case.resolution], model.width, model.height)
        return decoder.scaled_ms(jpegs, wanted.smallest), decoder.scaled_ms(jpegs, wanted.gateway)

    def feed(self, case: Case, contender: Contender) -> Feed:
        """The snapshots of this case for this contender."""
        return Feed(case, self._frames, contender.topic, self._site.models[case.size].name)

    def _warm(self, case: Case, contender: Contender) -> None:
        feed = self.feed(case, contender)
        self._driver.closed_loop(feed.make, 0.0, case.window, least=case.window)

    def turn(self, case: Case, contender: Contender, tally: Tally) -> Round:
        """One closed loop of one contestant."""
        pids = {"itself": contender.pid, **self.others}
        feed = self.feed(case, contender)
        before = Usage.read(pids)
        done = self._driver.closed_loop(feed.make, self._plan.seconds, case.window, least=case.window)
        spent = Usage.read(pids).since(before, len(done.answered))
        tally.add(done, spent, memory(contender.pid))
        return done

    def inferences(self) -> float:
        """How many Triton has counted so far."""
        return read_counts(self._site.triton.metrics_url)[COUNTS[0]]

    @property
    def others(self) -> dict[str, int]:
        """The processes beside the contestant."""
        return {"triton": self._site.triton.pid, "broker": self._site.broker.pid, "driver": os.getpid()}


def _row(case: Case, tallies: dict[str, Tally], decoded: list[tuple[float, float]]) -> Throughput:
    ratio = None
    if len(tallies) == len(("gateway", "script")):
        pairs = zip(tallies["gateway"].rates, tallies["script"].rates, strict=True)
        ratio = Spread.of([gateway / script for gateway, script in pairs])
    contestants = {name: tally.contestant() for name, tally in tallies.items()}
    smallest, gateway = (statistics.median(times) for times in zip(*decoded, strict=True)) if decoded else (None, None)
    cpu_ms = contestants["gateway"].cpu_ms.median if "gateway" in contestants else None
    over = [cpu_ms / alone if cpu_ms and alone else None for alone in (smallest, gateway)]
    return Throughput(case, contestants, ratio, smallest, gateway, *over)
