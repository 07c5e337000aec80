"""Honest health: ready means that the broker session is up and subscribed, and all that can serve does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from gateway.admin.model_report import failure_in_words, is_unloaded
from gateway.admin.report import Report
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel
from gateway.ports import Broker
from gateway.rollout.commands import Commands
from gateway.rollout.state import ModelState


class TritonWatch(Protocol):
    """Who looks after Triton."""

    @property
    def triton_ready(self) -> bool:
        """Whether Triton could be reached at the last look."""
        ...

    @property
    def triton_trouble(self) -> str:
        """Why not, where that is known."""
        ...

    @property
    def triton_degraded(self) -> tuple[str, ...]:
        """Which of several are away or catching up, and why."""
        ...


class Health:
    """Puts together what the parts of a running gateway say of themselves."""

    def __init__(
        self,
        live: Live,
        broker: Broker,
        triton: TritonWatch,
        models: Models,
        metrics: Metrics,
        commands: Commands,
    ) -> None:
        self._live = live
        self._broker = broker
        self._triton = triton
        self._models = models
        self._metrics = metrics
        self._commands = commands
        self.started = False
        self.stopping = False

    def report(self) -> Report:
        """How things stand now; also brings the gauges up to date."""
        reasons = ["the gateway is shutting down"] if self.stopping else []
        degraded: list[str] = []
        if not self._broker.connected:
            reasons.append(_because("the broker session is not up", self._broker.trouble))
        if not self._triton.triton_ready:
            reasons.append(_because("Triton cannot be reached", self._triton.triton_trouble))
        degraded += self._triton.triton_degraded
        models = self._models.current.models
        unreadable = self._commands.unreadable
        if not models and not unreadable:
            reasons.append("no model.yaml in the model repository")
        for name, model in models.items():
            reasons += self._not_ready(name, model)
            degraded += self._degraded(name, model)
        for name, state in self._commands.states.items():
            if failure := failure_in_words(state):
                degraded.append(f"model '{name}': {failure}")
        degraded += [f"model '{name}': {problem}" for name, problem in self._commands.problems.items()]
        # A drop that cannot be read must not take the gateway from the models that serve.
        (degraded if self.started else reasons).extend(unreadable)
        if not self._metrics.value("config_last_reload_successful"):
            degraded.append("the configuration as it reads now cannot be used, the one before holds; see the log")
        ready = not reasons
        self.started = self.started or ready
        self._metrics.ready.set(ready)
        self._metrics.broker_connected.set(self._broker.connected)
        self._metrics.outbox_bytes.set(self._broker.backlog)
        return Report(ready, tuple(reasons), tuple(degraded))

    def _not_ready(self, name: str, model: ServedModel) -> Iterator[str]:
        """Why a model makes the gateway unready.

        One that is asleep or unloaded is as it should be. A first version that comes, or is refused, while the others
        serve must not take the gateway from them.
        """
        state = self._commands.states.get(name)
        if model.asleep or model.waking or is_unloaded(state, model) or (self.started and _is_new(state)):
            return
        if not model.ready:
            yield f"model '{name}' does not serve: {model.why_not_ready()}"
        elif model.loading:
            # It answers already, but a comparison, or the variant of somebody's choice, would be missing.
            yield f"model '{name}' serves in part: {model.why_not_ready()}"

    def _degraded(self, name: str, model: ServedModel) -> Iterator[str]:
        """What of a model does not work, or not as somebody wanted it, without making the gateway unready."""
        state = self._commands.states.get(name)
        if is_unloaded(state, model):
            yield f"model '{name}' is unloaded by command"
        elif not model.asleep and (missing := model.why_not_ready()):
            if self.started and _is_new(state):
                yield f"model '{name}' does not serve yet: {missing}"
            elif model.ready and not model.loading:
                yield f"model '{name}': {missing}"
        for (owner, variant), given_up in self._models.given_up.items():
            if owner == name:
                yield f"model '{name}': {variant} is not asked for now: {given_up.reason}"
        yield from self._not_on_gpu(model)

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


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what


def _is_new(state: ModelState | None) -> bool:
    """Whether no version of the model has been promoted so far, and one is tried or has been."""
    return state is not None and state.stable is None and state.rollout is not None
