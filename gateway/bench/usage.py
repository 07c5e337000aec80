"""CPU time and memory of processes with all that they have started."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from gateway.bench.records import Memory

KIB = 1024
_LINES = ("VmRSS", "Pss", "RssAnon", "RssShmem", "VmHWM")
"""Of /proc/PID/status and smaps_rollup, in the order of Memory's fields."""


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds of each process since its start, by the name of what is measured, and when that was read."""

    cpu_s: Mapping[str, Mapping[psutil.Process, float]]
    at: float

    @classmethod
    def read(cls, pids: Mapping[str, int]) -> Usage:
        """Of these processes and their descendants, now; of this one alone, for the others are its descendants."""
        spent = {name: {one: _cpu_seconds(one) for one in _counted(pid)} for name, pid in pids.items()}
        return cls(spent, time.perf_counter())

    def seconds(self, earlier: Usage) -> dict[str, float]:
        """CPU seconds since then, process by process: one that has ended meanwhile takes nothing from the others."""
        return {
            name: sum(max(0.0, now - earlier.cpu_s[name].get(one, 0.0)) for one, now in spent.items())
            for name, spent in self.cpu_s.items()
        }

    def since(self, earlier: Usage, snapshots: int) -> dict[str, float]:
        """CPU milliseconds a snapshot since then."""
        return {name: 1000 * spent / max(1, snapshots) for name, spent in self.seconds(earlier).items()}

    def busy(self, earlier: Usage) -> dict[str, float]:
        """Cores kept busy since then; 1 is a whole core."""
        return {name: spent / (self.at - earlier.at) for name, spent in self.seconds(earlier).items()}


def memory(pid: int) -> Memory:
    """Memory of a process and its descendants; zeros when it is gone."""
    sums = dict.fromkeys(_LINES, 0.0)
    for process in family(pid):
        for line in _lines(process.pid):
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0]) * KIB / 1e6
    return Memory(*(sums[name] for name in _LINES))


def pin(pid: int, cores: Sequence[int]) -> None:
    """Let a process and its descendants, or this one alone, with all threads, run on these cores only."""
    for process in _counted(pid):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):  # a thread that has ended since
                os.sched_setaffinity(thread.id, cores)


def family(pid: int) -> list[psutil.Process]:
    """The process and its descendants; empty when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _counted(pid: int) -> list[psutil.Process]:
    return [psutil.Process()] if pid == os.getpid() else family(pid)


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _lines(pid: int) -> list[str]:
    try:
        return "".join(Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "smaps_rollup")).splitlines()
    except OSError:  # it has ended, or belongs to somebody else
        return []
