"""Which member of a pool answers a request: the one with the fewest under way, and another one where that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.adapters.triton_pool_member import Member, most_telling
from gateway.adapters.triton_pool_roster import Roster, Route
from gateway.adapters.triton_shared_memory import SMALLEST
from gateway.errors import BackendTimeout, BackendUnavailable, ModelCrashed, ModelUnavailable, SnapshotError
from gateway.messages import InferRequest, InferResponse

OWNER_MARGIN = 2
"""So many requests more may the member have whose shared memory holds the tensor: to copy it costs more than that."""
MOST_ROUTES = 4096
"""Routes that are kept; a topic of a snapshot may name any tenant."""


class Balancer:
    """Sends each request to one member, and to each of the others at most once when that cannot be reached."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._routes = roster.routes
        self._by_request = roster.placement.by_request
        self._turn = 0
        self._tensor_turn = 0
        """Of its own: with one count for tensors and requests each would always go to the same member."""
        roster.on_eject = self._call_off

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory of the member with the fewest requests under way that takes some; called in threads."""
        here = self._roster.here()
        taking = [member for member in here if member.admitted and not member.half_open]
        members = taking or here or self._roster.members
        self._tensor_turn += 1
        start = self._tensor_turn % len(members)
        chosen: Member = min((*members[start:], *members[:start]), key=lambda member: len(member.under_way))
        return chosen.server.tensor(shape, dtype)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask one member; where it is given up or has lost the model, the others within the same time."""
        if request.warm_up:
            return await self._everywhere(request)
        until = time.monotonic() + request.timeout_s
        route = self._routes.get(
            (request.model, request.version, request.tenant) if self._by_request else request.model
        )
        if route is None:
            route = self._make_route(request)
        self._turn += 1
        member = _choose(route[self._turn % len(route)], request)
        try:
            return await self._ask(member, request)
        except ModelCrashed:  # perhaps by this very picture, which shall not bring down all of them
            self._roster.dismiss(member, request.model, "its process has crashed there")
            raise
        except (BackendUnavailable, ModelUnavailable) as error:
            return await self._elsewhere(request, member, error, until)

    async def _ask(self, member: Member, request: InferRequest) -> InferResponse:
        """Raises BackendUnavailable also when the member is given up meanwhile and another one can be asked."""
        outcome = "failed"
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # a coroutine runs in one
        member.under_way[task] = request
        try:
            response = await member.server.infer(request)
            outcome = "answered"
        except SnapshotError as error:
            outcome = _outcome(error)
            self._roster.note(member, error, request.timeout_s)
            raise
        except asyncio.CancelledError:
            if member.under_way[task] is not None or task.cancelling() > 1:  # somebody wants no answer any more
                outcome = "cancelled"
                raise
            outcome = "unavailable"
            why = f"it was given up before it answered ({member.reason})"
            raise BackendUnavailable(why, where=f"Triton at {member.name}") from None
        finally:
            if member.under_way.pop(task) is None:
                task.uncancel()
            member.counts[outcome].inc()
        if member.troubled:
            self._roster.answered(member)
        return response

    def _call_off(self, member: Member) -> None:
        """End what is under way at a member that has been given up, where another one takes such requests.

        By the cancellation of what waits for it, which each of our servers knows how to end, a slot of shared memory
        that may still be read included; `_ask` takes it back. So it costs nothing where nothing is called off.
        """
        now = asyncio.current_task()
        for task, request in member.under_way.items():
            if request is None or task is now or task.cancelling():
                continue
            if any(request.model in other.admitted for other in self._left(request, (member,))):
                member.under_way[task] = None
                task.cancel()

    async def _everywhere(self, request: InferRequest) -> InferResponse:
        """A request that warms a model up, which each member needs for itself; raises what any of them says of it."""
        placed = self._roster.placement.of_request(request.model, request.version, request.tenant)
        members = self._left(request, ()) or placed
        results = await asyncio.gather(*(self._ask(each, request) for each in members), return_exceptions=True)
        errors = [each for each in results if isinstance(each, BaseException)]
        answers = [each for each in results if isinstance(each, InferResponse)]
        # Where another one has answered in time, the model is not what hangs.
        of_the_member = (BackendUnavailable, BackendTimeout) if answers else BackendUnavailable
        refusals = [error for error in errors if not isinstance(error, of_the_member)]
        if refusals or not answers:
            raise (refusals or errors)[0]
        return answers[0]

    async def _elsewhere(
        self, request: InferRequest, first: Member, error: SnapshotError, until: float
    ) -> InferResponse:
        """Ask the others, one after the other; raises what says most when none answers."""
        tried, errors = [first], [error]
        del error  # what is raised must not be held by this frame, which it holds by its traceback
        try:
            while not self._roster.closed and (left := until - time.monotonic()) > 0:
                rest = self._left(request, tried)
                if not rest:
                    break
                member = _choose(rest, request)
                tried.append(member)
                try:
                    response = await self._ask(member, replace(request, timeout_s=left))
                except ModelCrashed:
                    self._roster.dismiss(member, request.model, "its process has crashed there")
                    raise
                except (BackendUnavailable, ModelUnavailable) as again:
                    errors.append(again)
                    continue
                for each, why in zip(tried, errors, strict=False):
                    if isinstance(why, ModelUnavailable):
                        self._roster.dismiss(each, request.model)
                return response
            raise most_telling(errors)
        finally:
            errors.clear()

    def _left(self, request: InferRequest, tried: Sequence[Member]) -> list[Member]:
        """Who may be asked yet: those that take such requests, and after them those that are catching up."""
        placed = self._roster.placement.of_request(request.model, request.version, request.tenant)
        here = [member for member in self._roster.here(placed) if member not in tried]
        return [member for member in here if request.model in member.admitted] or here

    def _make_route(self, request: InferRequest) -> Route:
        """Who takes such requests; where nobody is known to, those that can be reached, else all, for the reason."""
        model = request.model
        if model not in self._roster.shapes:
            self._roster.shapes[model] = {name: (each.shape, each.dtype) for name, each in request.inputs.items()}
        placed = self._roster.placement.of_request(model, request.version, request.tenant)
        here = self._roster.here(placed)
        chosen = tuple([member for member in here if model in member.admitted] or here or placed)
        route = tuple((*chosen[start:], *chosen[:start]) for start in range(len(chosen)))
        if len(self._routes) >= MOST_ROUTES:
            self._routes.clear()
        self._routes[(model, request.version, request.tenant) if self._by_request else model] = route
        return route


def _choose(members: Sequence[Member], request: InferRequest) -> Member:
    """The one with the fewest requests under way, the first of several; or the one that has the tensor already."""
    best, least = members[0], 1 << 30
    if len(members) == 1:
        return best
    for member in members:
        outstanding = len(member.under_way)
        if outstanding < least and not (outstanding and member.half_open):
            best, least = member, outstanding
    for array in request.inputs.values():
        if array.nbytes >= SMALLEST:
            if best.server.holds(array):
                break
            for member in members:
                if (
                    member is not best
                    and len(member.under_way) <= least + OWNER_MARGIN
                    and not member.half_open
                    and member.server.holds(array)
                ):
                    return member
            break
    return best


def _outcome(error: SnapshotError) -> str:
    if isinstance(error, BackendUnavailable):
        return "unavailable"
    if isinstance(error, ModelUnavailable):
        return "not_served"
    return "timeout" if isinstance(error, BackendTimeout) else "rejected"
