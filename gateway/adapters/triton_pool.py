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
from gateway.adapters.triton_pool_member import Limits, Loaded, Member, PoolServer, most_telling
from gateway.adapters.triton_pool_roster import Roster
from gateway.adapters.triton_pool_serving import Serving
from gateway.adapters.triton_pool_statistics import Statistics
from gateway.errors import BackendUnavailable, GatewayError, ModelUnavailable
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
        catch_up = CatchUp(self._roster)
        self._loads = Loads(self._roster, catch_up)
        self._serving = Serving(self._roster, catch_up)
        self._statistics = Statistics(self._roster)
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
        """True as soon as one server says that it is live; the others are asked to the end. Never raises."""
        if self._roster.closed:
            return False
        asked = {self._roster.check(member) for member in self._roster.members}
        while asked:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            if any(not each.cancelled() and each.result() for each in done):
                return True
        return False

    async def serving(self, model: str) -> tuple[int, ...]:
        """The versions that every member serves which takes requests for the model and may have them.

        Raises BackendUnavailable when no member that can be reached says anything.
        """
        return await self._serving.of(model)

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
        return await self._statistics.of(model)

    async def close(self) -> None:
        """Free all connections."""
        await self._roster.close()

    # --- asking one or all ---------------------------------------------------------------------------

    def _by_use(self, model: str, placed: Sequence[Member]) -> list[Member]:
        """Those first that take requests for the model."""
        return sorted(self._roster.reachable(placed), key=lambda member: model not in member.admitted)

    async def _first(self, members: Iterable[Member], ask: Callable[[Member], Awaitable[T]]) -> T:
        """The first answer; raises what says most when nobody gives one."""
        errors: list[BaseException] = []
        for member in members:
            try:
                return await ask(member)
            except (BackendUnavailable, ModelUnavailable) as error:
                errors.append(error)
        raise most_telling(errors)
