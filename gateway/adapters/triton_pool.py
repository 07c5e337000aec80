"""Several Tritons as one: the `InferenceServer` port over servers that implement it.

Each request goes to the endpoint with the fewest under way; loads go to all. An endpoint that cannot be reached is
given up until it answers again, is then brought to what the others serve, and only then takes requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from gateway.adapters.triton_pool_balance import Balancer
from gateway.adapters.triton_pool_catch_up import CatchUp
from gateway.adapters.triton_pool_loads import Loads
from gateway.adapters.triton_pool_member import Limits, Loaded, Member, PoolServer
from gateway.adapters.triton_pool_roster import NOT_SERVED_YET, Roster
from gateway.errors import BackendUnavailable, GatewayError, ModelUnavailable, SnapshotError
from gateway.messages import ModelSignature
from gateway.metrics import Metrics
from gateway.ports import Endpoint, GpuMemory, ModelStatistics
from gateway.triton_endpoints import PlacementRule

T = TypeVar("T")


class TritonPool:
    """The servers by their `host:port`; `rules` say which of them may have which model, without any all may."""

    def __init__(
        self,
        servers: Mapping[str, PoolServer],
        metrics: Metrics,
        rules: Sequence[PlacementRule] = (),
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self._roster = Roster(servers, rules, metrics, limits)
        self._balancer = Balancer(self._roster)
        self._loads = Loads(self._roster)
        self._catch_up = CatchUp(self._roster)
        # Bound here, for each call between costs every request; `Balancer` says what they do.
        self.infer = self._balancer.infer
        self.tensor = self._balancer.tensor

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """How each endpoint stands."""
        return tuple(member.endpoint() for member in self._roster.members)

    @property
    def trouble(self) -> GatewayError | None:
        """Why those that are away cannot be reached, as far as more is known."""
        found = [(member.name, trouble) for member in self._roster.members if (trouble := member.server.trouble)]
        if not found:
            return None
        said = "; ".join(f"{name}: {trouble.message}" for name, trouble in found)
        return BackendUnavailable(said, where=", ".join(name for name, _ in found), fix=found[0][1].fix)

    async def is_ready(self) -> bool:
        """True as soon as one server says that it is live; never raises."""
        if self._roster.closed:
            return False
        asked = {asyncio.create_task(each.server.is_ready()): each for each in self._roster.members}
        try:
            for answer in asyncio.as_completed(asked):
                if await answer:
                    break
        finally:
            for task in asked:
                task.cancel()
        said = {member: task.result() for task, member in asked.items() if task.done() and not task.cancelled()}
        alone = not self._roster.here()  # a pause is for the sake of the others
        for member, ready in said.items():
            if not ready:
                self._roster.failed(member, BackendUnavailable("it does not say that it is live"))
            elif alone:
                self._roster.back(member)
        return any(said.values())

    async def serving(self, model: str) -> tuple[int, ...]:
        """The versions that every member serves which takes requests for the model and may have them.

        One that all have served goes on to count while one of them does: the others have lost it, and catch up.
        Raises BackendUnavailable when no member that can be reached says anything.
        """
        answers = await self._versions(model)
        taking = [member for member in answers if model in member.admitted] or self._found(model, answers)
        agreed = self._roster.agreed.get(model, frozenset())
        served = set()
        for version in {version for versions in answers.values() for version in versions}:
            placed = self._roster.placement.of_model(model, version)
            have = [version in answers[member] for member in taking if member in placed]
            if have and (all(have) or (version in agreed and any(have))):
                served.add(version)
        if not self._roster.lock(model).locked():
            self._roster.agreed[model] = frozenset(served)
            self._compare(model, answers, taking)
        return tuple(sorted(served))

    async def load(self, model: str, versions: tuple[int, ...] = (), config: str | None = None) -> None:
        """Load at every member that may have the model; raises as the port says."""
        await self._loads.load(model, Loaded(tuple(sorted(set(versions))), config))

    async def unload(self, model: str) -> None:
        """Unload everywhere; raises as the port says."""
        await self._loads.unload(model)

    async def describe(self, model: str, version: int = 0) -> ModelSignature:
        """The signature of that version from a member that serves it; raises as `load` does."""
        placed = self._roster.placement.of_model(model, version or None)
        return await self._first(self._by_use(model, placed), lambda member: member.server.describe(model, version))

    async def gpu_memory(self) -> GpuMemory | None:
        """Of the member with the least free memory: what is loaded goes to all of them. Never raises."""
        found = await asyncio.gather(*(member.server.gpu_memory() for member in self._roster.here()))
        known = (memory for memory in found if memory is not None)
        return min(known, key=lambda memory: memory.total - memory.used, default=None)

    async def statistics(self, model: str) -> ModelStatistics:
        """Totals of all members; the memory is that of the member where the model takes most."""
        members = self._targets(self._roster.placement.of_model(model))
        asked = (member.server.statistics(model) for member in members)
        results = await asyncio.gather(*asked, return_exceptions=True)
        found = [each for each in results if isinstance(each, ModelStatistics)]
        if not found:
            raise _most_telling([each for each in results if isinstance(each, BaseException)])
        return ModelStatistics(
            success_count=sum(each.success_count for each in found),
            queue_ns=sum(each.queue_ns for each in found),
            compute_ns=sum(each.compute_ns for each in found),
            memory_bytes=max((each.memory_bytes for each in found if each.memory_bytes is not None), default=None),
            last_inference_at=max((each.last_inference_at or 0.0 for each in found), default=0.0) or None,
        )

    async def close(self) -> None:
        """Free all connections."""
        await self._roster.close()

    # --- who serves what -----------------------------------------------------------------------------

    async def _versions(self, model: str) -> dict[Member, tuple[int, ...]]:
        """What each member says that can be reached; raises BackendUnavailable when none says anything."""
        members = self._targets(self._roster.placement.of_model(model))
        results = await asyncio.gather(*(each.server.serving(model) for each in members), return_exceptions=True)
        answers: dict[Member, tuple[int, ...]] = {}
        errors: list[BaseException] = []
        for member, result in zip(members, results, strict=True):
            if isinstance(result, BaseException):
                errors.append(result)
                if isinstance(result, SnapshotError):
                    self._roster.failed(member, result)
            else:
                answers[member] = result
        if not answers:
            raise errors[0]
        return answers

    def _found(self, model: str, answers: Mapping[Member, tuple[int, ...]]) -> list[Member]:
        """Who takes requests for a model that nobody takes any for: those that serve it, else all that are there."""
        here = [member for member in answers if not member.away]
        founders = [member for member in here if answers[member]] or here
        for member in founders:
            self._roster.admit(member, model)
        return founders

    def _compare(self, model: str, answers: Mapping[Member, tuple[int, ...]], taking: Sequence[Member]) -> None:
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

    # --- asking one or all ---------------------------------------------------------------------------

    def _targets(self, placed: Sequence[Member]) -> Sequence[Member]:
        """Those that can be reached; where none can, all, so that the reason comes to light."""
        return self._roster.here(placed) or placed

    def _by_use(self, model: str, placed: Sequence[Member]) -> list[Member]:
        """Those first that take requests for the model."""
        return sorted(self._targets(placed), key=lambda member: model not in member.admitted)

    async def _first(self, members: Iterable[Member], ask: Callable[[Member], Awaitable[T]]) -> T:
        """The first answer; raises what says most when nobody gives one."""
        errors: list[BaseException] = []
        for member in members:
            try:
                return await ask(member)
            except (BackendUnavailable, ModelUnavailable) as error:
                errors.append(error)
        raise _most_telling(errors)


def _most_telling(errors: Sequence[BaseException]) -> BaseException:
    """One that says more than that a server cannot be reached, where there is one."""
    return next((error for error in errors if not isinstance(error, BackendUnavailable)), errors[0])
