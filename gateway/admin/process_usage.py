"""What a process takes of its machine."""

from __future__ import annotations

import resource
import time
from pathlib import Path

STATM = Path("/proc/self/statm")


def process_usage(started_at: float, workers: int) -> dict[str, float | None]:
    """Memory and time of this process, which was begun at `started_at` of `time.monotonic()`."""
    return {
        "resident_bytes": _resident_bytes(),
        "cpu_seconds": round(time.process_time(), 3),
        "uptime_s": round(time.monotonic() - started_at, 1),
        "workers": workers,
    }


def _resident_bytes() -> int | None:
    try:
        return int(STATM.read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):  # not on Linux
        return None
