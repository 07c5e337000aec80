"""Brings a member of a pool that is new or has come back to what the others serve, before it takes requests."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from gateway.adapters.triton_codec import NUMPY_TYPES
from gateway.adapters.triton_pool_balance import WARM_UP
from gateway.adapters.triton_pool_member import Loaded, Member
from gateway.adapters.triton_pool_roster import Roster
from gateway.errors import BackendTimeout, BackendUnavailable, ConfigError, ModelUnavailable, SnapshotError
from gateway.messages import InferRequest

log = structlog.get_logger(__name__)


class CatchUp:
    """Loads at a member what another one serves, with the same configuration, and warms it up: a warm standby.

    One model after the other, each as soon as it is due; what a member refuses is tried again later.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._running: set[str] = set()
        roster.on_return = self.begin

    def begin(self, member: Member) -> None:
        """Begin, unless it is under way."""
        if member.name not in self._running and not self._roster.closed:
            self._running.add(member.name)
            self._roster.begin(self._run(member), f"triton pool: catch up {member.name}")

    async def _run(self, member: Member) -> None:
        try:
            while (model := self._next(member)) is not None:
                await self._try(member, model)
        finally:
            self._running.discard(member.name)

    def _next(self, member: Member) -> str | None:
        """A model for which it takes no requests, although another one does."""
        if member.away:
            return None
        now = time.monotonic()
        for model in self._roster.agreed:
            if (
                model not in member.admitted
                and now >= member.retry_at.get(model, 0.0)
                and member in self._roster.placement.of_model(model)
                and self._roster.taking(model)
            ):
                return model
        return None

    async def _try(self, member: Member, model: str) -> None:
        async with self._roster.lock(model):
            if member.away or model in member.admitted:
                return
            example = await self._example(member, model)
            if example is None:
                self._put_off(member, model, "no other one says what it serves", self._roster.limits.first_pause_s)
                return
            try:
                await self._bring(member, model, example)
            except (BackendUnavailable, BackendTimeout) as error:
                self._put_off(member, model, error.message, self._roster.limits.first_pause_s)
                if isinstance(error, BackendUnavailable):
                    self._roster.failed(member, error)
            except (SnapshotError, ConfigError) as error:
                self._put_off(member, model, error.message, self._roster.limits.refused_s)
                log.warning(
                    "An endpoint of Triton cannot be brought to what the others serve",
                    endpoint=member.name,
                    model=model,
                    reason=error.message,
                    fix=error.fix,
                )
            else:
                self._roster.admit(member, model)

    def _put_off(self, member: Member, model: str, why: str, pause_s: float) -> None:
        if not member.away and model not in member.admitted:  # it may have become the only one meanwhile
            member.behind[model] = why
            member.retry_at[model] = time.monotonic() + pause_s

    async def _example(self, member: Member, model: str) -> Loaded | None:
        """What a member has to serve, from one that takes requests; None when none of them says anything.

        What has been agreed on may be gone since, for another gateway unloads, too.
        """
        for peer in self._roster.taking(model):
            try:
                serves = await peer.server.serving(model)
                config = await peer.server.configuration(model) if serves else None
            except SnapshotError as error:
                if isinstance(error, BackendUnavailable):
                    self._roster.failed(peer, error)
                continue
            placement = self._roster.placement
            gone = set(placement.versions_at(peer, model, self._roster.due_at(member, model))) - set(serves)
            return Loaded(tuple(each for each in self._roster.due_at(member, model) if each not in gone), config)
        return None

    async def _bring(self, member: Member, model: str, example: Loaded) -> None:
        """Load what the example serves, and ask it once; raises what the port does."""
        due, has = example.versions, await member.server.serving(model)
        if due and has != due:
            member.behind[model] = "it is being loaded"
            versions = ", ".join(map(str, due))
            log.info(
                "An endpoint of Triton loads what the others serve",
                endpoint=member.name,
                model=model,
                versions=versions,
            )
            await member.server.load(model, due, example.config)
            member.loaded.pop(model, None)
        elif not due and has and model in member.owed:
            await member.server.unload(model)
        member.owed.discard(model)
        for version in due:
            await self._warm_up(member, model, version)

    async def _warm_up(self, member: Member, model: str, version: int) -> None:
        """One request of zeros; a model that dislikes zeros has done its work all the same."""
        request = InferRequest(
            model=model,
            inputs=await self._zeros(member, model, version),
            outputs=(),
            timeout_s=self._roster.limits.warm_up_s,
            version=str(version),
            request_id=WARM_UP,
        )
        try:
            await member.server.infer(request)
        except (BackendUnavailable, BackendTimeout, ModelUnavailable):
            raise
        except SnapshotError as error:
            log.info("A model does not take a request of zeros", model=model, version=version, reason=error.message)

    async def _zeros(self, member: Member, model: str, version: int) -> dict[str, NDArray[Any]]:
        """As large as a snapshot's where one has been seen, else as small as the model says."""
        shapes = self._roster.shapes.get(model)
        if shapes is not None:
            return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        signature = await member.server.describe(model, version)
        return {
            spec.name: np.zeros([max(1, size) for size in spec.shape], NUMPY_TYPES[spec.datatype])
            for spec in signature.inputs
            if spec.datatype in NUMPY_TYPES
        }
