"""Processors, memory and open files of this machine, or of this container, against what the settings may take."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from gateway.affinity import allowed_cpus, cores_for
from gateway.config import Settings
from gateway.doctor.findings import Area, Finding
from gateway.errors import ConfigError

MACHINE = Area("Machine")
CONFIGURATION = Area("Configuration")
CGROUP = Path("/sys/fs/cgroup")
LEAST_FILES = 1024
AT_REST_BYTES = 150 << 20
"""Of one process at most, without what waits in it."""


def check_resources(settings: Settings, cgroup: Path = CGROUP) -> list[Finding]:
    """Cores and memory against WORKERS, queues and shared memory; `cgroup` is where Linux says a container's limits."""
    return [*_cores(settings, cgroup), _memory(settings, cgroup), _open_files()]


def _cores(settings: Settings, cgroup: Path) -> Iterator[Finding]:
    try:
        threads = [cores_for(settings, index, settings.workers).threads for index in range(settings.workers)]
    except ConfigError as error:
        yield CONFIGURATION.failed(error)
        return
    cpus, quota = len(allowed_cpus()), _quota(cgroup)
    there = f"{cpus} core{'s' * (cpus != 1)}" + ("" if quota is None else f", of which {quota:g} may be used in all")
    text = f"{there}; WORKERS={settings.workers} with {threads[0]} decoding thread{'s' * (threads[0] != 1)} each"
    if settings.workers > min(cpus, quota or cpus):
        yield MACHINE.warning(text, fix="Have no more WORKERS than cores: they would only wait for each other")
    elif quota is not None and sum(threads) > 2 * quota:
        fix = "Raise the CPU limit of the container, or set DECODER_THREADS: Linux stops all threads of it for a while"
        yield MACHINE.warning(text, fix=fix)
    else:
        yield MACHINE.ok(text)


def _memory(settings: Settings, cgroup: Path) -> Finding:
    process = AT_REST_BYTES + settings.queue_max_bytes + settings.max_payload_bytes + settings.shared_memory_max_bytes
    need, limit = settings.workers * process, _memory_limit(cgroup)
    text = f"its settings let the gateway take {need / 1e6:.0f} MB at most in ordinary service"
    if limit is None:
        return MACHINE.unknown(f"{text}; how much this machine has cannot be told")
    text = f"{text}; there are {limit / 1e6:.0f} MB"
    if need > limit:
        fix = "Raise the memory limit, or lower QUEUE_MAX_BYTES, SHARED_MEMORY_MAX_BYTES or WORKERS"
        return MACHINE.warning(text, fix=fix)
    return MACHINE.ok(text)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        text = f"{soft} files may be open at once (up to {hard} on request)"
        return MACHINE.warning(text, fix=f"Raise it: ulimit -n {LEAST_FILES}, or LimitNOFILE of the service")
    return MACHINE.ok(f"{'any number of' if soft == resource.RLIM_INFINITY else soft} files may be open at once")


def _quota(cgroup: Path) -> float | None:
    """Cores that the container may use; None without a limit."""
    words = _words(cgroup / "cpu.max")
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return round(int(words[0]) / int(words[1]), 2)
    return None


def _memory_limit(cgroup: Path) -> int | None:
    """Bytes of the machine, or of the container where it may have less."""
    limits = [int(words[0]) for words in [_words(cgroup / "memory.max")] if words and words[0].isdigit()]
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (OSError, ValueError):
        return min(limits, default=None)
    return min(limits)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except (OSError, ValueError):
        return []
