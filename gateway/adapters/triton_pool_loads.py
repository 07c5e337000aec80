"""Loading and unloading at all members of a pool: at one alone first, so that a refusal changes nothing elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from gateway.adapters.triton_pool_member import Loaded, Member
from gateway.adapters.triton_pool_roster import Roster
from gateway.errors import BackendUnavailable, ConfigError, GatewayError, ModelUnavailable, SnapshotError

log = structlog.get_logger(__name__)


class Loads:
    """Brings a model to all members that may have it; who cannot be reached catches up when it is back."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    async def load(self, model: str, wanted: Loaded) -> None:
        """Load at the first member, then at the others side by side; raises as the port says.

        Where a later one refuses, the ones before serve again what they served, and its refusal is raised.
        """
        async with self._roster.lock(model):
            agreed = self._roster.agreed.get(model, frozenset())
            if wanted.versions:  # what leaves is missed by nobody
                self._roster.agreed[model] = agreed & set(wanted.versions)
            before: dict[Member, Loaded] = {}
            try:
                done = await self._load_everywhere(model, wanted, before)
            except (SnapshotError, ConfigError):
                self._roster.agreed[model] = agreed
                raise
            if wanted.versions:
                self._roster.agreed[model] = frozenset(wanted.versions)
            else:
                self._roster.agreed.pop(model, None)  # what it is, the next look tells
            for member in done:
                self._roster.back(member)  # where none could be reached, all have been asked
            if not self._roster.taking(model):
                for member in done:
                    self._roster.admit(member, model)

    async def unload(self, model: str) -> None:
        """Unload at all members that can be reached; the others do it when they are back. Raises as the port says."""
        async with self._roster.lock(model):
            self._roster.agreed[model] = frozenset()
            members = self._targets(self._roster.placement.of_model(model))
            results = await asyncio.gather(*(each.server.unload(model) for each in members), return_exceptions=True)
            errors = [error for error in results if error is not None]
            for member, error in zip(members, results, strict=True):
                member.loaded.pop(model, None)
                if isinstance(error, BackendUnavailable):
                    self._roster.failed(member, error)
            self._owe(model, (member for member, error in zip(members, results, strict=True) if error is not None))
            self._owe(model, (member for member in self._roster.members if member.away))
            if refusal := _worst(errors, len(members)):
                raise refusal

    def _owe(self, model: str, members: Iterable[Member]) -> None:
        for member in members:
            member.owed.add(model)

    def _targets(self, members: Iterable[Member]) -> list[Member]:
        """Those that can be reached; where none can, all, so that the reason comes to light."""
        placed = list(members)
        return self._roster.here(placed) or placed

    async def _load_everywhere(self, model: str, wanted: Loaded, before: dict[Member, Loaded]) -> list[Member]:
        """Load; returns the members that have it now. `before` takes down what each of them served."""
        members = self._targets(self._roster.placement.of_model(model))
        done: list[Member] = []
        unreached: list[BaseException] = []
        for member in members:
            try:
                await self._load_at(member, model, wanted, before)
            except BackendUnavailable as error:
                self._roster.failed(member, error)
                unreached.append(error)
                continue
            done.append(member)
            break
        others = members[len(unreached) + len(done) :]
        tasks = (self._load_at(member, model, wanted, before) for member in others)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for member, result in zip(others, results, strict=True):
            if isinstance(result, BackendUnavailable):
                self._roster.failed(member, result)
        done += [member for member, result in zip(others, results, strict=True) if result is None]
        errors = [*unreached, *(result for result in results if result is not None)]
        if refusal := _worst(errors, len(members)):
            await asyncio.gather(*(self._put_back(member, model, before[member]) for member in done))
            raise refusal
        return done

    async def _load_at(self, member: Member, model: str, wanted: Loaded, before: dict[Member, Loaded]) -> None:
        """Load the versions that may be there; where none may, unload what is."""
        serves = await member.server.serving(model)
        before[member] = await self._as_loaded(member, model, serves)
        versions = self._roster.placement.versions_at(member, model, wanted.versions)
        if versions or not wanted.versions:
            await member.server.load(model, versions, wanted.config)
            member.loaded[model] = Loaded(versions, wanted.config)
        elif serves:
            await member.server.unload(model)
            member.loaded.pop(model, None)
        member.owed.discard(model)

    async def _as_loaded(self, member: Member, model: str, serves: tuple[int, ...]) -> Loaded:
        """How to load again what a member serves now: as it was loaded from here, else with what it says itself."""
        known = member.loaded.get(model)
        if known is not None and known.versions in ((), serves):
            return known
        try:
            return Loaded(serves, await member.server.configuration(model) if serves else None)
        except ModelUnavailable:
            return Loaded((), None)

    async def _put_back(self, member: Member, model: str, before: Loaded) -> None:
        try:
            if before.versions:
                await member.server.load(model, before.versions, before.config)
                member.loaded[model] = before
            else:
                await member.server.unload(model)
                member.loaded.pop(model, None)
        except GatewayError as error:
            self._roster.dismiss(member, model)
            log.warning(
                "An endpoint of Triton could not be put back after a refused load",
                endpoint=member.name,
                model=model,
                reason=error.message,
                fix=error.fix,
            )


def _worst(errors: list[BaseException], of: int) -> BaseException | None:
    """What is to be raised: a refusal, or that all of them cannot be reached; None: some of them have done it."""
    refusals = [error for error in errors if not isinstance(error, BackendUnavailable)]
    if refusals:
        return refusals[0]
    return errors[0] if errors and len(errors) == of else None
