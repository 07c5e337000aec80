"""The figures to reach, beside what this run has measured. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway.bench.plan import BASE, SAMPLE_SIZE, Case
from gateway.bench.records import Contestant, Memory, OpenLoop, Report, Target, Throughput

MB_LIMIT = 150.0
OWN_RATE = 5.0
"""Snapshots a second at which the gateway's own share of the latency is judged."""


def targets(report: Report) -> list[Target]:
    """One row for each figure."""
    return [
        _ratio(report, 224, 9.0),
        _ratio(report, 640, 8.0),
        *_over_decode(report, 224, 1.6),
        *_over_decode(report, 640, 1.6),
        _decoders_share(report),
        *_own_share(report),
        _dual(report),
        _memory(report),
        _start(report),
        _cameras(report),
        _pinned(report),
        _sample_rate(report),
        _end_to_end(report),
        _accuracy(report),
    ]


def _target(
    what: str, target: str, value: float | None, show: Callable[[float], str], reached: Callable[[float], bool]
) -> Target:
    if value is None:
        return Target(what, target, "", None)
    return Target(what, target, show(value), reached(value))


def _case(report: Report, case: Case) -> Throughput | None:
    return next((row for row in report.throughput if row.case == case), None)


def _gateway(report: Report, case: Case) -> Contestant | None:
    row = _case(report, case)
    return row.contestants.get("gateway") if row else None


def _ratio(report: Report, size: int, least: float) -> Target:
    row = _case(report, replace(BASE, size=size))
    value = row.ratio.median if row and row.ratio else None
    what = f"throughput over the script's, 1080p to {size}"
    return _target(what, f">= {least:g}x", value, lambda x: f"{x:.1f}x", lambda x: x >= least)


def _over_decode(report: Report, size: int, most: float) -> Sequence[Target]:
    row = _case(report, replace(BASE, size=size))
    what = f"CPU a snapshot over decoding alone, 1080p to {size}"
    over = {
        "to the smallest sufficient size": row.cpu_over_decode if row else None,
        "to the size that the gateway decodes to": row.cpu_over_gateway_decode if row else None,
    }
    return [
        _target(f"{what}, {to}", f"<= {most:g}x", value, lambda x: f"{x:.2f}x", lambda x: x <= most)
        for to, value in over.items()
    ]


def _decoders_share(report: Report) -> Target:
    row = _case(report, replace(BASE, size=640))
    value = 1 / row.cpu_over_decode if row and row.cpu_over_decode else None
    what = "decoding's share of the gateway's CPU, 1080p to 640"
    return _target(what, ">= 60 %", value, lambda x: f"{x:.0%}", lambda x: x >= 0.6)


def _own_share(report: Report) -> Sequence[Target]:
    run = _open(report, lambda run: run.rate == OWN_RATE and run.case.cameras == 1 and run.case.size == BASE.size)
    own = run.own_percentiles if run else None
    what = f"all but Triton, 1 camera at {OWN_RATE:g}/s, 1080p to 224"
    limits = (("p50", 6.0), ("p99", 15.0))

    def row(name: str, most: float) -> Target:
        value = own[name] if own else None
        return _target(f"{what}, {name}", f"<= {most:g} ms", value, lambda x: f"{x:.1f} ms", lambda x: x <= most)

    return [row(name, most) for name, most in limits]


def _open(report: Report, fits: Callable[[OpenLoop], bool]) -> OpenLoop | None:
    return next((run for run in report.open_loop if run.contestant == "gateway" and fits(run)), None)


def _dual(report: Report) -> Target:
    value = report.dual.added.median if report.dual else None
    what = "dual over single at the same rate, the gateway's added CPU"
    return _target(what, "<= 30 %", value, lambda x: f"{x:+.0%}", lambda x: x <= 0.3)


def _memory(report: Report) -> Target:
    gateways = (row.contestants.get("gateway") for row in report.throughput if row.case.workers == 1)
    held = [gateway.memory for gateway in gateways if gateway] + [row.memory for row in report.memory]
    highest = max(held, key=lambda memory: memory.peak, default=Memory())
    what = "resident memory with its shared memory, peak of the closed loops of this run (an hour: make soak)"
    shared = f", {highest.shared:.0f} MB of it shared in the end"
    value = highest.peak if held else None
    return _target(what, f"<= {MB_LIMIT:g} MB", value, lambda x: f"{x:.0f} MB{shared}", lambda x: x <= MB_LIMIT)


def _start(report: Report) -> Target:
    value = report.start.seconds.median if report.start else None
    return _target("start to ready, Triton up", "<= 2 s", value, lambda x: f"{x:.2f} s", lambda x: x <= 2)


def _cameras(report: Report) -> Target:
    one, many = (_gateway(report, replace(BASE, cameras=cameras)) for cameras in (1, 200))
    value = many.rate.median / one.rate.median - 1 if one and many else None
    what = "200 cameras against 1, throughput"
    return _target(what, ">= -5 %", value, lambda x: f"{x:+.1%}", lambda x: x >= -0.05)


def _pinned(report: Report) -> Target:
    run = next((run for run in report.pinned if run.apart), None)
    what = "sample model, gateway and Triton on a core each: throughput over Triton's alone"
    return _target(what, ">= 95 %", run.share.median if run else None, lambda x: f"{x:.1%}", lambda x: x >= 0.95)


def _sample_rate(report: Report) -> Target:
    gateway = _gateway(report, replace(BASE, size=SAMPLE_SIZE))
    value = gateway.rate.median if gateway else None
    return _target("sample model, throughput", ">= 6.4/s", value, lambda x: f"{x:.1f}/s", lambda x: x >= 6.4)


def _end_to_end(report: Report) -> Target:
    run = _open(report, lambda run: run.case.size == SAMPLE_SIZE)
    value = run.percentiles["p95"] if run else None
    what = "sample model, end to end in an open loop, p95"
    return _target(what, "< 250 ms", value, lambda x: f"{x:.0f} ms", lambda x: x < 250)


def _accuracy(report: Report) -> Target:
    value = report.accuracy.largest_difference if report.accuracy else None
    what = "mAP with scaled decoding against full decoding"
    return _target(what, "within 0.002", value, lambda x: f"{x:.4f}", lambda x: x <= 0.002)
