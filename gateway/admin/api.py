"""`/api`: how things stand, for programs, and commands to models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from gateway import __version__
from gateway.admin.answers import error_response, json_response
from gateway.admin.command_desk import CommandDesk
from gateway.admin.guard import TokenGuard
from gateway.admin.health import Health
from gateway.admin.log_api import LogApi
from gateway.admin.model_actions import ModelActions
from gateway.admin.model_report import CLOSED, known_models, live_report
from gateway.admin.openapi import description
from gateway.admin.report import status_body
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.models.catalog import GivenUp, Models, ServedModel, ServedVariant
from gateway.models.input_plan import InputPlan, WindowPlan
from gateway.rollout.commands import Commands

UNSERVED: dict[str, Any] = {
    "model_type": None,
    "ready": False,
    "layout": None,
    "labels": [],
    "input_topics": [],
    "alert_classes": [],
}
"""In place of what model.yaml says, of a model that is only remembered."""


class Api:
    """State of the gateway and of its models."""

    def __init__(
        self, live: Live, health: Health, models: Models, metrics: Metrics, commands: Commands, guard: TokenGuard
    ) -> None:
        self._live = live
        self._health = health
        self._models = models
        self._metrics = metrics
        self._commands = commands
        self._actions = ModelActions(guard, CommandDesk(commands, models, metrics))
        self._log = LogApi(guard)

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        return [
            web.get("/openapi.json", self._openapi),
            web.get("/api/status", self._status),
            web.get("/api/models", self._all_models),
            web.get("/api/models/{model}", self._one_model),
            *self._actions.routes(),
            *self._log.routes(),
        ]

    async def _openapi(self, _request: web.Request) -> web.Response:
        return json_response(description(__version__))

    async def _status(self, _request: web.Request) -> web.Response:
        return json_response(self.status())

    def status(self) -> dict[str, Any]:
        """How the gateway is, in short."""
        settings, models = self._live.current, self._models.current.models
        report = self._health.report()
        return status_body(settings.place, report, self._metrics.value, models, settings.triton_endpoints)

    async def _all_models(self, _request: web.Request) -> web.Response:
        names = sorted(known_models(self._models, self._commands))
        return json_response({"models": [self._state(name) for name in names]})

    async def _one_model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name not in known_models(self._models, self._commands):
            return error_response(404, "MODEL_UNKNOWN", f"no model '{name[:100]}'", "GET /api/models lists them")
        return json_response(self._state(name))

    def _state(self, name: str) -> dict[str, Any]:
        """What serves, and how a rollout stands; a model whose first version is on its way does not serve yet."""
        served = self._models.current.models.get(name)
        report = live_report(name, self._models, self._commands)
        return {"name": report["model_name"], **report, **self._served(served)}

    def _served(self, model: ServedModel | None) -> dict[str, Any]:
        return model_state(model, self._models.given_up) if model else UNSERVED


def model_state(model: ServedModel, given_up: Mapping[tuple[str, str], GivenUp]) -> dict[str, Any]:
    """A logical model with the state of each variant; `given_up` has those whose circuit breaker is not closed."""
    spec = model.spec
    return {
        "model_type": spec.model_type,
        "ready": model.ready,
        "layout": spec.layout.name,
        "labels": model.labels,
        "input_topics": spec.mqtt.input_topics,
        "alert_classes": spec.inference.alert_classes,
        "variants": {
            name: _variant_state(variant, model, given_up.get((spec.name, name), CLOSED).state)
            for name, variant in model.variants.items()
        },
    }


def _input_size(variant: ServedVariant, model: ServedModel) -> dict[str, int] | None:
    """Of a picture in pixels, or of a window of readings; None while nothing is loaded."""
    match variant.plan:
        case InputPlan(height=height, width=width):
            return {"height": height, "width": width}
        case WindowPlan():
            return {"readings": model.spec.sensor.window, "channels": model.spec.sensor.channels}
        case None:
            return None


def _variant_state(variant: ServedVariant, model: ServedModel, breaker: str) -> dict[str, Any]:
    figures = model.figures.get(variant.name)
    return {
        "triton_model": variant.triton_model,
        "state": variant.state.value,
        "reason": variant.reason,
        "fix": variant.fix,
        "version": variant.version,
        "breaker": breaker,
        "input": _input_size(variant, model),
        "on_gpu": variant.on_gpu,
        "queue_ms": figures.queue_ms if figures else None,
        "compute_ms": figures.compute_ms if figures else None,
        "memory_mb": figures.memory_mb if figures else None,
    }
