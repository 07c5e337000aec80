"""A run as a table for people, as JSON for programs, and as a picture of its course."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

from tests.chaos.bench import RECOVERY_LIMIT_S, Happened, Report

WIDTH, HEIGHT, MARGIN = 1200, 300, 40
COLOURS = {"sent": "#999999", "result": "#1a7f37", "error": "#cf222e"}
MEMORY_COLOUR = "#0969da"


def table(report: Report) -> str:
    """What a person wants to know, in a terminal."""
    verdict = report.verdict
    gaps = verdict.longest_gap_s
    worst = max(gaps, key=lambda camera: gaps[camera], default="none")
    memory = [sample.rss_mb for sample in report.samples] or [0.0]
    rows = [
        ("seed", report.seed),
        ("snapshots", f"{verdict.snapshots} of {report.cameras} cameras, {report.per_second:g} a second"),
        *((f"  {outcome}", count) for outcome, count in verdict.outcomes.items()),
        ("lost", f"{len(verdict.lost)} ({verdict.not_passed_on} of them never left the broker)"),
        ("duplicates", f"{verdict.duplicates}, with another result_id: {len(verdict.wrong_duplicates)}"),
        ("result and error", f"{verdict.mixed} snapshots have both"),
        ("sent again", f"{verdict.sent_again} that a killed broker may have forgotten"),
        ("longest gap", f"{gaps.get(worst, 0.0):.1f} s ({worst})"),
        ("latency", f"median {report.latency_p50_ms:.0f} ms, 99th percentile {report.latency_p99_ms:.0f} ms"),
        ("gateway", f"started {report.starts} times, ended by itself {len(report.unexpected_exits)} times"),
        ("Triton", f"crashed {len(report.triton_crashes)} times by itself, which is not the gateway's doing"),
        ("gateway counted", f"{report.received} received, {report.settled} outcomes since its last start"),
        ("gateway memory", f"{min(memory):.0f} to {max(memory):.0f} MB resident"),
        ("disk", report.disk),
    ]
    lines = ["", *(f"{name:20}{value}" for name, value in rows), "", "fault                   at    length  recovery"]
    for fault in report.faults:
        took = "never" if fault.recovery_s is None else f"{fault.recovery_s:.2f} s"
        took += f", {fault.loading_s:.2f} s of it Triton's loads" if fault.loading_s else ""
        mark = "  TOO LONG" if fault.own_recovery_s > RECOVERY_LIMIT_S else ""
        length = fault.ended_s - fault.began_s
        lines.append(f"{fault.kind:22}{fault.began_s:6.1f} s {length:6.1f} s  {took}{mark}")
    lines += ["", *(f"FAILED: {text}" for text in report.failures)]
    return "\n".join(lines if report.failures else [*lines, "All promises were kept."])


def write(report: Report, folder: Path, log: Path) -> None:
    """report.json, timeline.html and gateway.log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.as_dict(), indent=1, default=str))
    (folder / "timeline.html").write_text(timeline(report))
    if log.exists():
        shutil.copyfile(log, folder / "gateway.log")


def timeline(report: Report) -> str:
    """A page with snapshots, answers and memory by the second, and the faults behind them."""
    last = max(report.by_second, default=1)
    most = max((max(counts.values()) for counts in report.by_second.values()), default=1)
    across = (WIDTH - 2 * MARGIN) / max(1, last)
    curves = "".join(
        _curve([(second, counts.get(name, 0) / most) for second, counts in report.by_second.items()], across, colour)
        for name, colour in COLOURS.items()
    )
    highest = max((sample.rss_mb for sample in report.samples), default=1.0)
    curves += _curve([(sample.at, sample.rss_mb / highest) for sample in report.samples], across, MEMORY_COLOUR)
    bars = "".join(_bar(number, fault, across) for number, fault in enumerate(report.faults))
    names = ", ".join(f'<b style="color:{colour}">{name}</b>' for name, colour in COLOURS.items())
    memory = f'<b style="color:{MEMORY_COLOUR}">resident memory</b>, up to {highest:.0f} MB'
    return (
        f"<!doctype html><meta charset=utf-8><title>Chaos, seed {report.seed}</title>"
        f"<p>By the second, up to {most}: {names}; {memory}.</p>"
        f"<svg width={WIDTH} height={HEIGHT}>{bars}{curves}</svg><pre>{html.escape(table(report))}</pre>"
    )


def _bar(number: int, fault: Happened, across: float) -> str:
    x, width = MARGIN + fault.began_s * across, max(2.0, (fault.ended_s - fault.began_s) * across)
    return (
        f'<rect x="{x:.1f}" y="{MARGIN}" width="{width:.1f}" height="{HEIGHT - 2 * MARGIN}" fill="#ffd8a8"/>'
        f'<text x="{x:.1f}" y="{MARGIN - 6 - 12 * (number % 3)}" font-size="9">{html.escape(fault.kind)}</text>'
    )


def _curve(points: list[tuple[float, float]], across: float, colour: str) -> str:
    height = HEIGHT - 2 * MARGIN
    path = " ".join(f"{MARGIN + x * across:.1f},{MARGIN + height * (1 - y):.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>'
