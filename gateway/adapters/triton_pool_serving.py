"""Which versions of a model a pool serves, from what its members say at each look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from gateway.adapters.triton_pool_catch_up import CatchUp
from gateway.adapters.triton_pool_member import Member
from gateway.adapters.triton_pool_roster import NOT_SERVED_YET, Roster
from gateway.errors import BackendUnavailable

Answers = Mapping[Member, tuple[int, ...]]


class Serving:
    """Looks at the members, and leaves out those that have less than what was agreed on."""

    def __init__(self, roster: Roster, catch_up: CatchUp) -> None:
        self._roster = roster
        self._catch_up = catch_up

    async def of(self, model: str) -> tuple[int, ...]:
        """The versions that every member serves which takes requests for the model and may have them.

        One that all have served goes on to count while one of them does; the others have lost it, and catch up. Where
        somebody takes it away from one that goes on to serve others, it counts for `settle_s` only, and nobody is
        brought to it again. Raises BackendUnavailable when no member that can be reached says anything.
        """
        answers = await self._answers(model)
        settled = not self._roster.lock(model).locked()
        taking = [member for member in answers if model in member.admitted] or self._admit_founders(model, answers)
        if settled:
            self._note_what_leaves(model, answers)
        kept = self._still_counting(model)
        served = set()
        for version in {version for versions in answers.values() for version in versions}:
            placed = self._roster.placement.of_model(model, version)
            have = [version in answers[member] for member in taking if member in placed]
            if have and (all(have) or (version in kept and any(have))):
                served.add(version)
        if settled:
            self._roster.agreed[model] = frozenset(served)
            self._compare(model, answers, taking)
        return tuple(sorted(served))

    async def _answers(self, model: str) -> dict[Member, tuple[int, ...]]:
        """What each member says that can be reached; raises BackendUnavailable when none says anything."""
        members = self._roster.reachable(self._roster.placement.of_model(model))
        results = await asyncio.gather(*(each.server.serving(model) for each in members), return_exceptions=True)
        answers: dict[Member, tuple[int, ...]] = {}
        errors: list[BaseException] = []
        for member, result in zip(members, results, strict=True):
            if not isinstance(result, BaseException):
                answers[member] = result
                continue
            errors.append(result)
            if isinstance(result, BackendUnavailable):
                self._roster.doubt(member)
        if not answers:
            raise errors[0]
        return answers

    def _admit_founders(self, model: str, answers: Answers) -> list[Member]:
        """Where nobody takes requests for a model, those do now that serve it, else all that are there."""
        here = [member for member in answers if not member.away]
        founders = [member for member in here if answers[member]] or here
        for member in founders:
            self._roster.admit(member, model)
        return founders

    def _note_what_leaves(self, model: str, answers: Answers) -> None:
        """A Triton that goes on to serve other versions has not lost one by itself: somebody unloads it everywhere.

        One that serves nothing may have been restarted.
        """
        lost: set[int] = set()
        for member, has in answers.items():
            if member.away:
                continue
            if not has:
                member.had.pop(model, None)
                continue
            lost |= member.had.get(model, frozenset()) - set(has)
            if model in member.admitted:
                member.had[model] = member.had.get(model, frozenset()) | set(has)
        leaving, now = self._roster.leaving.get(model, {}), time.monotonic()
        lost &= self._roster.agreed.get(model, frozenset())
        self._roster.leaving[model] = {version: leaving.get(version, now) for version in lost}

    def _still_counting(self, model: str) -> set[int]:
        """What was agreed on, but for what left a while ago."""
        leaving, since = self._roster.leaving.get(model, {}), time.monotonic() - self._roster.limits.settle_s
        agreed = self._roster.agreed.get(model, frozenset())
        return {version for version in agreed if leaving.get(version, since + 1) > since}

    def _compare(self, model: str, answers: Answers, taking: Sequence[Member]) -> None:
        """Let those catch up that do not serve what is due."""
        for member, has in answers.items():
            if member.away:
                continue
            missing = set(self._roster.due_at(member, model)) - set(has)
            if member in taking and missing:
                self._roster.dismiss(member, model)
            elif model not in member.admitted:
                member.behind.setdefault(model, NOT_SERVED_YET)
                self._catch_up.begin(member)
