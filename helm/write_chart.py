"""Writes what the chart has from elsewhere: values.schema.json and the table in its README from the comments of
values.yaml, the schema of the gateway's settings from the code, rules and dashboards from compose/; `--check` only says
what is stale."""
# ruff: noqa: INP001, T201 - a script for people, not a package

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gateway.commands.config import schema_of
from gateway.config import RELOADABLE

HERE = Path(__file__).parent
CHART = HERE / "triton-edge-gateway"
COMPOSE = HERE.parent / "compose"
BEGIN, END = "<!-- values: made by `make chart-files` -->", "<!-- end of values -->"
OF_THE_CHART = frozenset((
    "aio_broker_hostname", "aio_broker_tcp_port", "aio_mqtt_use_tls", "aio_tls_ca_file", "aio_tls_cert_file",
    "aio_tls_key_file", "aio_sat_file", "aio_mqtt_username", "aio_mqtt_password_file", "aio_mqtt_client_id",
    "aio_mqtt_session_expiry", "mqtt_input_topics", "mqtt_leave_group", "business_unit", "facility", "gateway_id",
    "triton_grpc_url", "triton_use_tls", "triton_tls_ca_file", "triton_tls_cert_file", "triton_tls_key_file",
    "triton_metrics_url", "triton_placement", "model_repository", "model_config_path", "model_state_dir", "drop_watch",
    "model_public_key_file", "model_certificate_file", "rollout_lease", "rollout_lease_name", "triton_shared_memory",
    "gpu_enabled", "spool_dir", "drain_timeout_s", "http_host", "http_port", "api_token_file", "api_read_token_file",
))  # fmt: skip
"""The settings that templates give by the environment, so that `gateway.settings` refuses them."""
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
_MEANING = re.compile(r"\s*# -- (.*)")
_SCHEMA = re.compile(r"\s*# @schema (.*)")
_COMMENT = re.compile(r"\s*# ?(.*)")


@dataclass
class Value:
    """One key of values.yaml."""

    path: tuple[str, ...]
    default: Any
    meaning: str = ""
    schema: dict[str, Any] = field(default_factory=dict)


class StaleError(Exception):
    """values.yaml says too little."""


def values(text: str) -> list[Value]:
    """The keys with a meaning of their own, in order; raises StaleError for one that has none."""
    found = list(_keys(yaml.compose(text, yaml.SafeLoader), (), text.splitlines()))
    for value in found:
        if not value.meaning:
            raise StaleError(f"values.yaml: {'.'.join(value.path)} has no comment that begins with '# --'")
        if value.default in ([], {}) and not value.schema:
            raise StaleError(f"values.yaml: {'.'.join(value.path)} is empty, so it needs '# @schema'")
    return found


def _keys(node: Any, path: tuple[str, ...], lines: list[str]) -> Iterator[Value]:
    for key, value in node.value:
        here = (*path, key.value)
        meaning, schema = _comment(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and value.value and not meaning:
            yield from _keys(value, here, lines)
        else:
            yield Value(here, yaml.safe_load(yaml.serialize(value)), meaning, schema)


def _comment(lines: list[str], number: int) -> tuple[str, dict[str, Any]]:
    """What stands right above a line."""
    block: list[str] = []
    while number > 0 and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        block.insert(0, lines[number])
    meaning: list[str] = []
    schema: dict[str, Any] = {}
    for line in block:
        if found := _SCHEMA.fullmatch(line):
            schema |= yaml.safe_load(f"{{{found[1]}}}")
        elif found := _MEANING.fullmatch(line):
            meaning = [found[1]]
        elif meaning and (found := _COMMENT.fullmatch(line)):
            meaning.append(found[1])
    return " ".join(meaning), schema


def values_schema(found: list[Value]) -> dict[str, Any]:
    """The schema of all values; what the chart does not know is refused at every level."""
    root: dict[str, Any] = {"type": "object", "properties": {
        "global": {"type": "object", "description": "Of a parent chart; not read here."},
        "enabled": {"type": "boolean", "description": "The condition of a parent chart; not read here."},
    }}  # fmt: skip
    for value in found:
        level = root
        for name in value.path[:-1]:
            level = level["properties"].setdefault(name, {"type": "object", "properties": {}})
        level["properties"][value.path[-1]] = _schema_of(value)
    definitions = yaml.safe_load((HERE / "definitions.yaml").read_text())
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart triton-edge-gateway",
        **root,
        "definitions": {**definitions, "settings": settings_schema()},
    }
    closed: dict[str, Any] = _closed(schema)
    return closed


def _schema_of(value: Value) -> dict[str, Any]:
    said = dict(value.schema)
    kind = {} if "$ref" in said or value.default is None else {"type": KINDS[type(value.default)]}
    if "$ref" in said:
        said["allOf"] = [{"$ref": said.pop("$ref")}]  # draft 7 reads nothing beside a $ref
    return {"description": value.meaning, **kind, **said, "default": value.default}


def settings_schema() -> dict[str, Any]:
    """The settings of gateway.yaml that are not the chart's own."""
    everything = schema_of("gateway")["properties"]
    protocol = everything["mqtt_protocol"]
    protocol["enum"] = [value for value in protocol["enum"] if isinstance(value, str)]  # Helm takes "5" and 5 for equal
    return {"type": "object", "properties": {k: v for k, v in everything.items() if k not in OF_THE_CHART}}


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: part if name == "default" else _closed(part) for name, part in schema.items()}
    if isinstance(closed.get("properties"), dict) and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def readme(text: str, found: list[Value]) -> str:
    """The README with the table of all values."""
    rows = [f"| `{'.'.join(value.path)}` | {_shown(value.default)} | {_cell(value.meaning)} |" for value in found]
    table = "\n".join([BEGIN, "", "| Value | Default | Meaning |", "| --- | --- | --- |", *rows, "", END])
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise StaleError(f"README.md has no '{BEGIN}' and '{END}'")
    return before + table + after


def _shown(default: Any) -> str:
    return "none" if default in ("", None) else f"`{_cell(json.dumps(default))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def written() -> Iterator[tuple[Path, str]]:
    """Every file that comes from elsewhere, and what should be in it."""
    found = values((CHART / "values.yaml").read_text())
    yield CHART / "values.schema.json", json.dumps(values_schema(found), indent=2, ensure_ascii=False) + "\n"
    yield CHART / "README.md", readme((CHART / "README.md").read_text(), found)
    yield CHART / "files" / "reloadable.yaml", yaml.safe_dump(sorted(RELOADABLE - OF_THE_CHART))
    yield CHART / "files" / "rules.yml", (COMPOSE / "prometheus" / "rules.yml").read_text()
    for source in sorted((COMPOSE / "grafana" / "dashboards").glob("*.json")):
        yield CHART / "files" / "dashboards" / source.name, source.read_text()


def main(*, check: bool) -> int:
    """Write them, or name those that are stale; the exit code."""
    files = dict(written())
    leftover = [path for path in (CHART / "files").rglob("*") if path.is_file() and path not in files]
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in stale + leftover:
        print(f"{path.relative_to(HERE.parent)} is stale; run `make chart-files`" if check else f"Wrote {path.name}")
    if check:
        return 1 if stale or leftover else 0
    for path in leftover:
        path.unlink()
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
