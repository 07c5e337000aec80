"""The members of a pool together: who takes requests for which model, who is given up, and who comes back."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import structlog

from gateway.adapters.triton_pool_member import Limits, Member, PoolServer
from gateway.adapters.triton_pool_placement import Placement
from gateway.errors import BackendTimeout, BackendUnavailable, GatewayError, SnapshotError
from gateway.messages import InferRequest
from gateway.metrics import Metrics
from gateway.triton_endpoints import PlacementRule

log = structlog.get_logger(__name__)

OUTCOMES = ("answered", "unavailable", "not_served", "timeout", "rejected", "failed", "cancelled")
LOOK_S = 0.5
"""A look at all models counts as one, and the next one comes later than this."""
NOT_SERVED_YET = "it does not serve what the others serve yet"

P = ParamSpec("P")
T = TypeVar("T")
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
        self.leaving: dict[str, dict[int, float]] = {}
        """Those of them that somebody unloads, and since when that is seen, by the monotonic clock."""
        self.routes: dict[tuple[str, str, str] | str, Route] = {}
        """Who takes which requests, until something changes."""
        self.shapes: dict[str, Shapes] = {}
        """What the requests for a model look like, for one of zeros."""
        self.on_behind: Callable[[Member], None] = lambda _: None
        """Told of a member that does not serve all that is due."""
        self.on_eject: Callable[[Member], None] = lambda _: None
        self.closed = False
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._checks: dict[Member, asyncio.Task[bool]] = {}
        self._calls: dict[Member, set[asyncio.Task[Any]]] = {member: set() for member in self.members}

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

    def reachable(self, placed: Sequence[Member]) -> Sequence[Member]:
        """Those that can be reached; where none can, all, so that the reason comes to light."""
        return self.here(placed) or placed

    def taking(self, model: str) -> list[Member]:
        """Those that take requests for a model."""
        return [member for member in self.members if model in member.admitted and not member.away]

    def due_at(self, member: Member, model: str) -> tuple[int, ...]:
        """The versions of a model that a member has to have."""
        due = self.agreed.get(model, frozenset()) - self.leaving.get(model, {}).keys()
        return self.placement.versions_at(member, model, sorted(due))

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
            self.changed()
            self.put_off(member, model, why, self.limits.settle_s)

    def put_off(self, member: Member, model: str, why: str, pause_s: float) -> None:
        """Try later again to bring a member to what the others serve."""
        if not member.away and model not in member.admitted:  # it may have become the only one meanwhile
            member.behind[model] = why
            member.retry_at[model] = time.monotonic() + pause_s

    def refused(self, member: Member, model: str, error: GatewayError) -> None:
        """A member does not take a model that others serve."""
        self.put_off(member, model, error.message, self.limits.refused_s)
        log.warning(
            "An endpoint of Triton cannot be brought to what the others serve",
            endpoint=member.name,
            model=model,
            reason=error.message,
            fix=error.fix,
        )

    def forget(self, model: str) -> None:
        """What was seen of a model counts no more, for it is loaded anew."""
        for member in self.members:
            member.had.pop(model, None)
        self.leaving.pop(model, None)
        if self.shapes.pop(model, None) is not None:
            self.changed()  # the next request shows them

    # --- failures, ejection and return ----------------------------------------------------------------

    def note(self, member: Member, error: SnapshotError, timeout_s: float) -> None:
        """How a request has failed there."""
        if isinstance(error, BackendUnavailable):
            self.failed(member, error)
        elif not isinstance(error, BackendTimeout):
            self.answered(member)  # a refusal is an answer, too
        elif timeout_s >= self.limits.fair_timeout_s:
            member.late += 1
            member.troubled = True
            late = member.half_open or member.late >= self.limits.timeouts
            if late and self._others_take(member):  # the last one is slow, but better than none
                self._eject(member, f"{member.late} requests in a row had no answer in time")

    def _others_take(self, member: Member) -> bool:
        return any(each is not member and each.admitted & member.admitted for each in self.here())

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
        self.on_behind(member)

    def _eject(self, member: Member, reason: str) -> None:
        if member.half_open:
            self._pause_longer(member)
        member.away, member.half_open, member.reason = True, False, reason
        member.admitted.clear()
        member.behind.clear()
        member.retry_at.clear()
        member.had.clear()
        self._metrics.triton_endpoint_ejections.labels(member.name).inc()
        log.warning(
            "An endpoint of Triton is given up until it answers again",
            endpoint=member.name,
            reason=reason,
            others=[each.name for each in self.here()],
            fix="Check that this Triton runs, and that the gateway reaches it",
        )
        self.changed()
        self.on_eject(member)
        for call in self._calls[member]:
            call.cancel()
        if not member.probed:
            member.probed = True
            self.begin(self._probe(member), f"triton pool: probe {member.name}")

    def _pause_longer(self, member: Member) -> None:
        member.pause_s = min(2 * member.pause_s, self.limits.longest_pause_s)

    async def _probe(self, member: Member) -> None:
        try:
            while member.away:
                await asyncio.sleep(member.pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the gateways  # nosec B311
                if await self._is_live(member):
                    self.back(member)
                else:
                    self._pause_longer(member)
        finally:
            member.probed = False

    # --- health -----------------------------------------------------------------------------------------

    def check(self, member: Member) -> asyncio.Task[bool]:
        """Ask a member whether it is live, unless that is under way; the answer counts, and so does none."""
        check = self._checks.get(member)
        if check is None or check.done():
            check = self._checks[member] = self.begin(self._check(member), f"triton pool: check {member.name}")
        return check

    def doubt(self, member: Member) -> None:
        """Check a member that has said nothing to a question, unless that has just been done.

        So each look counts once, with however many models.
        """
        if time.monotonic() - member.checked_at > LOOK_S:
            self.check(member)

    async def _check(self, member: Member) -> bool:
        waiting, since = dict(member.under_way), time.monotonic()
        live = await self._is_live(member)
        member.checked_at = time.monotonic()
        silent = member.checked_at - since >= self.limits.fair_timeout_s and _all_wait(member, waiting)
        if not live and silent and not member.away and self._others_take(member):
            # Three such looks would last longer than the requests have time.
            self._eject(member, "it answers neither requests nor whether it is live")
        elif not live:
            self.failed(member, BackendUnavailable("it does not say that it is live"))
        elif not self.here():  # a pause is for the sake of the others
            self.back(member)
        else:
            member.failures = 0
        return live

    async def _is_live(self, member: Member) -> bool:
        try:
            return await member.server.is_ready()
        except Exception:
            log.exception("An endpoint of Triton could not be asked whether it is live", endpoint=member.name)
            return False

    # --- tasks ----------------------------------------------------------------------------------------

    async def while_here(
        self, member: Member, work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do something that a member takes part in; raises BackendUnavailable as soon as it is given up."""
        call = asyncio.create_task(work(*args, **kwargs))
        self._calls[member].add(call)
        try:
            await asyncio.wait([call])
            if call.cancelled():
                raise BackendUnavailable("it was given up meanwhile", where=member.name)
            return call.result()
        finally:
            self._calls[member].discard(call)
            call.cancel()

    def begin(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Do something in the background, until `close`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A task of the pool of Tritons has failed", task=task.get_name(), exc_info=error)

    async def close(self) -> None:
        """End what runs in the background, and all connections."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(member.server.close() for member in self.members), return_exceptions=True)


def _all_wait(member: Member, requests: Mapping[asyncio.Task[Any], InferRequest | None]) -> bool:
    """Whether these are some, and still under way there, each of them."""
    return bool(requests) and all(member.under_way.get(task) is request for task, request in requests.items())
