"""The regression guard: instructions of the gateway for one snapshot over those of the straightforward script.

Instructions and not time, a ratio and not a number: another machine or a busy one gives the same answer. `make guard`
compares it with guard.json, `python -m tests.bench.guard --update` writes that anew; say in the commit why it changed.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.bench.frames import FRAMES, Frames

EXPECTED = Path(__file__).with_name("guard.json")
ROOT = Path(__file__).parents[2]
TOLERANCE = 0.06
"""Runs differ by up to 2 %; what decodes and encodes picks some other instructions on another processor."""
TIMEOUT_S = 240
ROUNDS = 3
FEW, MANY = FRAMES, 3 * FRAMES
"""What a program needs to start is in both, and goes away in the difference."""
CALLGRIND_COUNT = FRAMES


@functools.cache
def frames() -> Path:
    """The pictures, drawn once and not in the programs that are counted."""
    folder = Path(tempfile.mkdtemp(prefix="edge-gateway-guard-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for number, jpeg in enumerate(Frames().jpegs("1080p")):
        (folder / f"{number}.jpg").write_bytes(jpeg)
    return folder


Way = Literal["gateway", "slower", "script"]
Tool = Literal["perf", "callgrind"]
TOOLS: tuple[Tool, ...] = ("perf", "callgrind")


class Unsupported(Exception):
    """Why instructions cannot be counted on this machine."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and what was expected."""

    tool: Tool
    ratio: float
    expected: float | None

    @property
    def slower(self) -> bool:
        """Whether the gateway needs more than it should."""
        return self.expected is not None and self.ratio > self.expected * (1 + TOLERANCE)

    def __str__(self) -> str:
        found = f"a snapshot takes the gateway {self.ratio:.3f} of the script's instructions ({self.tool})"
        if self.expected is None:
            return f"{found}; nothing is expected yet: python -m tests.bench.guard --update"
        change = self.ratio / self.expected - 1
        found += f", {self.expected:.3f} expected: {change:+.1%}"
        if self.slower:
            return f"{found}. SLOWER: find out why, or say why with python -m tests.bench.guard --update"
        return found if change > -TOLERANCE else f"{found}. Faster: keep it with python -m tests.bench.guard --update"


def find_tool() -> Tool:
    """What counts instructions here; raises Unsupported."""
    reasons = {tool: _obstacle(tool) for tool in TOOLS}
    for tool, reason in reasons.items():
        if reason is None:
            return tool
    raise Unsupported("; ".join(map(str, reasons.values())))


def _obstacle(tool: Tool) -> str | None:
    """Why a tool cannot be used here, or None."""
    if tool == "callgrind":
        return None if shutil.which("callgrind_control") else "there is no valgrind"
    if shutil.which("perf") is None:
        return "there is no perf"
    try:
        _perf(["-c", "pass"])
    except Unsupported as reason:
        return str(reason)
    return None


def count(path: Way, tool: Tool) -> float:
    """Instructions in user space for one snapshot on this path."""
    if tool == "callgrind":
        return _callgrind(path) / CALLGRIND_COUNT
    few, many = (_perf(["-m", "tests.bench.guarded", path, str(snapshots), str(frames())]) for snapshots in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def ratio(tool: Tool) -> float:
    """Instructions of the gateway over those of the script."""
    return count("gateway", tool) / count("script", tool)


def judge() -> Verdict:
    """Count and compare; raises Unsupported."""
    tool = find_tool()
    ratios = [ratio(tool) for _ in range(ROUNDS if tool == "perf" else 1)]
    return Verdict(tool, statistics.median(ratios), expected().get(tool))


def expected() -> Mapping[str, float]:
    """The ratios that are committed, by tool."""
    found: dict[str, float] = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {}
    return found


def _perf(arguments: list[str]) -> int:
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as counts:
        command = ["perf", "stat", "-x", ",", "-e", "instructions:u", "-o", counts.name, sys.executable, *arguments]
        _run(command)
        figures = [line.split(",")[0] for line in counts.read().splitlines() if "instructions" in line]
    if not figures or not figures[0].isdigit():
        raise Unsupported("perf cannot count instructions on this machine")
    return int(figures[0])


def _callgrind(path: Way) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "callgrind.out"
        tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={file}", "-q"]
        _run(
            [
                *tool,
                sys.executable,
                "-m",
                "tests.bench.guarded",
                path,
                str(CALLGRIND_COUNT),
                str(frames()),
                "--callgrind",
            ]
        )
        totals = [line.split()[1] for line in file.read_text().splitlines() if line.startswith("totals:")]
    if not totals:
        raise Unsupported("callgrind gave no totals")
    return int(totals[0])


def _run(command: list[str]) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        if "tests.bench.guarded" in command:
            raise RuntimeError(f"the counted program failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        raise Unsupported(f"{command[0]} cannot count here: {' '.join(done.stderr.split())[:200]}")


def update() -> None:
    """Measure some rounds with each tool that there is, and write what to expect from now on."""
    found = dict(expected())
    for tool in TOOLS:
        if _obstacle(tool) is None:
            ratios = [ratio(tool) for _ in range(ROUNDS if tool == "perf" else 1)]
            found[tool] = round(statistics.median(ratios), 4)
            print(f"{tool}: {found[tool]:.4f}, from {min(ratios):.4f} to {max(ratios):.4f}")
    EXPECTED.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Exit code 1 when the gateway has become slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write guard.json anew")
    if parser.parse_args().update:
        update()
        return
    try:
        verdict = judge()
    except Unsupported as reason:
        print(f"Not counted: {reason}. Install perf or valgrind, on a machine that lets them count")
        return
    print(verdict)
    sys.exit(verdict.slower)


if __name__ == "__main__":
    main()
