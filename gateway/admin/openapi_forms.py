"""The building blocks of the description of the HTTP side."""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
MAYBE_TEXT = {"type": ["string", "null"]}
VERSION = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
MAYBE_VERSION = {**VERSION, "type": ["integer", "null"]}
NUMBER = {"type": "number"}
MAYBE_NUMBER = {"type": ["number", "null"]}
TEXTS = {"type": "array", "items": TEXT}


def object_of(**properties: Any) -> dict[str, Any]:
    """An object with these properties, all of them optional."""
    return {"type": "object", "properties": properties}


def ref(name: str) -> dict[str, str]:
    """A schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_of(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """An answer in JSON."""
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def get(
    name: str, summary: str, responses: dict[str, Any], tag: str, parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A path with a GET operation."""
    operation = {"operationId": name, "summary": summary, "tags": [tag], "responses": responses}
    return {"get": {**operation, "parameters": parameters} if parameters else operation}


def in_path(name: str, text: str) -> dict[str, Any]:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "description": text, "schema": TEXT}


def query(name: str, text: str, schema: dict[str, Any] = TEXT) -> dict[str, Any]:
    """A parameter in the query."""
    return {"name": name, "in": "query", "description": text, "schema": schema}
