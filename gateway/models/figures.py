"""What each variant costs, as Triton counts it: time in its queue and computing, memory, and when it was last asked."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from gateway.errors import SnapshotError
from gateway.models.catalog import Models, State, VariantFigures
from gateway.models.fleet import Fleet
from gateway.ports import InferenceServer, ModelStatistics

INTERVAL_S = 1.0


@dataclass(slots=True)
class _Seen:
    statistics: ModelStatistics | None = None
    since: float = 0.0


class Measurements:
    """Reads Triton's figures of everything that serves."""

    def __init__(self, server: InferenceServer, models: Models, fleet: Fleet) -> None:
        self._server = server
        self._models = models
        self._fleet = fleet
        self._seen: dict[str, _Seen] = {}

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            names = {
                variant.triton_model: (name, variant.name)
                for name, model in self._models.current.models.items()
                for variant in model.variants.values()
                if variant.state is State.READY
            }
            self._seen = {name: seen for name, seen in self._seen.items() if name in names}
            await asyncio.gather(*(self._measure(triton, *whose) for triton, whose in names.items()))
            await asyncio.sleep(INTERVAL_S)

    def memory_bytes(self, triton_model: str) -> int | None:
        """What Triton last said that the model takes, all its versions together."""
        seen = self._seen.get(triton_model)
        return seen.statistics.memory_bytes if seen and seen.statistics else None

    def idle_s(self, triton_model: str) -> float | None:
        """For how long nobody has asked it, whichever gateway; None when it does not serve, or is not known yet."""
        seen = self._seen.get(triton_model)
        if seen is None or seen.statistics is None:
            return None
        asked_at = seen.statistics.last_inference_at
        here = time.monotonic() - seen.since
        return here if asked_at is None else min(here, max(0.0, time.time() - asked_at))

    async def _measure(self, triton_model: str, name: str, variant: str) -> None:
        """Mean queue and compute time of the requests since the last time, and memory."""
        seen = self._seen.setdefault(triton_model, _Seen(since=time.monotonic()))
        try:
            now = await self._server.statistics(triton_model)
        except SnapshotError:
            return  # figures are a courtesy; the loader's watch tells what is wrong
        before, seen.statistics = seen.statistics, now
        model = self._models.current.models.get(name)
        if model is None:
            return
        memory_mb = None if now.memory_bytes is None else now.memory_bytes / 1e6
        figures = replace(model.figures.get(variant, VariantFigures()), memory_mb=memory_mb)
        count = now.success_count - before.success_count if before else now.success_count
        if count > 0:
            queue_ns = now.queue_ns - (before.queue_ns if before else 0)
            compute_ns = now.compute_ns - (before.compute_ns if before else 0)
            figures = replace(figures, queue_ms=queue_ns / count / 1e6, compute_ms=compute_ns / count / 1e6)
        self._fleet.put_figures(name, variant, figures)
