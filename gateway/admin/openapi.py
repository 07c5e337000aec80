"""The description of the HTTP side as OpenAPI 3.1; a test holds it against the routes that are served."""

from __future__ import annotations

from typing import Any

from gateway.admin.model_report import Status
from gateway.admin.openapi_console import console_paths, console_schemas
from gateway.admin.openapi_forms import (
    MAYBE_NUMBER,
    MAYBE_TEXT,
    MAYBE_VERSION,
    NUMBER,
    TEXT,
    TEXTS,
    VERSION,
    get,
    in_path,
    json_of,
    object_of,
    query,
    ref,
)
from gateway.admin.reading import OPEN
from gateway.log_level import MAX_FOR_S
from gateway.log_memory import LEVELS
from gateway.models.catalog import State
from gateway.rollout.commands import Action
from gateway.rollout.steps import Ending, Step

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

_OF_READING = {
    "401": "API_READ_TOKEN_FILE is set, and neither its token nor that of API_TOKEN_FILE was given",
    "429": "Too many tries without the right token; Retry-After says when the next one is heard",
}
"""What every page below /api/ may answer to who looks."""


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
        "paths": _with_usual_answers(
            {**_probes(), **_state(), **_log(), **_commands(), **_infer(), **_kserve(), **console_paths()}
        ),
        "components": {"schemas": _schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _with_usual_answers(paths: dict[str, Any]) -> dict[str, Any]:
    """The paths, each operation with the answers that every one of its kind may give."""
    return {
        path: {
            method: _with_usual_answer(operation, reads=method == "get" and path.startswith("/api/") and path != OPEN)
            for method, operation in operations.items()
        }
        for path, operations in paths.items()
    }


def _with_usual_answer(operation: dict[str, Any], *, reads: bool) -> dict[str, Any]:
    texts = {**_OF_EVERY_PAGE, **(_OF_READING if reads else {})}
    usual = {status: json_of(text, ref("Error")) for status, text in texts.items()}
    security: dict[str, Any] = {"security": [{}, {"token": []}]} if reads else {}
    return {**operation, **security, "responses": {**usual, **operation["responses"]}}


def _probes() -> dict[str, Any]:
    live = get("live", "The process runs", {"200": json_of("It does", object_of(status=TEXT))}, "probes")
    reasons = object_of(status=TEXT, reasons=TEXTS, degraded=TEXTS)
    answers = {"200": json_of("Ready", reasons), "503": json_of("Not ready, and why", reasons)}
    started = {"200": json_of("It has been ready", reasons), "503": json_of("Not yet, and why", reasons)}
    text = {"200": {"description": "Prometheus' text format", "content": {"text/plain": {"schema": TEXT}}}}
    return {
        "/live": live,
        "/healthz": get("healthz", "As /live", live["get"]["responses"], "probes"),
        "/ready": get("ready", "The broker session is up and every model serves", answers, "probes"),
        "/readyz": get("readyz", "As /ready", answers, "probes"),
        "/startup": get("startup", "It has been ready once", started, "probes"),
        "/metrics": get("metrics", "Metrics for Prometheus", text, "probes"),
    }


def _state() -> dict[str, Any]:
    model, error = ref("Model"), ref("Error")
    one = {"200": json_of("The model", model), "404": json_of("There is no such model", error)}
    return {
        "/openapi.json": get(
            "openapi", "This description", {"200": json_of("OpenAPI 3.1", {"type": "object"})}, "state"
        ),
        "/api/status": get("status", "How the gateway is", {"200": json_of("State", ref("Status"))}, "state"),
        "/api/models": get(
            "models",
            "All models",
            {"200": json_of("Models", object_of(models={"type": "array", "items": model}))},
            "state",
        ),
        "/api/models/{model}": get("model", "One model", one, "state", [in_path("model", "Name of a logical model")]),
    }


def _log() -> dict[str, Any]:
    level = {"enum": [*LEVELS]}
    state = object_of(level=level, configured=level, until=MAYBE_NUMBER)
    events = {"type": "array", "items": object_of(timestamp=TEXT, level=TEXT, event=TEXT)}
    log = object_of(**state["properties"], events=events)
    parameters = [
        query("level", "Events of this level or a higher one", level),
        query("contains", "Events with this text in them, in upper or lower case", {**TEXT, "maxLength": 200}),
        query("limit", "The newest so many", {"type": "integer", "minimum": 1, "maximum": 500}),
    ]
    refused = {
        "400": "The body cannot be read, or names no level",
        "401": "The token was not given",
        "403": "The gateway has no token, so the level cannot be set; or a browser sends it for another site",
        "408": "The request did not come in time",
        "413": "The body is too large",
        "429": "Too many tries without the right token; Retry-After says when the next one is heard",
    }
    seconds = {"type": ["number", "null"], "minimum": 1, "maximum": MAX_FOR_S}
    schema = object_of(level={"enum": [*LEVELS, None]}, for_s=seconds) | {"additionalProperties": False}
    choose = {
        "operationId": "log-level",
        "summary": "Set the level of the log",
        "description": "Until `for_s` are over, LOG_LEVEL changes or the gateway ends; null: the configured one.",
        "tags": ["commands"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": json_of("The level that holds now", state),
            **{status: json_of(text, ref("Error")) for status, text in refused.items()},
        },
        "security": [{"token": []}],
    }
    return {
        "/api/log": get("log", "The last events of the log", {"200": json_of("Events", log)}, "state", parameters),
        "/api/log-level": {"post": choose},
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
    answers = {status: json_of(text, ref("Error")) for status, text in refused.items()}
    schema = {**object_of(version=MAYBE_VERSION), "additionalProperties": False}
    body = {"required": False, "content": {"application/json": {"schema": schema}}}
    action = in_path("action", "What to do with it")
    action["schema"] = {"enum": [*Action]}
    parameters = [
        in_path("model", "Name of a logical model"),
        action,
        query("version", "Version, here or in the body", VERSION),
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
                "responses": {"202": json_of("What happens now", object_of(message=TEXT)), **answers},
                "security": [{"token": []}],
            }
        }
    }


