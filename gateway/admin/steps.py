"""Steps of time: counted by a clock that nobody puts back, shown by the one on the wall."""

from __future__ import annotations

import time


def wall_clock_shift(step_s: int) -> int:
    """Seconds from `time.monotonic()` to those since 1970, as the clock is now.

    A multiple of `step_s`: so the steps of several workers fall together, and can be added.
    """
    return round((time.time() - time.monotonic()) / step_s) * step_s
