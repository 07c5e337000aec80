"""The description of the HTTP side as OpenAPI 3.1; a test holds it against the routes that are served."""

from __future__ import annotations

from typing import Any

from gateway.admin.model_report import Status
from gateway.models.catalog import State
from gateway.rollout.commands import Action
from gateway.rollout.steps import Ending, Step

_TEXT = {"type": "string"}
_MAYBE_TEXT = {"type": ["string", "null"]}
_VERSION = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
_MAYBE_VERSION = {**_VERSION, "type": ["integer", "null"]}
_NUMBER = {"type": "number"}
_MAYBE_NUMBER = {"type": ["number", "null"]}
_TEXTS = {"type": "array", "items": _TEXT}
_OF_EVERY_PAGE = {
    "400": "The request is no HTTP, or a parameter or the body cannot be read",
    "404": "There is no such page, or what it is about does not exist",
    "408": "The request did not come in time",
    "415": "The body is compressed",
    "417": "`Expect` asks for something else than 100-continue",
    "431": "The request line or the headers are too large",
    "500": "A defect of the gateway",
}
"""What any page may answer that says nothing else of the status."""


def description(version: str) -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Triton Edge Gateway",
            "version": version,
            "description": "Probes, metrics, state, commands to models, and one picture at a time.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _with_usual_answers({**_probes(), **_state(), **_commands(), **_infer(), **_kserve()}),
        "components": {"schemas": _schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _with_usual_answers(paths: dict[str, Any]) -> dict[str, Any]:
    """The paths, each operation with the answers that every one may give."""
    usual = {status: _json(text, _ref("Error")) for status, text in _OF_EVERY_PAGE.items()}
    return {
        path: {
            method: {**operation, "responses": {**usual, **operation["responses"]}}
            for method, operation in operations.items()
        }
        for path, operations in paths.items()
    }


def _probes() -> dict[str, Any]:
    live = _get("live", "The process runs", {"200": _json("It does", _object(status=_TEXT))}, "probes")
    reasons = _object(status=_TEXT, reasons=_TEXTS, degraded=_TEXTS)
    answers = {"200": _json("Ready", reasons), "503": _json("Not ready, and why", reasons)}
    started = {"200": _json("It has been ready", reasons), "503": _json("Not yet, and why", reasons)}
    text = {"200": {"description": "Prometheus' text format", "content": {"text/plain": {"schema": _TEXT}}}}
    return {
        "/live": live,
        "/healthz": _get("healthz", "As /live", live["get"]["responses"], "probes"),
        "/ready": _get("ready", "The broker session is up and every model serves", answers, "probes"),
        "/readyz": _get("readyz", "As /ready", answers, "probes"),
        "/startup": _get("startup", "It has been ready once", started, "probes"),
        "/metrics": _get("metrics", "Metrics for Prometheus", text, "probes"),
    }


def _state() -> dict[str, Any]:
    model, error = _ref("Model"), _ref("Error")
    one = {"200": _json("The model", model), "404": _json("There is no such model", error)}
    return {
        "/openapi.json": _get(
            "openapi", "This description", {"200": _json("OpenAPI 3.1", {"type": "object"})}, "state"
        ),
        "/api/status": _get("status", "How the gateway is", {"200": _json("State", _ref("Status"))}, "state"),
        "/api/models": _get(
            "models", "All models", {"200": _json("Models", _object(models={"type": "array", "items": model}))}, "state"
        ),
        "/api/models/{model}": _get("model", "One model", one, "state", [_path("model", "Name of a logical model")]),
    }


def _commands() -> dict[str, Any]:
    refused = {
        "400": "The body or the version cannot be read",
        "401": "The token was not given",
        "403": "The gateway has no token, so commands are off; or a browser sends it for another site",
        "404": "There is no such model or version",
        "408": "The request did not come in time",
        "409": "Another gateway runs the rollouts, or there is nothing to do",
        "413": "The body is too large",
        "429": "Too many tries without the right token; Retry-After says when the next one is heard",
        "500": "It was tried and failed",
    }
    answers = {status: _json(text, _ref("Error")) for status, text in refused.items()}
    schema = {**_object(version=_MAYBE_VERSION), "additionalProperties": False}
    body = {"required": False, "content": {"application/json": {"schema": schema}}}
    action = _path("action", "What to do with it")
    action["schema"] = {"enum": [*Action]}
    parameters = [
        _path("model", "Name of a logical model"),
        action,
        _query("version", "Version, here or in the body", _VERSION),
    ]
    return {
        "/api/models/{model}/{action}": {
            "post": {
                "operationId": "command",
                "summary": "Command a model",
                "description": "A rollout that it begins goes on after the answer; the model's state tells how.",
                "tags": ["commands"],
                "parameters": parameters,
                "requestBody": body,
                "responses": {"202": _json("What happens now", _object(message=_TEXT)), **answers},
                "security": [{"token": []}],
            }
        }
    }


def _infer() -> dict[str, Any]:
    picture = {"schema": {"type": "string", "format": "binary"}}
    content = {
        "image/*": picture,
        "application/octet-stream": picture,
        "multipart/form-data": {"schema": _object(image={"type": "string", "format": "binary"})},
        "application/json": {"schema": _ref("Snapshot")},
    }
    refused = {
        "400": "The body or a parameter cannot be read",
        "401": "A token is configured and was not given",
        "403": "A browser sends it for another site",
        "404": "There is no such model or variant",
        "408": "The body did not come in time",
        "413": "The body or the picture is too large",
        "422": "The picture cannot be decoded",
        "429": "Too many tries without the right token; Retry-After says when the next one is heard",
        "500": "A defect of the gateway",
        "502": "The variant failed or answered what cannot be read",
        "503": "The model does not serve now, or too much is under way; Retry-After says when to come back",
        "504": "No answer within the deadline",
    }
    answers = {status: _json(text, _ref("Error")) for status, text in refused.items()}
    parameters = [
        _query("model", "Model; without it one whose input_topics fit http/v1/infer (`#` does), else the only one"),
        _query("variant", "Variant that answers: `onnx`, `torch`, another of the model, or `dual`"),
        _query("device", "device_id of the result; zones of model.yaml go by it"),
    ]
    return {
        "/v1/infer": {
            "post": {
                "operationId": "infer",
                "summary": "Ask about one picture or window of readings",
                "description": "The answer is the result message, as it would be published over MQTT.",
                "tags": ["inference"],
                "parameters": parameters,
                "requestBody": {"required": True, "content": content},
                "responses": {"200": _json("The result message", _ref("Result")), **answers},
                "security": [{}, {"token": []}],
            }
        }
    }


def _kserve() -> dict[str, Any]:
    model, version = _path("model", "Name of a logical model"), _path("version", "Version that serves")
    ready = {"200": _json("Ready", {"type": "object"}), "503": _json("Not ready", {"type": "object"})}
    missing = {"404": _json("There is no such model", _ref("Error"))}
    about = {"200": _json("Metadata", {"type": "object"}), **missing}
    every = {
        "/v2": _get("v2", "Name and version", {"200": _json("Metadata", {"type": "object"})}, "kserve"),
        "/v2/health/live": _get("v2-live", "Liveness", {"200": _json("Live", {"type": "object"})}, "kserve"),
        "/v2/health/ready": _get("v2-ready", "Readiness", ready, "kserve"),
    }
    for path, parameters in (("", [model]), ("/versions/{version}", [model, version])):
        name = "v2-version" if path else "v2-model"
        every[f"/v2/models/{{model}}{path}"] = _get(name, "Metadata of a model", about, "kserve", parameters)
        every[f"/v2/models/{{model}}{path}/ready"] = _get(
            f"{name}-ready", "Readiness of a model", {**ready, **missing}, "kserve", parameters
        )
    return every


def _schemas() -> dict[str, Any]:
    variant = _object(
        triton_model=_TEXT, state={"enum": [*State, None]}, reason=_TEXT, fix=_TEXT, version=_TEXT,
        breaker={"enum": ["closed", "open", "half_open", None]},
        input={"type": ["object", "null"]}, on_gpu={"type": ["boolean", "null"]},
        queue_ms=_MAYBE_NUMBER, compute_ms=_MAYBE_NUMBER, memory_mb=_MAYBE_NUMBER,
    )  # fmt: skip
    return {
        "Error": _object(error=_object(code=_TEXT, message=_TEXT, fix=_TEXT)),
        "Status": _object(
            version=_TEXT, business_unit=_TEXT, facility=_TEXT, gateway_id=_TEXT,
            status={"enum": ["ready", "not_ready"]}, reasons=_TEXTS, degraded=_TEXTS,
            broker_connected={"type": "boolean"}, triton_ready={"type": "boolean"},
            snapshots_received={"type": "integer"},
            snapshots={"type": "object", "additionalProperties": {"type": "integer"}},
            queue=_object(messages={"type": "integer"}, bytes={"type": "integer"}), models=_TEXTS,
        ),
        "Model": _object(
            name=_TEXT, model_type=_MAYBE_TEXT, ready={"type": "boolean"}, layout=_MAYBE_TEXT, labels=_TEXTS,
            input_topics=_TEXTS, alert_classes=_TEXTS, variants={"type": "object", "additionalProperties": variant},
            model_name=_TEXT, status={"enum": [*Status]}, version=_MAYBE_VERSION, previous_version=_MAYBE_VERSION,
            rollout={"oneOf": [_ref("Rollout"), {"type": "null"}]},
            refused={"type": "array", "items": _ref("Refusal")}, roller=_TEXT,
        ),
        "Rollout": _object(
            version=_VERSION, step={"enum": [*Step]}, ending={"enum": [*Ending]}, percent={"type": "integer"},
            progress=_TEXT, reason=_TEXT, fix=_TEXT, started_at=_NUMBER, ended_at=_MAYBE_NUMBER,
            steps={"type": "array", "items": _object(step={"enum": [*Step]}, seconds=_NUMBER, note=_TEXT)},
        ),
        "Refusal": _object(version=_VERSION, step={"enum": [*Step]}, reason=_TEXT, fix=_TEXT, at=_NUMBER),
        "Snapshot": _object(
            device_id=_TEXT, timestamp={"type": ["number", "string"]}, image_data=_TEXT,
            values={"type": "array", "items": _NUMBER}, metadata={"type": "object"}, model_name=_TEXT,
            backend_preference=_TEXT,
        ),
        "Result": _object(
            message_type=_TEXT, result_id=_TEXT, timestamp={"type": ["number", "string"]}, device_id=_TEXT,
            model_name=_TEXT, model_version=_TEXT, backend_used=_TEXT, inference_time_ms=_NUMBER,
            predictions={"type": "array", "items": {"type": "object"}}, metadata={"type": "object"},
        ),
    }  # fmt: skip


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _get(
    name: str, summary: str, responses: dict[str, Any], tag: str, parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    operation = {"operationId": name, "summary": summary, "tags": [tag], "responses": responses}
    return {"get": {**operation, "parameters": parameters} if parameters else operation}


def _path(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": text, "schema": _TEXT}


def _query(name: str, text: str, schema: dict[str, Any] = _TEXT) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}
