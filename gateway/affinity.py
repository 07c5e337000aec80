"""Which cores the threads run on, as LOOP_CPUS, DECODER_CPUS and DECODER_THREADS say; Linux only."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gateway.config import Settings
from gateway.cpu_list import cpu_list
from gateway.errors import ConfigError

ISOLATED = Path("/sys/devices/system/cpu/isolated")
MOST_THREADS = 4
"""Decoding threads without DECODER_THREADS, however many cores there are: each holds a picture."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of one process; empty where its threads stay where they are."""

    loop: tuple[int, ...]
    """Of the event loop, and of all other threads but the decoders: gRPC's, and those for what blocks."""
    decoders: tuple[int, ...]
    threads: int
    """How many decode."""
    one_each: bool = False
    """Whether each decoding thread gets one core for itself, for isolated ones between which Linux moves nothing."""

    def pin_loop(self) -> None:
        """Pin the calling thread, and with it all that it starts later; to be called before it starts any."""
        if self.loop:
            os.sched_setaffinity(0, self.loop)

    def decoding_pool(self) -> ThreadPoolExecutor:
        """The threads that decode, each pinned as it starts."""
        turns = itertools.cycle([(cpu,) for cpu in self.decoders] if self.one_each else [self.decoders])

        def pin() -> None:
            if cpus := next(turns):
                os.sched_setaffinity(0, cpus)

        return ThreadPoolExecutor(self.threads, thread_name_prefix="preprocess", initializer=pin)


def allowed_cpus() -> tuple[int, ...]:
    """The cores that this process may use, by its affinity mask and its cgroup; all, where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def isolated_cpus() -> frozenset[int]:
    """The cores that `isolcpus` keeps apart."""
    try:
        return frozenset(cpu_list(ISOLATED.read_text().strip()))
    except (OSError, ValueError):  # no such file, or no core
        return frozenset()


def cores_for(settings: Settings, index: int = 0, count: int = 1, allowed: tuple[int, ...] | None = None) -> Cores:
    """The cores of worker `index`, from 0, of `count`; to be asked before anything is pinned.

    Raises ConfigError for cores that there are not, or that this process may not use.
    """
    allowed = allowed_cpus() if allowed is None else allowed
    for name, cpus in (("LOOP_CPUS", settings.loop_cpus), ("DECODER_CPUS", settings.decoder_cpus)):
        _refuse_foreign(name, cpus, allowed)
    loop, decoders = share(settings.loop_cpus, index, count), share(settings.decoder_cpus, index, count)
    mine = len(decoders) or max(1, len(allowed) // count)
    threads = settings.decoder_threads or min(MOST_THREADS, mine)
    # A thread begins with the cores of the one that starts it, which would be the event loop's.
    apart = bool(decoders) and set(decoders) <= isolated_cpus()
    return Cores(loop, decoders or (allowed if loop else ()), threads, one_each=apart)


def share(cpus: tuple[int, ...], index: int, count: int) -> tuple[int, ...]:
    """Every `count`-th core, so that all get as many give or take one; where there are fewer than workers, one each."""
    return cpus[index::count] or cpus[index % len(cpus) :][:1] if cpus else ()


def _refuse_foreign(name: str, cpus: Iterable[int], allowed: tuple[int, ...]) -> None:
    if cpus and not hasattr(os, "sched_setaffinity"):
        raise ConfigError("threads can be pinned on Linux only", where=name, fix=f"Leave {name} out")
    if foreign := sorted(set(cpus) - set(allowed)):
        raise ConfigError(
            f"this process may not use core {', '.join(map(str, foreign))}; it may use {as_list(allowed)}",
            where=name,
            fix="Name some of those, or allow more (the container's cpuset, taskset, AllowedCPUs of systemd)",
        )
    if cpus:
        _require_permission(name)


def _require_permission(name: str) -> None:
    """Find out now: in a decoding thread that starts later it would fail every snapshot."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(0))
    except OSError as error:
        raise ConfigError(
            f"threads may not be pinned here: {error.strerror}",
            where=name,
            fix=f"Leave {name} out, or allow the system call (systemd: SystemCallFilter=sched_setaffinity)",
        ) from error


def as_list(cpus: Iterable[int]) -> str:
    """Cores as Linux writes them: `0-3,6`."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1] = [runs[-1][0], cpu]
        else:
            runs.append([cpu])
    return ",".join("-".join(map(str, run)) for run in runs)
