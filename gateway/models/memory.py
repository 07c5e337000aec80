"""Memory of the loaded models: what nobody asks for is unloaded, and what does not fit the budget is not loaded."""

from __future__ import annotations

import asyncio

import structlog

from gateway.errors import ConfigError
from gateway.live import Live
from gateway.models.catalog import State
from gateway.models.figures import Measurements
from gateway.models.fleet import Fleet, Key
from gateway.models.release import Release

log = structlog.get_logger(__name__)

INTERVAL_S = 1.0
TIMES_THE_FILE = 2.0
"""What a model takes of which Triton has not said it yet, by the size of its files."""
LEAST_IDLE_S = 5.0
"""A model that was asked more recently is not unloaded for another one: they would take turns for ever."""


class Memory:
    """Puts models to sleep, and makes room for others."""

    def __init__(self, live: Live, fleet: Fleet, figures: Measurements) -> None:
        self._live = live
        self._fleet = fleet
        self._figures = figures
        self._known: dict[str, float] = {}
        """Megabytes by Triton model, as last measured."""

    async def run(self) -> None:
        """Put to sleep what nobody asks for, for ever."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            limit_s = self._live.current.model_idle_unload_s
            for name in list(self._fleet.shelves) if limit_s is not None else ():
                idle_s = self._idle_s(name)
                if idle_s is not None and limit_s is not None and idle_s >= limit_s:
                    log.info("A model that nobody asks for is unloaded", model=name, idle_s=round(idle_s))
                    self._fleet.take_out(name, State.ASLEEP)

    def admit(self, key: Key, release: Release, loaded: set[str]) -> bool:
        """Whether it may be loaded now beside these Triton models; False: soon, when others have made room for it.

        Raises ConfigError when it does not fit into MODEL_MEMORY_BUDGET_MB.
        """
        settings = self._live.current
        budget = settings.model_memory_budget_mb
        if budget is None:
            return True
        triton_model = release.placements[key[2]].triton_model
        need = self._need(triton_model, release)
        taken = sum(self._need(each, None) for each in loaded)
        if taken + need <= budget:
            return True
        if self._fleet.leaving & loaded:
            return False
        if settings.model_memory_policy == "evict" and need <= budget and (name := self._least_recent(key[0])):
            log.info("A model is unloaded to make room", model=name, for_model=key[0], budget_mb=budget)
            self._fleet.take_out(name, State.ASLEEP)
            return False
        raise ConfigError(
            f"it takes about {need:.0f} MB, and {max(0.0, budget - taken):.0f} MB are left of the budget of {budget:g}",
            where=f"Triton model '{triton_model}'",
            fix="Raise MODEL_MEMORY_BUDGET_MB, unload another model, or set MODEL_MEMORY_POLICY=evict",
        )

    def _need(self, triton_model: str, release: Release | None) -> float:
        """Megabytes of a Triton model, measured where it is loaded, else by its files."""
        measured = self._figures.memory_bytes(triton_model)
        if measured is not None:
            self._known[triton_model] = measured / 1e6
        if triton_model in self._known:
            return self._known[triton_model]
        if release is None:
            release = next((found[max(found)] for name, found in self._fleet.wanted().items() if name == triton_model),
                           None)  # fmt: skip
        if release is None:
            return 0.0
        return release.file_bytes / max(1, len(release.placements)) * TIMES_THE_FILE / 1e6

    def _least_recent(self, beside: str) -> str | None:
        """The model that nobody has asked for longest; None when all are in use."""
        idle = {name: self._idle_s(name) for name in self._fleet.shelves if name != beside}
        asleep = {name: idle_s for name, idle_s in idle.items() if idle_s is not None and idle_s >= LEAST_IDLE_S}
        return max(asleep, key=lambda name: asleep[name]) if asleep else None

    def _idle_s(self, name: str) -> float | None:
        """For how long nobody has asked a model; None when it does not just serve, without a rollout under way."""
        shelf = self._fleet.shelves[name]
        if shelf.stable is None or shelf.out is not None or set(shelf.releases) != {shelf.stable}:
            return None
        model = shelf.held[shelf.stable]
        serving = [each.triton_model for each in model.variants.values() if each.state is State.READY]
        if not serving or model.loading:
            return None
        idle = [self._figures.idle_s(triton_model) for triton_model in serving]
        return None if None in idle else min(each for each in idle if each is not None)
