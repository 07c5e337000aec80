"""Writes the pages and schemas that come from the code; `--check` only says which are stale."""
# ruff: noqa: INP001, T201 - a script for people, not a package

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import log_events
from log_remedies import REMEDIES
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gateway.commands.config import schema_of
from gateway.config import RELOADABLE, Settings
from gateway.errors import SnapshotError
from gateway.log_folding import FIRST, FOLLOWING_WINDOW_S, WINDOW_S
from gateway.log_memory import EVENTS
from gateway.metrics import CATALOGUE, PREFIX, Meaning
from gateway.models.spec import ModelSpec

PACKAGE = Path(__file__).parent.parent / "gateway"
NOTE = "<!-- Made from the code by docs/generate.py (`make docs`); change it there. -->\n"
# The first setting of each section of configuration.md.
SECTIONS = {
    "aio_broker_hostname": "The broker",
    "business_unit": "Where this gateway stands",
    "result_topic": "Where answers go",
    "triton_grpc_url": "Triton and the models",
    "snapshot_deadline_ms": "Limits",
    "http_host": "Seen from outside",
}
DERIVED = {"gateway_id": "the host name"}
TYPES: dict[object, str] = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Path: "path"}
EDITOR_LINE = "# yaml-language-server: $schema=docs/schema/{}.schema.json"
LIMITS = {"ge": "at least", "gt": "above", "le": "at most"}


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(cell, row))} |"
    yield ""


def cell(text: str) -> str:
    """What a cell shows as it is: outside of code, `<x>` would be taken for HTML and vanish."""
    parts = text.split("`")
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def type_of(annotation: Any) -> str:
    """A field's type in a few words."""
    arguments = typing.get_args(annotation)
    match typing.get_origin(annotation):
        case typing.Literal:
            *most, last = (f"`{value}`" for value in arguments)
            return f"{', '.join(most)} or {last}" if most else last
        case typing.Union | types.UnionType:
            return " or ".join(type_of(part) for part in arguments if part is not type(None))
        case typing.Annotated:
            return type_of(arguments[0])
        case origin if origin is tuple and arguments[-1] is ...:
            return f"list of {plural(type_of(arguments[0]))}"
        case origin if origin is tuple:
            return f"list of {len(arguments)} {plural(type_of(arguments[0]))}"
        case origin if origin is dict:
            return f"mapping of names to {plural(type_of(arguments[1]))}"
    return "mapping" if is_model(annotation) else TYPES[annotation]


def plural(text: str) -> str:
    """Of a type in words."""
    first, space, rest = text.partition(" of ")
    first = first if first == "text" or first.startswith("`") else f"{first}s"
    return first + space + rest


def type_and_range(field: FieldInfo) -> str:
    """The type with its limits."""
    limits = {name: getattr(item, name) for item in field.metadata for name in LIMITS if hasattr(item, name)}
    if limits.get("ge") == limits.get("le") is not None:
        return f"{type_of(field.annotation)}, always {limits['ge']}"
    if set(limits) == {"ge", "le"}:
        return f"{type_of(field.annotation)}, {limits['ge']} to {limits['le']}"
    return ", ".join([type_of(field.annotation), *(f"{LIMITS[name]} {value}" for name, value in limits.items())])


def default_of(name: str, field: FieldInfo) -> str:
    """A field's default as one writes it."""
    value = field.default
    if value is PydanticUndefined:
        return DERIVED.get(name, "none") if field.default_factory else "**required**"
    if value in (None, "") or isinstance(value, BaseModel):
        return "" if isinstance(value, BaseModel) else "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        texts = all(isinstance(item, str) for item in value)
        return (", ".join(f"`{item}`" for item in value) or "none") if texts else f"`{list(value)}`"
    return f"`{value}`"


