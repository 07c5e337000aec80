"""A report as tables, for a terminal or as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.bench.records import Contestant, Memory, Report, Spread


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows below a header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def as_text(report: Report) -> str:
    """For a terminal."""
    return "\n".join([machine_line(report), *(_text(table) for table in tables(report)), *_remarks(report, "  ")])


def as_markdown(report: Report) -> str:
    """For docs/performance.md."""
    return "\n".join([machine_line(report), *(_markdown(table) for table in tables(report)), *_remarks(report, "- ")])


def machine_line(report: Report) -> str:
    """On what it was measured, in a sentence or two."""
    machine = report.machine
    packages = machine["packages"]
    assert isinstance(packages, Mapping)
    versions = ", ".join(f"{name} {found}" for name, found in packages.items())
    load = machine["load_average"]
    assert isinstance(load, Sequence)
    return (
        f"{machine['date']}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, kernel "
        f"{machine['kernel']}, Python {machine['python']}, gateway {machine['gateway']}, {machine['broker']}, "
        f"{versions}. Load before the run: {', '.join(map(str, load))}. Took {report.seconds:.0f} s."
    )


def _remarks(report: Report, bullet: str) -> Iterator[str]:
    if report.interrupted:
        yield "\nThe run was interrupted: what comes after that is missing."
    if report.failed:
        yield "\nFailed:"
        yield from (f"{bullet}{step}" for step in report.failed)
    if report.not_measured:
        yield "\nNot measured:"
        yield from (f"{bullet}{reason}" for reason in report.not_measured)


def tables(report: Report) -> list[Table]:
    """All that have rows."""
    made = (
        _targets(report),
        _frames(report),
        _throughput(report),
        _cpu(report),
        _open_loop(report),
        _triton(report),
        _decoder(report),
        _dual(report),
        _start(report),
        _memory(report),
        _pinned(report),
        _batching(report),
        _accuracy(report),
    )
    return [table for table in made if table.rows]


def _targets(report: Report) -> Table:
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [[row.what, row.target, row.measured or "-", words[row.reached]] for row in report.targets]
    return Table("Figures to reach", ["what", "target", "measured", "reached"], rows)


def _frames(report: Report) -> Table:
    rows = [
        [f"{one.resolution}, {one.width}x{one.height}", str(one.quality), f"{one.mean_kb:.0f}"] for one in report.frames
    ]
    return Table("Frames: JPEGs of drawn scenes", ["resolution", "quality", "mean size, kB"], rows)


def _throughput(report: Report) -> Table:
    rows = []
    for row in report.throughput:
        gateway, script = (row.contestants.get(name) for name in ("gateway", "script"))
        ratio = _spread(row.ratio, 1, "x") if row.ratio else "-"
        over = [f"{one:.2f}x" if one else "-" for one in (row.cpu_over_decode, row.cpu_over_gateway_decode)]
        rows.append([str(row.case), _rate(gateway), _rate(script), ratio, *over])
    header = ["closed loop", "gateway, /s", "script, /s", "gateway over script"]
    header += ["gateway's CPU over decoding to smallest", "to its own size"]
    return Table("Throughput: median (lowest to highest)", header, rows)


def _rate(contestant: Contestant | None) -> str:
    return _spread(contestant.rate, 0) if contestant else "-"


def _spread(spread: Spread, digits: int, unit: str = "") -> str:
    return f"{spread.median:.{digits}f}{unit} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


def _cpu(report: Report) -> Table:
    rows = []
    for row in report.throughput:
        for name, one in row.contestants.items():
            others = [f"{one.others_ms[other]:.2f}" for other in ("triton", "broker", "driver")]
            decode = [f"{ms:.2f}" if ms else "-" for ms in (row.decode_ms, row.gateway_decode_ms)]
            held = [f"{one.memory.resident:.0f}", f"{one.memory.shared:.0f}"]
            failed = f"{one.errors + one.unanswered} of {one.snapshots}"
            rows.append([f"{name}: {row.case}", f"{one.cpu_ms.median:.2f}", *decode, *others, *held, failed])
    header = ["CPU, ms a snapshot", "itself", "decoding to smallest", "to gateway's size", "Triton", "broker", "driver"]
    header += ["resident, MB", "of it shared", "failed"]
    return Table("CPU a snapshot in the closed loops", header, rows)


def _open_loop(report: Report) -> Table:
    rows = []
    for run in report.open_loop:
        own = run.own_percentiles
        shares = [f"{own[name]:.1f}" for name in ("p50", "p99")] if own else ["-", "-"]
        latency = [f"{value:.1f}" for value in run.percentiles.values()]
        rows.append([f"{run.contestant}: {run.case}", f"{run.rate:g}", str(run.snapshots), *latency, *shares])
    header = ["open loop, ms", "rate, /s", "snapshots", "p50", "p95", "p99", "p99.9", "own p50", "own p99"]
    return Table("Latency from the moment each snapshot was due (own: all but Triton)", header, rows)


def _triton(report: Report) -> Table:
    rows = [
        [
            f"{row.model}, {row.transport}",
            f"{row.best_rate:.0f}",
            str(row.best_concurrency),
            f"{row.triton_ms:.2f}",
            f"{row.client_ms:.2f}",
        ]
        for row in report.triton
    ]
    header = ["tritonclient, finished tensor", "best rate, /s", "at concurrency", "Triton CPU, ms", "client CPU, ms"]
    return Table("Triton alone", header, rows)


def _decoder(report: Report) -> Table:
    rows = [
        [
            f"{row.resolution} to {row.width}x{row.height}",
            *(f"{value:.2f}" for value in (row.full_ms, row.smallest_ms, row.gateway_ms)),
        ]
        for row in report.decoder
    ]
    return Table(
        "Decoding alone, CPU ms",
        ["JPEG", "in full", "to the smallest sufficient size", "to the size that the gateway decodes to"],
        rows,
    )


def _dual(report: Report) -> Table:
    rows = []
    if row := report.dual:
        single, dual = (_spread(cpu, 2) for cpu in (row.gateway_single_ms, row.gateway_dual_ms))
        added = f"{row.added.median:+.0%} ({row.added.low:+.0%} to {row.added.high:+.0%})"
        rows = [
            ["gateway, CPU ms a snapshot", single, dual, added],
            [
                "Triton, CPU ms a snapshot",
                f"{row.triton_single_ms:.2f}",
                f"{row.triton_dual_ms:.2f}",
                f"{row.triton_dual_ms / row.triton_single_ms - 1:+.0%}" if row.triton_single_ms else "-",
            ],
            ["Triton, inferences a snapshot", f"{row.inferences_single:.2f}", f"{row.inferences_dual:.2f}", ""],
        ]
    return Table("Dual against single at the same rate", ["", "single", "dual", "added"], rows)


def _start(report: Report) -> Table:
    rows = []
    if row := report.start:
        rows = [
            ["start to ready, s", _spread(row.seconds, 2)],
            ["resident memory when ready, MB", f"{row.memory.resident:.0f}"],
        ]
    return Table("Start", ["Triton up, models loaded", "measured"], rows)


def _memory(report: Report) -> Table:
    rows = [
        [f"{row.case}, {row.snapshots} snapshots in {row.seconds:.0f} s", *_megabytes(row.memory)]
        for row in report.memory
    ]
    header = ["a gateway of its own for each, MB", "resident", "proportional", "anonymous", "shared memory", "peak"]
    return Table("Memory at the end of a closed loop, not of an hour (that is make soak)", header, rows)


def _megabytes(memory: Memory) -> list[str]:
    parts = (memory.resident, memory.proportional, memory.anonymous, memory.shared, memory.peak)
    return [f"{part:.0f}" for part in parts]


def _pinned(report: Report) -> Table:
    rows = [
        [
            row.placement,
            _spread(row.gateway_rate, 1),
            _spread(row.triton_rate, 1),
            f"{row.share.median:.1%} ({row.share.low:.1%} to {row.share.high:.1%})",
            f"{row.triton_ms:.1f} / {row.triton_alone_ms:.1f}",
            f"{row.busy['triton']:.2f} / {row.triton_alone_busy:.2f}",
            *(f"{row.busy[name]:.2f}" for name in ("gateway", "broker", "driver")),
        ]
        for row in report.pinned
    ]
    header = ["cores", "behind the gateway, /s", "Triton alone, /s", "share", "Triton CPU, ms: behind / alone"]
    header += ["cores busy, Triton: behind / alone", "gateway", "broker", "driver"]
    return Table("Sample model behind the gateway and alone; raw JPEGs", header, rows)


def _batching(report: Report) -> Table:
    rows = [
        [
            f"on, max_queue_delay {_delay(row.max_queue_delay_us)}" if row.dynamic else "off",
            row.max_in_flight,
            _spread(row.rate, 1),
            f"{row.mean_batch:.2f}",
            f"{row.triton_ms:.2f}",
            str(row.failed),
        ]
        for row in report.batching
    ]
    header = ["dynamic batching", "MAX_IN_FLIGHT", "rate, /s", "mean batch", "Triton CPU, ms a snapshot", "failed"]
    return Table("Sample model, 50 cameras", header, rows)


def _delay(microseconds: int | None) -> str:
    return "not set" if microseconds is None else f"{microseconds} us"


def _accuracy(report: Report) -> Table:
    rows = []
    if found := report.accuracy:
        ways = {"scaled, as it is served": found.scaled, "in full": found.full}
        rows = [[name, f"{precision.map50:.4f}", f"{precision.map50_95:.4f}"] for name, precision in ways.items()]
    scenes = f", {report.accuracy.scenes} test scenes" if report.accuracy else ""
    return Table(f"Accuracy of the sample detector{scenes}", ["decoding", "mAP50", "mAP50-95"], rows)


def _text(table: Table) -> str:
    cells = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]

    def line(row: Iterable[str]) -> str:
        padded = [
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  " + "  ".join(padded).rstrip()

    ruler = "  " + "  ".join("-" * width for width in widths)
    return "\n".join(["", table.title, line(table.header), ruler, *map(line, table.rows)])


def _markdown(table: Table) -> str:
    def line(row: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"

    ruler = "|" + "---|" * len(table.header)
    return "\n".join(["", f"### {table.title}", "", line(table.header), ruler, *map(line, table.rows)])
