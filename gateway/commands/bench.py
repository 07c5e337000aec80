"""`edge-gateway bench`: how fast the gateway is on this machine, beside what one would write instead."""

from __future__ import annotations

import difflib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gateway.bench.plan import MODELS, MODES, PARTS, PAYLOADS, QUALITY, RESOLUTIONS, SIZES, Filters, Plan, make_plan
from gateway.commands.options import FILE, REPOSITORY, FiniteRange, examples
from gateway.config import Settings
from gateway.errors import ConfigError, StackError

if TYPE_CHECKING:
    from gateway.bench.records import Report

NEEDED = ("hdrh", "psutil", "pygal")
"""Of the extra `local`; the embedded parts say themselves what is missing."""


class Choices(click.ParamType[Any]):
    """Words or numbers with commas between them, each one of those that there are, or a number of at least 1."""

    def __init__(self, choices: tuple[Any, ...] = (), *, numbers: bool = False) -> None:
        self.name = "list"
        self._choices = choices
        self._numbers = numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple; empty for nothing."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(self._one(part.strip(), param, ctx) for part in value.split(",") if part.strip()))

    def _one(self, part: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        word: Any = part.lower()
        if self._numbers:
            if not (part.isascii() and part.isdigit() and 1 <= int(part[:9]) <= 1_000_000):
                self.fail(f"'{part[:60]}' is no number from 1 up", param, ctx)
            word = int(part)
        if self._choices and word not in self._choices:
            self.fail(f"'{part[:60]}' is none of {', '.join(map(str, self._choices))}", param, ctx)
        return word


def _settings(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, of names that the gateway knows."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name.lower() not in Settings.model_fields:
            nearest = difflib.get_close_matches(name.lower(), Settings.model_fields, n=1)
            meant = f"did you mean {nearest[0].upper()}?" if nearest else "docs/configuration.md has them all"
            raise click.BadParameter(f"'{text[:60]}' is no NAME=VALUE of a setting; {meant}")
        found[name.upper()] = value
    return found


@click.command(
    epilog=examples(
        "edge-gateway bench --quick",
        "edge-gateway bench --json bench.json --plots plots/",
        "edge-gateway bench --quick --json | jq .throughput",
        "edge-gateway bench --only gateway,script --sizes 224,640 --seconds 10",
        "edge-gateway bench --only gateway --sizes 640 --set TRITON_SHARED_MEMORY=off",
    )
)
@REPOSITORY
@click.option("--quick", is_flag=True, help="Less than a minute: one case, no pairs.")
@click.option("--full", is_flag=True, help="Every size with every resolution, form and mode; more than half an hour.")
@click.option(
    "--only",
    type=Choices(PARTS),
    default=(),
    help=f"Parts to measure: {', '.join(PARTS)}; the first two are the closed loops, and who is in the open ones.",
)
@click.option("--sizes", type=Choices(SIZES, numbers=True), default=(), help="Of the stub model's input.")
@click.option("--resolution", "resolutions", type=Choices(RESOLUTIONS), default=(), help="720p, 1080p, 4k.")
@click.option("--payload", "payloads", type=Choices(PAYLOADS), default=(), help="json, raw.")
@click.option("--mode", "modes", type=Choices(MODES), default=(), help="single, dual.")
@click.option("--model", "models", type=Choices(MODELS), default=(), help="stub, sample.")
@click.option(
    "--quality", type=click.IntRange(1, 100), default=QUALITY, show_default=True, help="Of the JPEGs that are sent."
)
@click.option("--cameras", type=Choices(numbers=True), default=(), help="Numbers of cameras.")
@click.option("--workers", type=Choices(numbers=True), default=(), help="Numbers of gateway processes.")
@click.option("--rate", type=FiniteRange(0.1, 10_000), help="Snapshots a second of the open loop.  [default: 5]")
@click.option("--seconds", type=FiniteRange(0.1, 3600), help="Of one measurement.  [default: 2]")
@click.option("--set", "settings", multiple=True, callback=_settings, metavar="NAME=VALUE", help="Gateway's setting.")
@click.option(
    "--json",
    "json_file",
    type=FILE,
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Print everything as one JSON object in place of the tables; with FILE: write it there, beside them.",
)
@click.option("--plots", type=FILE, help="Folder to draw SVG plots in.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
def bench(
    repository: Path,
    quick: bool,
    full: bool,
    quality: int,
    rate: float | None,
    seconds: float | None,
    settings: dict[str, str],
    json_file: Path | None,
    plots: Path | None,
    markdown: bool,
    **filters: tuple[Any, ...],
) -> None:
    """Measure this gateway beside a straightforward script, Triton alone and the decoder alone.

    All on the same broker, Triton and frames, in turn; figures of one run can be compared with each other, those of two
    runs hardly. Options that name several values cross them: --sizes 224,640 --payload json,raw makes four cases. Leave
    the machine alone meanwhile. Ctrl-C ends it and prints what there is.
    """
    if quick and full:
        raise click.UsageError("--quick and --full exclude each other")
    as_json = json_file is not None and str(json_file) == "-"
    json_file = None if as_json else json_file
    if as_json and markdown:
        raise click.UsageError("--json without a file takes the place of the tables, so there is no --markdown")
    _require_extra()
    _require_writable(json_file, plots)
    kind: Literal["quick", "default", "full"] = "quick" if quick else "full" if full else "default"
    cores = len(os.sched_getaffinity(0))
    plan = make_plan(kind, Filters(**filters), seconds=seconds, rate=rate, quality=quality, cores=cores)
    report = _measure(plan, repository, settings, quiet=as_json)
    from gateway.bench.files import save, to_json
    from gateway.bench.tables import as_markdown, as_text

    click.echo(to_json(report) if as_json else (as_markdown if markdown else as_text)(report), nl=not as_json)
    save(report, json_file, plots, lambda line: click.echo(line, err=True))
    if report.failed:
        fix = "Each says why above; mend that and run it again"
        raise StackError(f"{len(report.failed)} of the measurements failed", fix=fix)
    sys.exit(128 + signal.SIGINT if report.interrupted else 0)


def _measure(plan: Plan, repository: Path, settings: dict[str, str], *, quiet: bool) -> Report:
    from gateway.bench.run import Run
    from gateway.local.backend_directory import find_stub, find_wheel
    from gateway.local.stack import terminate_like_interrupt
    from gateway.logs import configure_logging
    from gateway.terminal.progress import progress, say_above

    find_stub(find_wheel())  # says what is not installed before anything is started
    configure_logging("warning", "text")
    run = Run(plan, repository, settings, lambda line: say_above(line, sys.stderr))
    with terminate_like_interrupt(), progress("Measuring", 1.0, "share", quiet=quiet, still=True) as bar:
        try:
            run.measure(bar.to)
        except KeyboardInterrupt:
            raise click.Abort from None
    assert run.report is not None
    return run.report


def _require_extra() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StackError(
            f"bench needs {', '.join(missing)}", fix="Install it with: pip install 'triton-edge-gateway[local]'"
        )


def _require_writable(json_file: Path | None, plots: Path | None) -> None:
    """Before minutes are spent, not after."""
    if json_file is not None:
        if not json_file.parent.is_dir() or json_file.is_dir():
            raise ConfigError("is no place for a file", where=str(json_file), fix="Name a file in an existing folder")
        _may_write(json_file if json_file.exists() else json_file.parent, json_file, "--json")
    if plots is not None:
        if plots.exists() and not plots.is_dir():
            raise ConfigError("is no folder", where=str(plots), fix="Name a folder for the plots")
        _may_write(next(folder for folder in (plots, *plots.absolute().parents) if folder.exists()), plots, "--plots")


def _may_write(there: Path, wanted: Path, option: str) -> None:
    if not os.access(there, os.W_OK):
        raise ConfigError(
            "cannot be written here", where=str(wanted), fix=f"Name another place with {option}, or allow writing there"
        )