def is_model(annotation: object) -> TypeGuard[type[BaseModel]]:
    """Whether a key holds keys of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def meaning(owner: type[BaseModel], name: str, field: FieldInfo) -> str:
    """The docstring of a field in one line; a field without one is not fit to be documented."""
    if not field.description:
        raise SystemExit(f"{owner.__name__}.{name} has no docstring; add one below it")
    return " ".join(field.description.split())


def configuration() -> Iterator[str]:
    """Every setting and every key of model.yaml."""
    yield "# Configuration\n"
    yield NOTE
    yield (
        "Each setting is an environment variable and, in lower case, a key of the YAML file that `GATEWAY_CONFIG` (or\n"
        "`edge-gateway serve --config`) names. The environment wins; an empty variable counts as not set. An unknown\n"
        "key in the file is an error, a variable that looks like a misspelt setting a warning in the log. Lists are\n"
        "separated by commas in the environment, and YAML lists in the file.\n"
    )
    yield (
        "```yaml\n"
        + EDITOR_LINE.format("gateway")
        + "\naio_broker_hostname: broker.plant.example\nfacility: hall-2\n```\n"
    )
    yield (
        "The first line lets an editor with a YAML language server complete and check the keys; the schemas are\n"
        "[schema/gateway.schema.json](schema/gateway.schema.json) and\n"
        "[schema/model.schema.json](schema/model.schema.json), and `edge-gateway config schema` prints them.\n"
        "`edge-gateway config show` says what holds and where it comes from; `edge-gateway config check` names\n"
        "everything that is wrong with the file, the environment and every `model.yaml`, and ends with exit code 2.\n"
    )
    yield "## What takes effect without a restart\n"
    yield (
        "The gateway reads `gateway.yaml` and every `model.yaml` with its labels again when one of them changes (it\n"
        "looks every two seconds) and at once on SIGHUP. Settings with *yes* under *Reload* then hold for what comes\n"
        "after; changes of others are named in the log and wait for the next start. When anything is wrong, nothing\n"
        "is taken over: the log says what to correct, and `edge_gateway_config_last_reload_successful` is 0 until it\n"
        "is. Passwords, tokens and certificates are taken over when their files change\n"
        "([howto/tls.md](howto/tls.md#renewals)). What comes from the environment needs a restart, since the\n"
        "environment of a process cannot change while it runs.\n"
    )
    sections: list[tuple[str, list[tuple[str, ...]]]] = []
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            sections.append((SECTIONS[name], []))
        text = meaning(Settings, name, field)
        reload = "yes" if name in RELOADABLE else "no"
        row = (f"`{name.upper()}`", f"`{name}`", type_and_range(field), default_of(name, field), reload, text)
        sections[-1][1].append(row)
    for title, rows in sections:
        yield f"## {title}\n"
        yield from table(("Environment", "Key in `gateway.yaml`", "Type", "Default", "Reload", "Meaning"), rows)
    yield "## model.yaml\n"
    yield (
        "One file in the folder of each logical model in `MODEL_REPOSITORY`, beside the Triton models that are its\n"
        "variants; `model_repository/industrial-safety/model.yaml` is an example. Unknown keys are errors.\n"
    )
    yield "```yaml\n" + EDITOR_LINE.format("model") + "\n```\n"
    yield from model_keys(ModelSpec, "")


def model_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The keys of one mapping of model.yaml, then those of the mappings in it."""
    rows = [
        (f"`{prefix}{name}`", type_and_range(field), default_of(name, field), meaning(model, name, field))
        for name, field in model.model_fields.items()
    ]
    yield from table(("Key", "Type", "Default", "Meaning"), rows)
    for name, field in model.model_fields.items():
        inner, below = record_of(field.annotation)
        if inner is not None:
            yield f"### {prefix}{name}\n"
            yield from model_keys(inner, f"{prefix}{name}.{below}")


