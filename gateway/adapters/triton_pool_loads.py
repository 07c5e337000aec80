"""Loading and unloading at all members of a pool: at one alone first, so that a refusal changes nothing elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from gateway.adapters.triton_pool_catch_up import CatchUp
from gateway.adapters.triton_pool_member import Loaded, Member, most_telling
from gateway.adapters.triton_pool_roster import NOT_SERVED_YET, Roster
from gateway.errors import BackendUnavailable, ConfigError, GatewayError, ModelUnavailable, SnapshotError

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Load:
    """One load of a model at the members, and what has come of it so far."""

    model: str
    wanted: Loaded
    done: list[Member] = field(default_factory=list)
    errors: dict[Member, BaseException] = field(default_factory=dict)
    before: dict[Member, Loaded | None] = field(default_factory=dict)
    """How to load what each of them served; None: nothing."""


class Loads:
    """Brings a model to all members that may have it; who cannot be reached catches up when it is back."""

    def __init__(self, roster: Roster, catch_up: CatchUp) -> None:
        self._roster = roster
        self._catch_up = catch_up

    async def load(self, model: str, wanted: Loaded) -> None:
        """Load at the first member, then at the others side by side; raises as the port says.

        Where one refuses that takes requests for the model, those before it serve again what they served, and its
        refusal is raised. One that takes none catches up later: while nobody serves the model, as after a power cut,
        one that has lost its files does not take it from the others.
        """
        self._catch_up.stop(model)
        async with self._roster.lock(model):
            self._roster.forget(model)
            agreed = self._roster.agreed.get(model, frozenset())
            if wanted.versions:  # what leaves is missed by nobody
                self._roster.agreed[model] = agreed & set(wanted.versions)
            load = _Load(model, wanted)
            try:
                await self._load_everywhere(load)
            except BaseException:  # where it was called off, too: who has it already is brought back by the next looks
                self._roster.agreed[model] = agreed
                raise
            if wanted.versions:
                self._roster.agreed[model] = frozenset(wanted.versions)
            else:
                self._roster.agreed.pop(model, None)  # what it is, the next look tells
            for member in load.done:
                self._roster.back(member)  # where none could be reached, all have been asked
                member.had[model] = frozenset(self._roster.placement.versions_at(member, model, wanted.versions))
            if not any(model in member.admitted for member in load.done):
                for member in load.done:
                    self._roster.admit(member, model)
            for member in self._roster.placement.of_model(model):
                if member not in load.done:
                    self._leave_behind(member, model, load.errors.get(member))

    async def unload(self, model: str) -> None:
        """Unload at all members that can be reached; the others do it when they are back. Raises as the port says."""
        self._catch_up.stop(model)
        async with self._roster.lock(model):
            self._roster.forget(model)
            agreed, self._roster.agreed[model] = self._roster.agreed.get(model, frozenset()), frozenset()
            members = self._roster.reachable(self._roster.placement.of_model(model))
            calls = (self._roster.while_here(each, each.server.unload, model) for each in members)
            try:
                results = await asyncio.gather(*calls, return_exceptions=True)
            except asyncio.CancelledError:
                self._roster.agreed[model] = agreed
                raise
            errors = [error for error in results if error is not None]
            for member, error in zip(members, results, strict=True):
                member.loaded.pop(model, None)
                if isinstance(error, BackendUnavailable):
                    self._roster.failed(member, error)
            self._owe(model, (member for member, error in zip(members, results, strict=True) if error is not None))
            self._owe(model, (member for member in self._roster.members if member.away))
            refusals = [error for error in errors if not isinstance(error, BackendUnavailable)]
            if refusals or len(errors) == len(members):
                raise most_telling(errors)

    def _leave_behind(self, member: Member, model: str, error: BaseException | None) -> None:
        """It has not loaded what the others have."""
        self._roster.dismiss(member, model)
        if isinstance(error, GatewayError) and not isinstance(error, BackendUnavailable):
            self._roster.refused(member, model, error)
        elif model not in member.behind:
            self._roster.put_off(member, model, NOT_SERVED_YET, self._roster.limits.first_pause_s)

    def _owe(self, model: str, members: Iterable[Member]) -> None:
        for member in members:
            member.owed.add(model)

    async def _load_everywhere(self, load: _Load) -> None:
        """Load, and take down what came of it; raises the refusal of one that serves the model, or when none does."""
        taking = self._roster.taking(load.model)
        reachable = self._roster.reachable(self._roster.placement.of_model(load.model))
        left = sorted(reachable, key=lambda member: member not in taking)
        while left and not load.done:
            await self._load_at_each([left.pop(0)], load)
            _raise_refusal(load, taking)
        await self._load_at_each(left, load)
        try:
            _raise_refusal(load, taking)
        except (SnapshotError, ConfigError):
            await asyncio.gather(*(self._put_back(each, load.model, load.before[each]) for each in load.done))
            raise
        if not load.done:
            raise most_telling(list(load.errors.values()))

    async def _load_at_each(self, members: Sequence[Member], load: _Load) -> None:
        """Load side by side."""
        calls = (self._roster.while_here(each, self._load_at, each, load) for each in members)
        for member, error in zip(members, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if error is None:
                load.done.append(member)
                continue
            load.errors[member] = error
            if isinstance(error, BackendUnavailable):
                self._roster.failed(member, error)

    async def _load_at(self, member: Member, load: _Load) -> None:
        """Load the versions that may be there; where none may, unload what is."""
        model, wanted = load.model, load.wanted
        serves = await member.server.serving(model)
        load.before[member] = await self._as_loaded(member, model, serves)
        versions = self._roster.placement.versions_at(member, model, wanted.versions)
        if versions or not wanted.versions:
            await member.server.load(model, versions, wanted.config)
            member.loaded[model] = Loaded(versions, wanted.config)
        elif serves:
            await member.server.unload(model)
            member.loaded.pop(model, None)
        member.owed.discard(model)

    async def _as_loaded(self, member: Member, model: str, serves: tuple[int, ...]) -> Loaded | None:
        """How to load again what a member serves now: as it was loaded from here, else with what it says itself."""
        if not serves:
            return None
        known = member.loaded.get(model)
        if known is not None and known.versions in ((), serves):
            return known
        try:
            return Loaded(serves, await member.server.configuration(model))
        except ModelUnavailable:
            return None

    async def _put_back(self, member: Member, model: str, before: Loaded | None) -> None:
        try:
            if before is not None:
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


def _raise_refusal(load: _Load, taking: Sequence[Member]) -> None:
    """Raise what one says that has served the model to cameras, unless it is that it cannot be reached.

    A defect of the gateway's own counts wherever it shows.
    """
    for member, error in load.errors.items():
        if isinstance(error, BackendUnavailable):
            continue
        if not isinstance(error, GatewayError) or (member in taking and load.before.get(member) is not None):
            raise error
