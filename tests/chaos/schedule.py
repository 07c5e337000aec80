"""Which fault comes when: a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

QUIET_S = 6.0
"""After the end of a fault nothing else happens for so long: recovery may take five seconds, and is to be seen."""

LENGTHS_S: dict[str, tuple[float, float]] = {
    "gateway.kill": (0.2, 3.0),
    "gateway.stop": (1.0, 8.0),
    "gateway.restart": (0.2, 3.0),
    "triton.kill": (0.2, 6.0),
    "triton.stop": (1.0, 8.0),
    "triton.restart": (0.2, 6.0),
    "mosquitto.kill": (0.2, 6.0),
    "mosquitto.stop": (1.0, 8.0),
    "mosquitto.restart": (0.2, 6.0),
    "broker-link.cut": (0.0, 6.0),
    "broker-link.delay": (2.0, 10.0),
    "broker-link.blackhole": (1.0, 10.0),
    "broker-link.swallow": (1.0, 8.0),
    "triton-link.cut": (0.0, 6.0),
    "triton-link.delay": (2.0, 10.0),
    "triton-link.blackhole": (1.0, 10.0),
    "triton-link.swallow": (1.0, 8.0),
    "disk.full": (2.0, 8.0),
    "disk.full-offline": (2.0, 6.0),
    "variant.kill": (0.0, 0.0),
    "variant.stop": (1.0, 10.0),
    "variant.unload": (0.0, 0.0),
}
"""Every kind of fault, and from when to when it lasts; 0 is a moment. faults.py says what each one does."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, `at_s` seconds after the first answers, for `length_s` seconds."""

    at_s: float
    kind: str
    length_s: float

    @property
    def end_s(self) -> float:
        """When it is put right again."""
        return self.at_s + self.length_s


def plan(seed: int, seconds: float, count: int, kinds: Sequence[str] = tuple(LENGTHS_S)) -> tuple[Fault, ...]:
    """`count` faults within so many seconds, one after the other; the same for the same arguments.

    Each kind comes before any comes twice. Each fault has an equal share of the time, of which it takes less than half
    and leaves the end quiet.
    """
    chance = random.Random(f"{seed} {count} {seconds}")
    share = seconds / count
    quiet = min(QUIET_S, share / 2)
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += chance.sample(list(kinds), len(kinds))
    faults = []
    for number, kind in enumerate(drawn[:count]):
        shortest, longest = LENGTHS_S[kind]
        length = chance.uniform(min(shortest, share * 0.4), min(longest, share * 0.4))
        start = number * share + chance.uniform(0.0, share - quiet - length)
        faults.append(Fault(round(start, 3), kind, round(length, 3)))
    return tuple(faults)
