"""How long to wait until the broker is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FIRST_S = 0.2
LONGEST_S = 2.0
LEAST_S = 0.02


class BackOff:
    """Exponential with full jitter, up to a few seconds however long the broker is away.

    A site has one broker and a handful of gateways: an attempt a second from each does not burden it, and whoever
    waits for answers has them again within 5 s of its return. Time that an attempt took is part of the pause, so a
    host that swallows packets is asked as often as one that refuses.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._attempts = 0

    def reset(self) -> None:
        """There was a good session: the next attempt is an early one."""
        self._attempts = 0

    def pause_s(self, since: float) -> float:
        """Seconds from now to the next attempt; `since` is when the last one began, or what it gave was lost."""
        ceiling = min(LONGEST_S, FIRST_S * 2 ** min(self._attempts, 16))
        self._attempts += 1
        pause = random.uniform(LEAST_S, ceiling)  # noqa: S311 - spreads reconnects, no secret
        return max(LEAST_S, pause - (self._clock() - since))
