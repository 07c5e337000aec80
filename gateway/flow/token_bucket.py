"""A token bucket: so many a second, and a few at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class TokenBucket:
    """What it held, in messages, at a time of the monotonic clock; one that holds more than it may is full."""

    tokens: float
    at: float

    def take(self, rate: float, most: float, now: float) -> bool:
        """Take one of `rate` a second and `most` at once, which may differ from the last time; False: none is left."""
        self.tokens = min(most, self.tokens + max(0.0, now - self.at) * rate)
        self.at = max(now, self.at)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
