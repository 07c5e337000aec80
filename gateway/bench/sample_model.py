"""The sample model as a whole: the gateway beside Triton alone, each on a core of its own, and dynamic batching.

The snapshots of the pinned rows are raw JPEGs that are drawn beforehand, so that driver and broker take next to nothing
of the cores that they share with the gateway.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.bench.driver import Driver
from gateway.bench.plan import SAMPLE_SIZE, Case, Plan
from gateway.bench.records import Batching, Pinned, Spread
from gateway.bench.site import BenchSite, Contender
from gateway.bench.throughput import Closed
from gateway.bench.triton_alone import COUNTS, connected, read_counts, search
from gateway.bench.usage import Usage, pin


@dataclass(frozen=True, slots=True)
class Placement:
    """Who runs on which cores, each as indices into those that there are; empty: all of them."""

    name: str
    triton: tuple[int, ...] = ()
    gateway: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    """The broker and the driver, which is also the client of Triton alone."""
    apart: bool = False


UNPINNED = Placement("all unpinned")
PLACEMENTS = (
    Placement("Triton on one core; gateway, broker and driver on another", (0,), (1,), (1,), apart=True),
    Placement("Triton on one core, the gateway on another; broker and driver unpinned", (0,), (1,)),
    Placement("Triton, broker and driver on one core, the gateway on another", (0,), (1,), (0,)),
    UNPINNED,
)

CASE = Case(size=SAMPLE_SIZE, payload="raw")
FIFTY = Case(size=SAMPLE_SIZE, cameras=50)
BATCHING_IN_FLIGHT = "16"
"""Twice the largest batch: one waits while the other is executed."""
BATCHING_QUEUE_BYTES = str(32 * 2**20)
"""One waiting snapshot of each camera; with the usual 8 MiB most of them would be refused."""
_DELAY = re.compile(r"max_queue_delay_microseconds:\s*(\d+)")
_BATCHING = re.compile(r"dynamic_batching\s*\{[^{}]*\}")


def pinned(site: BenchSite, closed: Closed, driver: Driver, plan: Plan, placement: Placement) -> Pinned:
    """Gateway and Triton alone in turn."""
    model = site.models[SAMPLE_SIZE]
    rates: dict[str, list[float]] = {"gateway": [], "triton": []}
    spent: dict[str, list[Mapping[str, float]]] = {"gateway": [], "triton": []}
    busy: dict[str, list[Mapping[str, float]]] = {"gateway": [], "triton": []}
    cores = sorted(os.sched_getaffinity(0))
    with _on(site, placement, cores), _gateway(site, [cores[index] for index in placement.gateway] or cores) as gateway:
        feed = closed.feed(CASE, gateway)
        driver.closed_loop(feed.make, 0.0, CASE.window, least=CASE.window)
        best = search(site.triton.grpc_url, site.triton.pid, model, "shared-memory", plan.seconds / 3)
        pids = {"gateway": gateway.pid, **closed.others}
        for _ in range(plan.pairs):
            before = Usage.read(pids)
            done = driver.closed_loop(feed.make, plan.seconds, CASE.window)
            used = {"gateway": (Usage.read(pids), before, len(done.answered))}
            rates["gateway"].append(done.rate)
            with connected(site.triton.grpc_url, model, best.transport) as client:
                before = Usage.read(pids)
                rate, answered = client.rate(best.best_concurrency, plan.seconds)
                used["triton"] = (Usage.read(pids), before, answered)
            rates["triton"].append(rate)
            for name, (now, earlier, answers) in used.items():
                spent[name].append(now.since(earlier, answers))
                busy[name].append(now.busy(earlier))
    share = Spread.of([one / other for one, other in zip(rates["gateway"], rates["triton"], strict=True)])
    behind, alone = (_medians(spent[name])["triton"] for name in ("gateway", "triton"))
    return Pinned(
        placement.name,
        placement.apart,
        Spread.of(rates["gateway"]),
        Spread.of(rates["triton"]),
        share,
        behind,
        alone,
        _medians(busy["gateway"]),
        _medians(busy["triton"])["triton"],
    )


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def batching(site: BenchSite, closed: Closed, driver: Driver, plan: Plan, *, dynamic: bool) -> Batching:
    """50 cameras; `dynamic` leaves the model's configuration as it is, else its dynamic batching is taken out."""
    config = site.triton.repository / site.models[SAMPLE_SIZE].variants["onnx"] / "config.pbtxt"
    before = config.read_text()
    delay = _DELAY.search(before)
    in_flight = site.settings.get("MAX_IN_FLIGHT", BATCHING_IN_FLIGHT)
    try:
        if not dynamic:
            config.write_text(_BATCHING.sub("", before))
        site.reload(SAMPLE_SIZE)
        with _gateway(site, (), MAX_IN_FLIGHT=in_flight, QUEUE_MAX_BYTES=BATCHING_QUEUE_BYTES) as gateway:
            rates, batches, triton, failed = _fifty_cameras(site, closed, driver, plan, gateway)
    finally:
        config.write_text(before)
        site.reload(SAMPLE_SIZE)
    microseconds = int(delay[1]) if dynamic and delay else None
    return Batching(
        dynamic,
        microseconds,
        in_flight,
        Spread.of(rates),
        statistics.median(batches),
        statistics.median(triton),
        failed,
    )


def _fifty_cameras(
    site: BenchSite, closed: Closed, driver: Driver, plan: Plan, gateway: Contender
) -> tuple[list[float], list[float], list[float], int]:
    feed, window = closed.feed(FIFTY, gateway), FIFTY.cameras
    driver.closed_loop(feed.make, 0.0, window, least=window)
    rates, batches, triton, failed = [], [], [], 0
    pids = {"triton": site.triton.pid}
    for _ in range(plan.pairs):
        counts, used = read_counts(site.triton.metrics_url), Usage.read(pids)
        done = driver.closed_loop(feed.make, plan.seconds, window)
        now = read_counts(site.triton.metrics_url)
        rates.append(done.rate)
        triton.append(Usage.read(pids).since(used, len(done.answered) - done.errors)["triton"])
        failed += done.errors
        asked, executed = (now[name] - counts[name] for name in COUNTS)
        batches.append(asked / max(1.0, executed))
    return rates, batches, triton, failed


@contextlib.contextmanager
def _gateway(site: BenchSite, cores: Sequence[int], **settings: str) -> Iterator[Contender]:
    gateway = site.start_gateway(cores=cores, **settings)
    try:
        yield gateway
    finally:
        gateway.stop()


@contextlib.contextmanager
def _on(site: BenchSite, placement: Placement, cores: Sequence[int]) -> Iterator[None]:
    """Triton on some of these cores; the broker and this process on others; as before afterwards."""
    triton, others = ([cores[index] for index in part] or cores for part in (placement.triton, placement.others))
    _pin_all(site, triton, others)
    try:
        yield
    finally:
        _pin_all(site, cores, cores)


def _pin_all(site: BenchSite, triton_cores: Sequence[int], other_cores: Sequence[int]) -> None:
    pin(site.triton.pid, triton_cores)
    pin(site.broker.pid, other_cores)
    pin(os.getpid(), other_cores)
