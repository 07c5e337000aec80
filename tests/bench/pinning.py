"""What pinning brings: own latency beside a neighbour that burns every core. `python -m tests.bench.pinning`.

Own latency is what the gateway adds to Triton's answer: from the arrival of a snapshot to its result, less the time at
Triton, and less the time in the queue, where it waits for Triton as well. Three ways, one after the other in each
round: nothing pinned; the gateway pinned to cores that the neighbour may use too; and the same cores with the
neighbour, the broker and Triton kept off them, as isolated cores are. Pictures come at a fixed rate, whether or not the
one before is answered.

Not a test: it asserts nothing and its figures are those of this machine at this moment.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

from gateway.affinity import allowed_cpus, as_list
from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import REPOSITORY, RealSite

BURN = "while True: pass"
RATES = (5, 50)
FIRST = -10
"""Nice value of the broker and Triton, which are not what is measured: the neighbour must not starve them."""


@dataclass(frozen=True)
class Way:
    """Where the gateway runs, and all others; empty: anywhere."""

    name: str
    gateway: tuple[int, ...]
    others: tuple[int, ...]

    @property
    def settings(self) -> dict[str, str]:
        """As the gateway is told."""
        cpus = as_list(self.gateway)
        return {"LOOP_CPUS": cpus, "DECODER_CPUS": cpus} if cpus else {}


def ways() -> tuple[Way, ...]:
    """The last half of the cores for the gateway."""
    cores = allowed_cpus()
    mine, others = cores[len(cores) // 2 :], cores[: len(cores) // 2]
    return Way("not pinned", (), ()), Way("pinned", mine, ()), Way("isolated", mine, others)


def keep_to(pids: Sequence[int], cpus: tuple[int, ...], *, first: bool = False) -> None:
    """Let processes with all their threads and children run there only, or anywhere; `first` before all others."""
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                for thread in each.threads():
                    os.sched_setaffinity(thread.id, cpus or allowed_cpus())
                    if first:
                        os.setpriority(os.PRIO_PROCESS, thread.id, FIRST)


@contextlib.contextmanager
def neighbour(cpus: tuple[int, ...]) -> Iterator[None]:
    """One process a core of the machine that only burns."""
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in allowed_cpus()]
    try:
        keep_to([each.pid for each in burners], cpus)
        yield
    finally:
        for each in burners:
            each.kill()
            each.wait()


def own_ms(site: RealSite, images: list[bytes], rate: float, seconds: float) -> list[float]:
    """The gateway's share of each answer's time, at a fixed rate."""
    count, already = round(rate * seconds), len(site.results)
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        image = images[number % len(images)]
        site.send(json_snapshot(image, f"camera-{number % 5}", backend_preference="onnx"))
    site.answered(already + count)
    timings = [body["metadata"]["timings_ms"] for body in site.results[already:]]
    return [each["total"] - each["infer"] - each["queued"] for each in timings]


def measure(rounds: int, seconds: float) -> dict[tuple[str, float], list[float]]:
    """All ways and rates, `rounds` times in turn."""
    found: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    images = [frame(seed, 0) for seed in TEST_SEEDS[:4]]
    with EmbeddedBroker() as broker, EmbeddedTriton(REPOSITORY) as triton:
        aside = [each.pid for each in psutil.Process().children()]
        for _ in range(rounds):
            for way in ways():
                keep_to(aside, way.others, first=os.geteuid() == 0)
                with RealSite(broker, triton, LOG_LEVEL="warning", **way.settings) as site:
                    site.start()
                    site.wait_ready()
                    own_ms(site, images, 20, 1.0)
                    with neighbour(way.others):
                        for rate in RATES:
                            found[way.name, rate] += own_ms(site, images, rate, seconds)
    return found


def main() -> None:
    """Print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=20.0, help="for each rate")
    given = arguments.parse_args()
    print(f"{len(allowed_cpus())} cores, {given.rounds} rounds of {given.seconds:g} s; own latency in ms")
    for (name, rate), values in sorted(measure(given.rounds, given.seconds).items(), key=lambda item: item[0][1]):
        cuts = statistics.quantiles(values, n=1000)
        line = f"p50 {cuts[499]:6.1f}  p95 {cuts[949]:6.1f}  p99 {cuts[989]:6.1f}  p99.9 {cuts[998]:6.1f}"
        print(f"{rate:4}/s  {name:12} {line}  ({len(values)} pictures)")


if __name__ == "__main__":
    main()
