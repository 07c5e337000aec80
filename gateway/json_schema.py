"""JSON Schema (draft 2020-12) of what people write, for editors; made from the same records that read it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ONE_NUMBER_FOR_BOTH_SIDES = {("PreprocessingSpec", "resize"), ("TilesSpec", "size")}


def json_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    """The schema of one file: descriptions from docstrings, defaults, choices, and no key beside the known ones."""
    schema = model.model_json_schema()
    for name, record in schema.get("$defs", {}).items():
        # A key with nothing after it stands for its defaults, such as `mqtt:` with all its lines commented out.
        record["type"] = [record["type"], "null"]
        _finish(name, record)
    _finish(model.__name__, schema)
    return {"$schema": DIALECT, **schema, "title": title}


def _finish(owner: str, record: dict[str, Any]) -> None:
    for name, field in record.get("properties", {}).items():
        field.pop("title", None)  # the name once more
        if "$ref" in field:
            field.pop("default", None)  # stands in the record itself, key by key
        if "description" in field:
            field["description"] = " ".join(field["description"].split())
        if (owner, name) in _ONE_NUMBER_FOR_BOTH_SIDES:
            field["anyOf"].insert(0, {"type": "integer"})
        if name == "mqtt_protocol":
            field["enum"].append(5)  # as YAML reads it without quotes
            del field["type"]
    record.pop("title", None)
