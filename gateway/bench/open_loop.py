"""Open loops: latency at a fixed rate, whatever becomes of the snapshots before; and dual beside single."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from gateway.bench.driver import Driver, Round
from gateway.bench.latency import Latencies
from gateway.bench.plan import Case
from gateway.bench.records import Dual, OpenLoop, Spread
from gateway.bench.site import Contender
from gateway.bench.throughput import Closed
from gateway.bench.usage import Usage


class _Metadata(msgspec.Struct):
    timings_ms: dict[str, float]


class _Result(msgspec.Struct):
    metadata: _Metadata


def measure(
    closed: Closed, driver: Driver, case: Case, contender: Contender, name: str, *, rate: float, seconds: float
) -> OpenLoop:
    """One contestant at this rate."""
    done, spent = _run(closed, driver, case, contender, rate, seconds)
    latencies = Latencies(done.milliseconds())
    own = own_share(done.bodies) if name == "gateway" else None
    return OpenLoop(
        name,
        case,
        rate,
        len(done.due),
        done.errors,
        latencies.percentiles(),
        latencies.curve(),
        None if own is None else own.percentiles(),
        spent["itself"],
    )


def own_share(bodies: Sequence[bytes]) -> Latencies:
    """What of each result's time was not Triton's; answers without timings, which are errors, are left out."""
    own = Latencies()
    for body in bodies:
        try:
            timings = msgspec.json.decode(body, type=_Result).metadata.timings_ms
        except msgspec.DecodeError:
            continue
        own.add(timings["total"] - timings["infer"])
    return own


def dual_against_single(
    closed: Closed, driver: Driver, case: Case, contender: Contender, *, rate: float, seconds: float, pairs: int
) -> Dual:
    """The same rate for one variant and for both, in turn."""
    spent: dict[str, list[Mapping[str, float]]] = {"single": [], "dual": []}
    asked: dict[str, list[float]] = {"single": [], "dual": []}
    for _ in range(pairs):
        for mode, runs in spent.items():
            before = closed.inferences()
            done, used = _run(closed, driver, replace(case, mode=mode), contender, rate, seconds)
            runs.append(used)
            asked[mode].append((closed.inferences() - before) / len(done.due))
    single, dual = ([run["itself"] for run in spent[mode]] for mode in ("single", "dual"))
    added = Spread.of([more / less - 1 for less, more in zip(single, dual, strict=True)])
    triton = {mode: statistics.median(run["triton"] for run in runs) for mode, runs in spent.items()}
    return Dual(
        case,
        rate,
        gateway_single_ms=Spread.of(single),
        gateway_dual_ms=Spread.of(dual),
        triton_single_ms=triton["single"],
        triton_dual_ms=triton["dual"],
        inferences_single=statistics.median(asked["single"]),
        inferences_dual=statistics.median(asked["dual"]),
        added=added,
    )


def _run(
    closed: Closed, driver: Driver, case: Case, contender: Contender, rate: float, seconds: float
) -> tuple[Round, dict[str, float]]:
    pids = {"itself": contender.pid, **closed.others}
    before = Usage.read(pids)
    done = driver.open_loop(closed.feed(case, contender).make, seconds, rate, keep=True)
    return done, Usage.read(pids).since(before, len(done.answered))
