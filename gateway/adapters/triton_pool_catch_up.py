"""Brings a member of a pool that is new or has come back to what the others serve, before it takes requests."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from gateway.adapters.triton_codec import NUMPY_TYPES
from gateway.adapters.triton_pool_member import Loaded, Member
from gateway.adapters.triton_pool_roster import NOT_SERVED_YET, Roster
from gateway.errors import BackendTimeout, BackendUnavailable, ConfigError, ModelUnavailable, SnapshotError
from gateway.messages import InferRequest

log = structlog.get_logger(__name__)


class CatchUp:
    """Loads at a member what another one serves, with the same configuration, and warms it up: a warm standby.

    All models side by side; what a member refuses is tried again later.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._running: dict[tuple[Member, str], asyncio.Task[None]] = {}
        roster.on_behind = self.begin

    def begin(self, member: Member) -> None:
        """Begin with each model that is due and not under way."""
        for model in self._due(member):
            name = f"triton pool: catch up {member.name} {model}"
            task = self._running[member, model] = self._roster.begin(self._try(member, model), name)
            # Not a `finally` in it: a task that is cancelled before it begins runs none of its lines.
            task.add_done_callback(partial(self._ended, (member, model)))

    def stop(self, model: str) -> None:
        """Leave off where a model is under way, for it is about to be loaded or unloaded; the next look begins anew."""
        for (_, name), task in self._running.items():
            if name == model:
                task.cancel()

    def _due(self, member: Member) -> list[str]:
        """The models for which it takes no requests, although another one does."""
        if member.away or self._roster.closed:
            return []
        now = time.monotonic()
        return [
            model
            for model in self._roster.agreed
            if model not in member.admitted
            and (member, model) not in self._running
            and now >= member.retry_at.get(model, 0.0)
            and member in self._roster.placement.of_model(model)
            and self._roster.taking(model)
        ]

    def _ended(self, key: tuple[Member, str], _: asyncio.Task[None]) -> None:
        del self._running[key]

    async def _try(self, member: Member, model: str) -> None:
        soon = self._roster.limits.first_pause_s
        try:
            due = await self._roster.while_here(member, self._bring, member, model)
        except (BackendUnavailable, BackendTimeout) as error:
            self._roster.put_off(member, model, error.message, soon)
            if isinstance(error, BackendUnavailable):
                self._roster.failed(member, error)
        except (SnapshotError, ConfigError) as error:
            self._roster.refused(member, model, error)
        else:
            if due is None:
                self._roster.put_off(member, model, "no other one says what it serves", soon)
            elif set(self._roster.due_at(member, model)) - set(due):
                self._roster.put_off(member, model, NOT_SERVED_YET, soon)  # something new has come meanwhile
            else:
                self._roster.admit(member, model)
                member.had[model] = frozenset(due)

    async def _bring(self, member: Member, model: str) -> tuple[int, ...] | None:
        """Load what the others serve, and ask each version once; returns the versions, None where nobody tells them.

        Raises what the port does. Only the load keeps other loads of the model waiting; a warm-up may take long.
        """
        async with self._roster.lock(model):
            if (example := await self._example(member, model)) is None:
                return None
            if await self._load(member, model, example):  # which may take minutes, in which others have unloaded more
                again = await self._example(member, model)
                if again is not None and again.versions != example.versions:
                    example = again
                    await self._load(member, model, example)
        for version in example.versions:
            await self._warm_up(member, model, version)
        return example.versions

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
                    self._roster.doubt(peer)
                continue
            due = self._roster.due_at(member, model)
            gone = set(self._roster.placement.versions_at(peer, model, due)) - set(serves)
            return Loaded(tuple(each for each in due if each not in gone), config)
        return None

    async def _load(self, member: Member, model: str, example: Loaded) -> bool:
        """Load what the example serves, unless it does; returns whether it had to. Raises what the port does."""
        due, has = example.versions, await member.server.serving(model)
        loads = bool(due) and has != due
        if loads:
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
        return loads

    async def _warm_up(self, member: Member, model: str, version: int) -> None:
        """One request of zeros; a model that dislikes zeros has done its work all the same.

        As large as a snapshot's where one has been seen, else as small as the model says: versions may differ in size.
        """
        seen = self._roster.shapes.get(model)
        if seen is not None:
            zeros = {name: np.zeros(shape, dtype) for name, (shape, dtype) in seen.items()}
            if await self._ask(member, model, version, zeros):
                return
        await self._ask(member, model, version, await self._zeros(member, model, version))

    async def _ask(self, member: Member, model: str, version: int, inputs: dict[str, NDArray[Any]]) -> bool:
        """Whether it takes these; raises BackendUnavailable, BackendTimeout and ModelUnavailable."""
        request = InferRequest(
            model=model,
            inputs=inputs,
            outputs=(),
            timeout_s=self._roster.limits.warm_up_s,
            version=str(version),
            warm_up=True,
        )
        try:
            await member.server.infer(request)
        except (BackendUnavailable, BackendTimeout, ModelUnavailable):
            raise
        except SnapshotError as error:
            log.info("A model does not take a request of zeros", model=model, version=version, reason=error.message)
            return False
        return True

    async def _zeros(self, member: Member, model: str, version: int) -> dict[str, NDArray[Any]]:
        """As small as the model says."""
        signature = await member.server.describe(model, version)
        return {
            spec.name: np.zeros([max(1, size) for size in spec.shape], NUMPY_TYPES[spec.datatype])
            for spec in signature.inputs
            if spec.datatype in NUMPY_TYPES
        }