def _infer() -> dict[str, Any]:
    picture = {"schema": {"type": "string", "format": "binary"}}
    content = {
        "image/*": picture,
        "application/octet-stream": picture,
        "multipart/form-data": {"schema": object_of(image={"type": "string", "format": "binary"})},
        "application/json": {"schema": ref("Snapshot")},
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
    answers = {status: json_of(text, ref("Error")) for status, text in refused.items()}
    parameters = [
        query("model", "Model; without it one whose input_topics fit http/v1/infer (`#` does), else the only one"),
        query("variant", "Variant that answers: `onnx`, `torch`, another of the model, or `dual`"),
        query("device", "device_id of the result; zones of model.yaml go by it"),
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
                "responses": {"200": json_of("The result message", ref("Result")), **answers},
                "security": [{}, {"token": []}],
            }
        }
    }


def _kserve() -> dict[str, Any]:
    model, version = (
        in_path("model", "Name of a logical model"),
        in_path("version", "Version that serves"),
    )
    ready = {"200": json_of("Ready", {"type": "object"}), "503": json_of("Not ready", {"type": "object"})}
    missing = {"404": json_of("There is no such model", ref("Error"))}
    about = {"200": json_of("Metadata", {"type": "object"}), **missing}
    every = {
        "/v2": get("v2", "Name and version", {"200": json_of("Metadata", {"type": "object"})}, "kserve"),
        "/v2/health/live": get("v2-live", "Liveness", {"200": json_of("Live", {"type": "object"})}, "kserve"),
        "/v2/health/ready": get("v2-ready", "Readiness", ready, "kserve"),
    }
    for path, parameters in (("", [model]), ("/versions/{version}", [model, version])):
        name = "v2-version" if path else "v2-model"
        every[f"/v2/models/{{model}}{path}"] = get(name, "Metadata of a model", about, "kserve", parameters)
        every[f"/v2/models/{{model}}{path}/ready"] = get(
            f"{name}-ready", "Readiness of a model", {**ready, **missing}, "kserve", parameters
        )
    return every


def _schemas() -> dict[str, Any]:
    variant = object_of(
        triton_model=TEXT, state={"enum": [*State, None]}, reason=TEXT, fix=TEXT, version=TEXT,
        breaker={"enum": ["closed", "open", "half_open", None]},
        input={"type": ["object", "null"]}, on_gpu={"type": ["boolean", "null"]},
        queue_ms=MAYBE_NUMBER, compute_ms=MAYBE_NUMBER, memory_mb=MAYBE_NUMBER,
    )  # fmt: skip
    return {
        "Error": object_of(error=object_of(code=TEXT, message=TEXT, fix=TEXT)),
        "Status": object_of(
            version=TEXT, business_unit=TEXT, facility=TEXT, gateway_id=TEXT,
            status={"enum": ["ready", "not_ready"]}, reasons=TEXTS, degraded=TEXTS,
            broker_connected={"type": "boolean"}, triton_ready={"type": "boolean"},
            triton_endpoints={"type": "object", "additionalProperties": {"type": "boolean"}},
            snapshots_received={"type": "integer"},
            snapshots={"type": "object", "additionalProperties": {"type": "integer"}},
            queue=object_of(messages={"type": "integer"}, bytes={"type": "integer"}), models=TEXTS,
        ),
        "Model": object_of(
            name=TEXT, model_type=MAYBE_TEXT, ready={"type": "boolean"}, layout=MAYBE_TEXT, labels=TEXTS,
            input_topics=TEXTS, alert_classes=TEXTS, variants={"type": "object", "additionalProperties": variant},
            model_name=TEXT, status={"enum": [*Status]}, version=MAYBE_VERSION, previous_version=MAYBE_VERSION,
            rollout={"oneOf": [ref("Rollout"), {"type": "null"}]},
            refused={"type": "array", "items": ref("Refusal")}, roller=TEXT,
        ),
        "Rollout": object_of(
            version=VERSION, step={"enum": [*Step]}, ending={"enum": [*Ending]}, percent={"type": "integer"},
            progress=TEXT, reason=TEXT, fix=TEXT, started_at=NUMBER, ended_at=MAYBE_NUMBER,
            steps={"type": "array", "items": object_of(step={"enum": [*Step]}, seconds=NUMBER, note=TEXT)},
        ),
        "Refusal": object_of(version=VERSION, step={"enum": [*Step]}, reason=TEXT, fix=TEXT, at=NUMBER),
        **console_schemas(),
        "Snapshot": object_of(
            device_id=TEXT, timestamp={"type": ["number", "string"]}, image_data=TEXT,
            values={"type": "array", "items": NUMBER}, metadata={"type": "object"}, model_name=TEXT,
            backend_preference=TEXT,
        ),
        "Result": object_of(
            message_type=TEXT, result_id=TEXT, timestamp={"type": ["number", "string"]}, device_id=TEXT,
            model_name=TEXT, model_version=TEXT, backend_used=TEXT, inference_time_ms=NUMBER,
            predictions={"type": "array", "items": {"type": "object"}}, metadata={"type": "object"},
        ),
    }  # fmt: skip
