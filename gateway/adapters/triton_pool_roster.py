"""The members of a pool together: who takes requests for which model, who is given up, and who comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np
import structlog

from gateway.adapters.triton_pool_member import Limits, Member, PoolServer
from gateway.adapters.triton_pool_placement import Placement
from gateway.errors import BackendTimeout, BackendUnavailable, SnapshotError
from gateway.metrics import Metrics
from gateway.triton_endpoints import PlacementRule

log = structlog.get_logger(__name__)

OUTCOMES = ("answered", "unavailable", "not_served", "timeout", "rejected", "cancelled")
NOT_SERVED_YET = "it does not serve what the others serve yet"

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
Route = tuple[tuple[Member, ...], ...]
"""The members that take the requests, once for each of them to begin with."""


class Roster:
    """All members, and what they have agreed on: which versions of each model the pool serves."""

    def __init__(
        self,
        servers: Mapping[str, PoolServer],
        rules: Sequence[PlacementRule],
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self.limits = limits
        self._metrics = metrics
        self.members = tuple(self._member(name, server) for name, server in servers.items())
        self.placement = Placement(self.members, rules)
        self.agreed: dict[str, frozenset[int]] = {}
        """The versions of each model that the pool serves, and that a member has to have."""
        self.routes: dict[tuple[str, str, str] | str, Route] = {}
        """Who takes which requests, until something changes."""
        self.shapes: dict[str, Shapes] = {}
        """What the requests for a model look like, for one of zeros."""
        self.on_return: Callable[[Member], None] = lambda _: None
        self.closed = False
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def _member(self, name: str, server: PoolServer) -> Member:
        requests = self._metrics.triton_endpoint_requests
        counts = {outcome: requests.labels(name, outcome) for outcome in OUTCOMES}
        member = Member(name, server, counts, self.limits.first_pause_s)
        up = self._metrics.triton_endpoint_up.labels(name)
        up.set_function(lambda: not (member.away or member.behind))
        self._metrics.triton_endpoint_outstanding.labels(name).set_function(lambda: member.outstanding)
        self._metrics.triton_endpoint_ejections.labels(name)
        return member

    def here(self, members: Sequence[Member] | None = None) -> list[Member]:
        """Those that can be reached, as far as is known."""
        return [member for member in (self.members if members is None else members) if not member.away]

    def taking(self, model: str) -> list[Member]:
        """Those that take requests for a model."""
        return [member for member in self.members if model in member.admitted and not member.away]

    def due_at(self, member: Member, model: str) -> tuple[int, ...]:
        """The versions of a model that a member has to have."""
        return self.placement.versions_at(member, model, sorted(self.agreed.get(model, ())))

    def lock(self, model: str) -> asyncio.Lock:
        """Held by whoever changes what is loaded of a model."""
        return self._locks.setdefault(model, asyncio.Lock())

    def changed(self) -> None:
        """Others may take requests now."""
        self.routes.clear()

    def admit(self, member: Member, model: str) -> None:
        """Let a member take requests for a model, unless it has gone away meanwhile."""
        if member.away:
            return
        member.behind.pop(model, None)
        member.retry_at.pop(model, None)
        if model not in member.admitted:
            member.admitted.add(model)
            self.changed()

    def dismiss(self, member: Member, model: str, why: str = NOT_SERVED_YET) -> None:
        """Let a member take no more requests for a model until it serves it again, while another one does."""
        if model in member.admitted and len(self.taking(model)) > 1:
            member.admitted.discard(model)
            member.behind[model] = why
            self.changed()
            self.on_return(member)

    # --- failures, ejection and return ----------------------------------------------------------------

    def note(self, member: Member, error: SnapshotError, timeout_s: float) -> None:
        """How a request has failed there."""
        if isinstance(error, BackendUnavailable):
            self.failed(member, error)
        elif not isinstance(error, BackendTimeout):
            member.failures = 0
        elif timeout_s >= self.limits.fair_timeout_s:
            member.late += 1
            member.troubled = True
            others = [each for each in self.here() if each is not member and each.admitted]
            if member.late >= self.limits.timeouts and others:  # the last one is slow, but better than none
                self._eject(member, f"{member.late} requests in a row had no answer in time")

    def failed(self, member: Member, error: SnapshotError) -> None:
        """A member could not be reached."""
        if self.closed or member.away:
            return
        member.failures += 1
        member.troubled = True
        if member.half_open or member.failures >= self.limits.failures:
            trouble = member.server.trouble
            self._eject(member, trouble.message if trouble else error.message)

    def answered(self, member: Member) -> None:
        """A troubled member has answered."""
        if member.half_open and not member.away:
            member.pause_s = self.limits.first_pause_s
            log.info("An endpoint of Triton takes requests again", endpoint=member.name)
        member.failures = member.late = 0
        member.half_open = member.troubled = False

    def back(self, member: Member) -> None:
        """A member that was away can be reached."""
        if not member.away or self.closed:
            return
        member.away, member.half_open, member.troubled = False, True, True
        member.failures = member.late = 0
        member.reason = ""
        for model in self.agreed:
            if (model in member.owed or self.due_at(member, model)) and self.taking(model):
                member.behind[model] = NOT_SERVED_YET
        self.changed()
        self.on_return(member)

    def _eject(self, member: Member, reason: str) -> None:
        member.pause_s = min(2 * member.pause_s, self.limits.longest_pause_s) if member.half_open else member.pause_s
        member.away, member.half_open, member.reason = True, False, reason
        member.admitted.clear()
        member.behind.clear()
        member.retry_at.clear()
        self._metrics.triton_endpoint_ejections.labels(member.name).inc()
        log.warning(
            "An endpoint of Triton is given up until it answers again",
            endpoint=member.name,
            reason=reason,
            others=[each.name for each in self.here()],
            fix="Check that this Triton runs, and that the gateway reaches it",
        )
        self.changed()
        if not member.probed:
            member.probed = True
            self.begin(self._probe(member), f"triton pool: probe {member.name}")

    async def _probe(self, member: Member) -> None:
        while member.away:
            await asyncio.sleep(member.pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the gateways  # nosec B311
            if await member.server.is_ready():
                self.back(member)
            else:
                member.pause_s = min(2 * member.pause_s, self.limits.longest_pause_s)
        member.probed = False

    # --- tasks ----------------------------------------------------------------------------------------

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something in the background, until `close`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what runs in the background, and all connections."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(member.server.close() for member in self.members), return_exceptions=True)
