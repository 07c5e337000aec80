"""What clients of KServe's Open Inference Protocol ask first: health and metadata, of the gateway's logical models."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway import __version__
from gateway.admin.answers import error_response, json_response
from gateway.admin.health import Health
from gateway.errors import ModelUnknown
from gateway.models.catalog import Models, ServedModel

PLATFORM = "triton-edge-gateway"


class KServe:
    """Tensors are Triton's business; here a model takes a picture or readings and gives the result message."""

    def __init__(self, health: Health, models: Models) -> None:
        self._health = health
        self._models = models

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        return [
            web.get("/v2", self._server),
            web.get("/v2/health/live", self._live),
            web.get("/v2/health/ready", self._ready),
            web.get("/v2/models/{model}", self._model),
            web.get("/v2/models/{model}/versions/{version}", self._model),
            web.get("/v2/models/{model}/ready", self._model_ready),
            web.get("/v2/models/{model}/versions/{version}/ready", self._model_ready),
        ]

    async def _server(self, _request: web.Request) -> web.Response:
        return json_response({"name": PLATFORM, "version": __version__, "extensions": []})

    async def _live(self, _request: web.Request) -> web.Response:
        return json_response({"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        ready = self._health.report().ready
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _model(self, request: web.Request) -> web.Response:
        model = self._find(request)
        if model is None:
            return _no_such_model(request)
        return json_response(metadata(model))

    async def _model_ready(self, request: web.Request) -> web.Response:
        model = self._find(request)
        if model is None:
            return _no_such_model(request)
        ready = model.ready or model.asleep  # which the first request wakes
        return json_response({"name": model.spec.name, "ready": ready}, 200 if ready else 503)

    def _find(self, request: web.Request) -> ServedModel | None:
        try:
            model = self._models.current.named(request.match_info["model"])
        except ModelUnknown:
            return None
        version = request.match_info.get("version")
        return model if version is None or version in versions(model) else None


def metadata(model: ServedModel) -> dict[str, Any]:
    """A model as KServe describes one; both sides are one text or picture of any length."""
    takes = "image" if model.spec.takes_pictures else "readings"
    return {
        "name": model.spec.name,
        "versions": versions(model),
        "platform": PLATFORM,
        "inputs": [{"name": takes, "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "result", "datatype": "BYTES", "shape": [1]}],
    }


def versions(model: ServedModel) -> list[str]:
    """The versions that serve in some variant."""
    return sorted({variant.version for variant in model.variants.values() if variant.version})


def _no_such_model(request: web.Request) -> web.Response:
    name = request.match_info["model"][:100]
    return error_response(404, "MODEL_UNKNOWN", f"no model '{name}' of that version", "GET /api/models lists them")
