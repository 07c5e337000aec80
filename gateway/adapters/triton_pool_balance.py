"""Which member of a pool answers a request: the one with the fewest under way, and another one where that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.adapters.triton_pool_member import Member
from gateway.adapters.triton_pool_roster import Roster, Route
from gateway.adapters.triton_shared_memory import SMALLEST
from gateway.errors import BackendTimeout, BackendUnavailable, ModelCrashed, ModelUnavailable, SnapshotError
from gateway.messages import InferRequest, InferResponse

WARM_UP = "warm-up"
"""The id of requests that are there to warm a model up."""
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

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory of the member with the fewest requests under way; called in threads."""
        members = self._roster.here() or self._roster.members
        self._tensor_turn += 1
        start = self._tensor_turn % len(members)
        chosen: Member = min((*members[start:], *members[:start]), key=lambda member: member.outstanding)
        return chosen.server.tensor(shape, dtype)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask one member; where it cannot be reached or has lost the model, the others within the same time."""
        if request.request_id == WARM_UP:
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
            if self._roster.closed:
                raise
            return await self._elsewhere(request, member, error, until)

    async def _ask(self, member: Member, request: InferRequest) -> InferResponse:
        outcome = "cancelled"
        member.outstanding += 1
        try:
            response = await member.server.infer(request)
            outcome = "answered"
        except SnapshotError as error:
            outcome = _outcome(error)
            self._roster.note(member, error, request.timeout_s)
            raise
        finally:
            member.outstanding -= 1
            member.counts[outcome].inc()
        if member.troubled:
            self._roster.answered(member)
        return response

    async def _everywhere(self, request: InferRequest) -> InferResponse:
        """A request that warms a model up, which each member needs for itself; raises what any of them says of it."""
        placed = self._roster.placement.of_request(request.model, request.version, request.tenant)
        members = self._left(request, ()) or placed
        results = await asyncio.gather(*(self._ask(each, request) for each in members), return_exceptions=True)
        errors = [each for each in results if isinstance(each, BaseException)]
        refusals = [error for error in errors if not isinstance(error, BackendUnavailable)]
        answers = [each for each in results if isinstance(each, InferResponse)]
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
            raise errors.pop(_most_telling(errors))
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
        outstanding = member.outstanding
        if outstanding < least and not (outstanding and member.half_open):
            best, least = member, outstanding
    for array in request.inputs.values():
        if array.nbytes >= SMALLEST:
            for member in members:
                if (
                    member is not best
                    and member.outstanding <= least + OWNER_MARGIN
                    and not member.half_open
                    and member.server.holds(array)
                ):
                    return member
            break
    return best


def _most_telling(errors: Sequence[SnapshotError]) -> int:
    """Which of them to raise: one that says more than that a member cannot be reached."""
    return next((index for index, error in enumerate(errors) if not isinstance(error, BackendUnavailable)), 0)


def _outcome(error: SnapshotError) -> str:
    if isinstance(error, BackendUnavailable):
        return "unavailable"
    if isinstance(error, ModelUnavailable):
        return "not_served"
    return "timeout" if isinstance(error, BackendTimeout) else "rejected"
