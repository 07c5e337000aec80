"""One Triton of several: what it has to do, whether it may have more, and for which models."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray
from prometheus_client import Counter

from gateway.errors import BackendUnavailable
from gateway.messages import InferRequest
from gateway.ports import Endpoint, InferenceServer

FAIR_PART = 0.5
"""Of the time that a request is given: who waited less in vain, since its deadline was near, blames nobody."""

E = TypeVar("E", bound=BaseException)


class PoolServer(InferenceServer, Protocol):
    """What a pool needs of each server beside the port."""

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether this is an array of its `tensor` that the server reads where it is."""
        ...

    async def configuration(self, model: str) -> str:
        """The configuration of a loaded model, as the text of a config.pbtxt; raises as `load` does."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """When an endpoint is given up, and how it comes back; seconds, and events in a row."""

    failures: int = 3
    """To reach it."""
    timeouts: int = 3
    """Each after `fair_timeout_s` at least: who waited less blames nobody."""
    fair_timeout_s: float = 1.0
    first_pause_s: float = 0.5
    """Until it is looked at again; twice as long each time that it fails at once."""
    longest_pause_s: float = 10.0
    settle_s: float = 4.0
    """Until a model is brought back to who has lost it in service: somebody may be unloading it at one after the other,
    and a version that leaves counts no longer."""
    refused_s: float = 30.0
    """Until a model is tried again that it refuses to load."""
    warm_up_s: float = 60.0
    """For one request of zeros; the first one may build an engine."""

    @classmethod
    def within(cls, timeout_s: float) -> Limits:
        """For requests that are given so long: one that hangs shall be found out where that is less than a second."""
        usual = cls()
        return replace(usual, fair_timeout_s=min(usual.fair_timeout_s, FAIR_PART * timeout_s))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load asked for; no versions: the server's own rule."""

    versions: tuple[int, ...]
    config: str | None


@dataclass(slots=True, eq=False)
class Member:
    """One endpoint and how it stands. Whether it is away, half open or admitted the roster alone changes."""

    name: str
    """As host:port."""
    server: PoolServer
    counts: Mapping[str, Counter]
    """Of its requests, by outcome."""
    pause_s: float
    under_way: dict[asyncio.Task[Any], InferRequest | None] = field(default_factory=dict)
    """The requests there by the task that waits for the answer; None: called off, for it has been given up."""
    away: bool = False
    probed: bool = False
    """Whether somebody looks whether it is back."""
    half_open: bool = False
    """Whether it has come back and not answered since: it gets one request at a time."""
    troubled: bool = False
    """Whether an answer changes something: it has failed, been late, or is half open."""
    failures: int = 0
    late: int = 0
    reason: str = ""
    """Why it is away."""
    admitted: set[str] = field(default_factory=set)
    """The models for which it takes requests."""
    behind: dict[str, str] = field(default_factory=dict)
    """The models for which it does not, and why."""
    retry_at: dict[str, float] = field(default_factory=dict)
    """When a model is tried again that it has refused, by the monotonic clock."""
    owed: set[str] = field(default_factory=set)
    """The models that have been unloaded while it was away."""
    had: dict[str, frozenset[int]] = field(default_factory=dict)
    """The versions of each model that it has served since it takes requests for it."""
    checked_at: float = 0.0
    """When it has last said whether it is live, or has not, by the monotonic clock."""
    loaded: dict[str, Loaded] = field(default_factory=dict)
    """What it was last asked to load of each model, from here."""

    @property
    def outstanding(self) -> int:
        """How many requests are under way."""
        return len(self.under_way)

    def endpoint(self) -> Endpoint:
        """How it stands, in words."""
        if self.away:
            return Endpoint(self.name, "away", self.reason)
        if self.behind:
            model, why = next(iter(self.behind.items()))
            others = f", and {len(self.behind) - 1} more" if len(self.behind) > 1 else ""
            return Endpoint(self.name, "catching up", f"model '{model}'{others}: {why}")
        return Endpoint(self.name, "in service")


def most_telling(errors: Sequence[E]) -> E:
    """The first that says more than that a member cannot be reached, where there is one, else the first."""
    return next((error for error in errors if not isinstance(error, BackendUnavailable)), errors[0])
