"""What is left of a run on the disk: the JSON file and the plots."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.bench.plots import draw
from gateway.bench.records import Report
from gateway.errors import ConfigError


def to_json(report: Report) -> bytes:
    """All of it, for a machine; ends with a line end."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def save(report: Report, json_file: Path | None, plots: Path | None, say: Callable[[str], None]) -> None:
    """Write what was asked for; `say` gets a line for each plot. Raises ConfigError after all that could be written."""
    failed = []
    if json_file is not None:
        try:
            json_file.write_bytes(to_json(report))
        except OSError as error:
            failed.append(f"{json_file}: {error.strerror}")
            if json_file.is_file():
                with contextlib.suppress(OSError):
                    json_file.unlink()  # half of it would be taken for a report
    if plots is not None:
        try:
            for path in draw(report, plots):
                say(f"Plot {path}")
        except OSError as error:
            failed.append(f"{plots}: {error.strerror}")
    if failed:
        raise ConfigError(
            f"cannot write {' and '.join(failed)}",
            fix="The tables are whole. Make room there, or name another place with --json or --plots, and run it again",
        )