def record_of(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The record with the keys below a key, and what stands between the two: a name in a mapping of them."""
    if is_model(annotation):
        return annotation, ""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict and is_model(arguments[1]):
        return arguments[1], "NAME."
    return None, ""


def errors() -> Iterator[str]:
    """Every code of an error message."""
    yield "# Error codes\n"
    yield NOTE
    yield (
        "The `error.code` of an error message (see [messages.md](messages.md)), also the label `code` of\n"
        "`edge_gateway_snapshot_errors_total`. Codes are stable. *Retryable* says whether the same snapshot can\n"
        "succeed when it is sent again; *outcome* is the label under which `edge_gateway_snapshots_total` counts it.\n"
    )
    classes = SnapshotError.__subclasses__()
    rows = []
    for kind in classes:
        text = " ".join((kind.__doc__ or "").split())
        others = [other for other in classes if other.code == kind.code and other is not kind]
        if others:
            text += f" (One of {len(others) + 1} causes of this code; the outcome tells them apart.)"
        rows.append((f"`{kind.code}`", text, f"`{kind.outcome}`", "yes" if kind.retryable else "no", kind.default_fix))
    yield from table(("Code", "Meaning", "Outcome", "Retryable", "Fix"), sorted(rows))


def metrics() -> Iterator[str]:
    """Every metric of the catalogue."""
    yield "# Metrics\n"
    yield NOTE
    yield (
        "Prometheus metrics of the gateway at `/metrics`, beside the usual ones of the process (`process_*`) and of\n"
        "Python. Histograms are in seconds and have the usual `_bucket`, `_sum` and `_count`.\n"
        "Where the values of a label are listed, its samples are there from the start, those with `model` as soon as\n"
        "the model is known, so `increase()` sees their first event. Those with `device_id` are\n"
        "[bounded](monitoring.md#cameras). How to collect and look at them: [monitoring.md](monitoring.md).\n"
    )
    rows = ((f"`{PREFIX}{item.name}`", item.kind, labels_of(item), item.help, item.remedy) for item in CATALOGUE)
    yield from table(("Name", "Type", "Labels", "Meaning", "When it looks wrong"), rows)


def labels_of(item: Meaning) -> str:
    """The labels of a metric, with the values of the last one where they are known."""
    names = ", ".join(f"`{label}`" for label in item.labels)
    return f"{names}: {', '.join(f'`{value}`' for value in item.values)}" if item.values else names


def log_catalogue() -> Iterator[str]:
    """Every event of the log, by area."""
    calls, wrong = log_events.calls(PACKAGE)
    events = log_events.events(calls)
    if wrong := [*wrong, *log_events.complaints(events, REMEDIES)]:
        raise SystemExit("\n".join(wrong))
    yield "# Events of the log\n"
    yield NOTE
    yield log_events.INTRODUCTION.format(first=FIRST, window_s=WINDOW_S, following_s=FOLLOWING_WINDOW_S, kept=EVENTS)
    for area in log_events.AREAS:
        here = [event for event in events if log_events.area_of(event) == area]
        yield f"## {area}\n"
        grave = [event for event in here if event.grave]
        if grave:
            rows = ((*_of_event(event), REMEDIES[event.sentence], _modules(event)) for event in grave)
            yield from table(("Event", "Level", "Keys", "Meaning, and what to do", "Written in"), rows)
        if usual := [event for event in here if event not in grave]:
            yield from table(
                ("Event", "Level", "Keys", "Written in"), ((*_of_event(event), _modules(event)) for event in usual)
            )


def _of_event(event: log_events.Event) -> tuple[str, str, str]:
    return event.sentence, ", ".join(event.levels), ", ".join(f"`{key}`" for key in event.keys)


def _modules(event: log_events.Event) -> str:
    return ", ".join(f"`{module}`" for module in event.modules)


def main() -> int:
    """Write what is not current, or with --check only name it."""
    pages = {"metrics.md": metrics(), "errors.md": errors(), "configuration.md": configuration()}
    pages["log-events.md"] = log_catalogue()
    for which in ("gateway", "model"):
        pages[f"schema/{which}.schema.json"] = iter([json.dumps(schema_of(which), indent=2, ensure_ascii=False)])
    stale = 0
    for name, lines in pages.items():
        path, text = Path(__file__).parent / name, "\n".join(lines).rstrip() + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"docs/{name} {'is not current: run make docs' if '--check' in sys.argv else 'written'}")
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return stale if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
