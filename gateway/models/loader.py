"""Brings the models of the repository into service on Triton and keeps them there."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import structlog

from gateway.errors import BackendUnavailable, ConfigError, GatewayError, SnapshotError
from gateway.messages import ModelStatistics
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel, ServedVariant, State, VariantFigures
from gateway.models.repository import LogicalModel
from gateway.models.signature import fit
from gateway.ports import InferenceServer

log = structlog.get_logger(__name__)

CHECK_INTERVAL_S = 1.0
"""Between two looks at Triton; each is a cheap health call a variant."""
RETRY_REFUSED_S = 30.0
"""Until a refused variant is tried again: a file may have been mended, but Triton should not be kept busy."""


@dataclass(slots=True)
class _Watched:
    """What the loader remembers of one variant between two looks."""

    retry_at: float = 0.0
    statistics: ModelStatistics | None = None


class Loader:
    """Looks at Triton every second: loads what should serve and does not, and reports what each variant costs."""

    def __init__(self, server: InferenceServer, models: Models, logical: list[LogicalModel], metrics: Metrics) -> None:
        self._server = server
        self._models = models
        self._logical = {model.spec.name: model for model in logical}
        self._metrics = metrics
        self._watched: dict[tuple[str, str], _Watched] = {}
        self.triton_ready = False
        for model in logical:
            variants = {name: ServedVariant(name, triton) for name, triton in model.spec.variants.items()}
            self._models.put(ServedModel(model.spec, model.labels, variants))
            for name in variants:
                self._watched[model.spec.name, name] = _Watched()
                metrics.model_ready.labels(model.spec.name, name).set(0)

    async def run(self) -> None:
        """Reconcile for ever."""
        waiting = False
        while True:
            self.triton_ready = await self._server.is_ready()
            self._metrics.triton_ready.set(self.triton_ready)
            if self.triton_ready:
                waiting = False
                for name in self._logical:
                    for variant in self._models.current.models[name].variants.values():
                        await self._reconcile(name, variant)
            elif not waiting:
                waiting = True
                log.warning("Waiting for Triton", fix="Check that Triton runs and that TRITON_GRPC_URL names it")
            if not self.triton_ready:
                self._all_unavailable()
            await asyncio.sleep(CHECK_INTERVAL_S)

    def _all_unavailable(self) -> None:
        for model in self._models.current.models.values():
            for variant in model.variants.values():
                if variant.state is State.READY:
                    self._put(model.spec.name, replace(variant, state=State.LOADING, reason="Triton cannot be reached"))
                self._watched[model.spec.name, variant.name] = _Watched()

    async def _reconcile(self, name: str, variant: ServedVariant) -> None:
        watched = self._watched[name, variant.name]
        if variant.state is State.READY:
            if await self._server.is_model_ready(variant.triton_model):
                await self._measure(name, variant, watched)
                return
            log.warning("A model is gone from Triton; loading it again", model=name, variant=variant.name)
            self._put(name, replace(variant, state=State.LOADING, reason="gone from Triton, being loaded again"))
        if time.monotonic() >= watched.retry_at:
            await self._load(name, variant, watched)

    async def _load(self, name: str, variant: ServedVariant, watched: _Watched) -> None:
        started = time.monotonic()
        try:
            if not await self._server.is_model_ready(variant.triton_model):
                await self._server.load(variant.triton_model)
            signature = await self._server.describe(variant.triton_model)
            ready = fit(signature, self._logical[name], variant)
        except BackendUnavailable:
            return  # Triton went away; the next look sees it
        except (ConfigError, SnapshotError) as error:
            watched.retry_at = time.monotonic() + RETRY_REFUSED_S
            self._refuse(name, variant, error)
            return
        watched.statistics = None
        self._put(name, ready)
        log.info(
            "A model serves",
            model=name,
            variant=variant.name,
            triton_model=variant.triton_model,
            version=ready.version,
            seconds=round(time.monotonic() - started, 2),
        )

    def _refuse(self, name: str, variant: ServedVariant, error: GatewayError) -> None:
        if (variant.state, variant.reason) != (State.REFUSED, error.message):  # said once, not at every try
            log.error("A model is refused", model=name, variant=variant.name, reason=error.message, fix=error.fix)
        self._put(name, replace(variant, state=State.REFUSED, reason=error.message))

    async def _measure(self, name: str, variant: ServedVariant, watched: _Watched) -> None:
        """Mean queue and compute time of the requests since the last look, and memory, as Triton counts them."""
        try:
            now = await self._server.statistics(variant.triton_model)
        except SnapshotError:
            return  # figures are a courtesy; the next health call tells what is wrong
        before, watched.statistics = watched.statistics, now
        model = self._models.current.models[name]
        figures = model.figures.get(variant.name, VariantFigures())
        memory_mb = None if now.memory_bytes is None else now.memory_bytes / 1e6
        figures = replace(figures, memory_mb=memory_mb)
        count = now.success_count - before.success_count if before else now.success_count
        if count > 0:
            queue_ns = now.queue_ns - (before.queue_ns if before else 0)
            compute_ns = now.compute_ns - (before.compute_ns if before else 0)
            figures = replace(figures, queue_ms=queue_ns / count / 1e6, compute_ms=compute_ns / count / 1e6)
        if figures != model.figures.get(variant.name):
            self._models.put(replace(model, figures={**model.figures, variant.name: figures}))

    def _put(self, name: str, variant: ServedVariant) -> None:
        self._models.put(self._models.current.models[name].with_variant(variant))
        self._metrics.model_ready.labels(name, variant.name).set(variant.state is State.READY)
