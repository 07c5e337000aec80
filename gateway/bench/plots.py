"""Plots of a report, as SVG files without scripts and without anything from elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.bench.plan import BASE, SAMPLE_SIZE, Case
from gateway.bench.records import Report

WIDTH, HEIGHT = 900, 480
FRAME_HEIGHT, ROW_HEIGHT = 150, 34
"""Of lying bars: title, axis and legend, and each row."""
TEXT, GUIDE = "#222222", "#dddddd"
COLOURS = ("#1f5fa8", "#e07b20", "#2e8b57", "#a03060", "#6a51a3", "#8c6d31")


def draw(report: Report, folder: Path) -> list[Path]:
    """Write a file for each plot that there is something for; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "throughput": _throughput(report),
        "cpu": _cpu(report),
        "latency": _latency(report),
        "cameras": _cameras(report),
    }
    written = []
    for name, chart in made.items():
        if chart is not None:
            path = folder / f"{name}.svg"
            path.write_bytes(chart.render())
            written.append(path)
    return written


def _import_pygal() -> Any:
    """pygal adds a finder of its own for maps, without `find_spec`, which Python warns of at every later import."""
    finders = [*sys.meta_path]
    import pygal

    sys.meta_path[:] = finders
    return pygal


def _chart(kind: str, title: str, *, height: int = HEIGHT, **more: Any) -> Any:
    """An empty chart of a class of pygal's."""
    pygal = _import_pygal()
    style = pygal.style.Style(
        font_family="sans-serif",
        background="white",
        plot_background="white",
        foreground=TEXT,
        foreground_strong=TEXT,
        foreground_subtle=TEXT,
        guide_stroke_color=GUIDE,
        major_guide_stroke_color=GUIDE,
        guide_stroke_dasharray="1,0",
        major_guide_stroke_dasharray="1,0",
        opacity="1",
        colors=COLOURS,
        label_font_size=12,
        major_label_font_size=12,
    )
    return getattr(pygal, kind)(
        title=title,
        style=style,
        js=(),
        width=WIDTH,
        height=height,
        legend_at_bottom=True,
        truncate_label=-1,
        truncate_legend=-1,
        pretty_print=False,
        **more,
    )


def _bars(kind: str, title: str, labels: Sequence[str]) -> Any:
    """Lying bars, the first on top: their labels are long."""
    chart = _chart(kind, title, height=FRAME_HEIGHT + ROW_HEIGHT * len(labels))
    chart.x_labels = [*reversed(labels)]
    return chart


def _short(case: Case) -> str:
    """Model, picture, and whatever else is not as usual."""
    parts = [case.model if case.size == SAMPLE_SIZE else f"stub {case.size}", case.resolution]
    for name, text in (
        ("payload", case.payload),
        ("mode", case.mode),
        ("cameras", f"{case.cameras} camera{'s' if case.cameras > 1 else ''}"),
    ):
        parts += [text] if getattr(case, name) != getattr(BASE, name) else []
    return ", ".join([*parts, *([f"{case.workers} workers"] if case.workers > 1 else [])])


def _throughput(report: Report) -> Any:
    rows = report.throughput
    if not rows:
        return None
    chart = _bars(
        "HorizontalBar", "Throughput in a closed loop, snapshots a second", [_short(row.case) for row in rows]
    )
    for name in ("gateway", "script"):
        rates = [row.contestants[name].rate.median if name in row.contestants else None for row in reversed(rows)]
        if any(rates):
            chart.add(name, rates)
    return chart


def _cpu(report: Report) -> Any:
    rows = [row for row in report.throughput if "gateway" in row.contestants and row.decode_ms]
    if not rows:
        return None
    title = "CPU of the gateway for a snapshot, milliseconds"
    chart = _bars("HorizontalStackedBar", title, [_short(row.case) for row in rows])
    rows.reverse()
    whole = [row.contestants["gateway"].cpu_ms.median for row in rows]
    decoding = [min(row.decode_ms or 0.0, cpu) for row, cpu in zip(rows, whole, strict=True)]
    chart.add("decoding alone", decoding)
    chart.add("everything else", [cpu - part for cpu, part in zip(whole, decoding, strict=True)])
    return chart


def _latency(report: Report) -> Any:
    if not report.open_loop:
        return None
    # Each further step to the right is ten times rarer: 90 %, 99 %, 99.9 %.
    shares = [share for share, _ in report.open_loop[0].curve]
    chart = _chart(
        "Line", "Latency in an open loop, milliseconds", logarithmic=True, x_title="percentile", y_title="ms"
    )
    chart.x_labels = [f"{share:g}" for share in shares]
    highest = max(latency for run in report.open_loop for _, latency in run.curve)
    steps = [step * 10.0**power for power in range(-2, 6) for step in (1, 2, 5)]
    lowest = min(max(latency, 0.01) for run in report.open_loop for _, latency in run.curve)
    chart.y_labels = [step for step in steps if lowest / 2.5 < step < highest * 2.5]
    chart.value_formatter = "{:g}".format
    for run in report.open_loop:
        values = [max(latency, 0.01) for _, latency in run.curve]
        case = replace(run.case, cameras=BASE.cameras)  # one camera in all of them
        chart.add(f"{run.contestant}, {run.rate:g}/s, {_short(case)}", values)
    return chart


def _cameras(report: Report) -> Any:
    found: dict[Case, dict[int, float]] = {}
    for row in report.throughput:
        case = row.case
        if "gateway" in row.contestants:
            found.setdefault(replace(case, cameras=BASE.cameras), {})[case.cameras] = row.contestants[
                "gateway"
            ].rate.median
    several = {like: rates for like, rates in found.items() if len(rates) > 1}
    if not several:
        return None
    counts = sorted({cameras for rates in several.values() for cameras in rates})
    title = "Throughput by the number of cameras, snapshots a second"
    chart = _chart("Bar", title, x_title="cameras", y_title="snapshots a second", include_x_axis=True)
    chart.x_labels = [str(count) for count in counts]
    for like, rates in several.items():
        chart.add(_short(like), [rates.get(count) for count in counts])
    return chart
