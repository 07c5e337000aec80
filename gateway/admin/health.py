"""Honest health: ready means that the broker session is up and subscribed, and all that can serve does."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.live import Live
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel
from gateway.models.loader import Loader
from gateway.ports import Broker


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of /ready: why not, and what is degraded without making it unready."""

    ready: bool
    reasons: tuple[str, ...]
    degraded: tuple[str, ...]


class Health:
    """Puts together what the parts of a running gateway say of themselves."""

    def __init__(
        self, live: Live, broker: Broker, loader: Loader, models: Models, metrics: Metrics, refused: tuple[str, ...]
    ) -> None:
        self._live = live
        self._broker = broker
        self._loader = loader
        self._models = models
        self._metrics = metrics
        self._refused = refused
        self.started = False
        self.stopping = False

    def report(self) -> Report:
        """How things stand now; also brings the gauges up to date."""
        reasons = ["the gateway is shutting down"] if self.stopping else []
        degraded = []
        if not self._broker.connected:
            reasons.append("the broker session is not up")
        if not self._loader.triton_ready:
            reasons.append("Triton cannot be reached")
        models = self._models.current.models
        if not models and not self._refused:
            reasons.append("no model.yaml in the model repository")
        for name, model in models.items():
            if not model.ready:
                reasons.append(f"model '{name}' does not serve: {model.why_not_ready()}")
            elif model.loading:
                # It answers already, but a comparison, or the variant of somebody's choice, would be missing.
                reasons.append(f"model '{name}' serves in part: {model.why_not_ready()}")
            elif missing := model.why_not_ready():
                degraded.append(f"model '{name}': {missing}")
            degraded += self._not_on_gpu(model)
        reasons += self._refused
        if not self._metrics.value("config_last_reload_successful"):
            degraded.append("the configuration as it reads now cannot be used, the one before holds; see the log")
        ready = not reasons
        self.started = self.started or ready
        self._metrics.ready.set(ready)
        self._metrics.broker_connected.set(self._broker.connected)
        return Report(ready, tuple(reasons), tuple(degraded))

    def _not_on_gpu(self, model: ServedModel) -> list[str]:
        """The variants that run on the CPU although a GPU is wanted, by model.yaml or GPU_ENABLED."""
        wanted = model.spec.inference.gpu_enabled
        if not (self._live.current.gpu_enabled if wanted is None else wanted):
            return []
        return [
            f"model '{model.spec.name}': {variant.name} runs on the CPU, and gpu_enabled is true"
            for variant in model.variants.values()
            if variant.on_gpu is False
        ]
