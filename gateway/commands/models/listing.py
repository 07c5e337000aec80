"""`edge-gateway models list`: what there is to serve, and how it stands at Triton."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.models.reading import log_to_stderr, read_models
from gateway.commands.options import CONFIG, JSON, examples
from gateway.config import Settings
from gateway.config_files import triton_tls
from gateway.config_reading import load_settings
from gateway.errors import BackendUnavailable

if TYPE_CHECKING:
    from gateway.adapters.triton_probe import IndexEntry
    from gateway.models.repository import LogicalModel

TRITON_LIMIT_S = 6.0


@click.command("list", epilog=examples("edge-gateway models list", "edge-gateway models list --json | jq .models"))
@CONFIG
@JSON
def list_models(config: Path | None, as_json: bool) -> None:
    """List the models of MODEL_REPOSITORY, and which version serves.

    Also where a rollout stands, what was refused and why, the variants, and how they stand at Triton. Reads the files;
    no gateway need run.
    """
    from gateway.terminal.progress import busy

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    log_to_stderr()
    settings = load_settings(config)
    logical, errors = read_models(settings)
    with busy("Asking Triton", quiet=as_json):
        index, unreachable = asyncio.run(_index(settings))
    found = [{**_entry(model, settings, index), "remembered": _remembered(model, settings)} for model in logical]
    if as_json:
        broken = [{"where": error.where, "message": error.message, "fix": error.fix} for error in errors]
        body = {"repository": str(settings.model_repository), "triton_unreachable": unreachable or None}
        click.echo(json.dumps({**body, "models": found, "broken": broken}, indent=2, ensure_ascii=False))
        return
    for entry in found:
        click.echo("\n".join(_in_words(entry)))
        if entry["remembered"] is not None:
            from gateway.admin.model_report import report_lines

            click.echo("\n".join(report_lines(entry["remembered"])))
    for error in errors:
        click.echo(f"broken    {error}")
    if not found and not errors:
        click.echo(f"No folder in {settings.model_repository} has a model.yaml")
    if unreachable:
        click.echo(f"Triton not asked: {unreachable}")


async def _index(settings: Settings) -> tuple[tuple[IndexEntry, ...], str]:
    """How models stand at Triton, of several at the first that answers; or () and why nobody knows."""
    reasons = []
    for endpoint in settings.triton_endpoints:
        index, reason = await _index_of(endpoint, settings)
        if not reason:
            return index, ""
        reasons.append(reason)
    return (), "; ".join(reasons)


async def _index_of(endpoint: str, settings: Settings) -> tuple[tuple[IndexEntry, ...], str]:
    from gateway.adapters.triton_probe import TritonProbe

    probe = TritonProbe(endpoint, tls=triton_tls(settings))
    try:
        async with asyncio.timeout(TRITON_LIMIT_S):
            return await probe.index(), ""
    except BackendUnavailable as error:
        return (
            (),
            f"unreachable at {endpoint} {error.message.removeprefix('Triton cannot be reached ')}",
        )
    except TimeoutError:
        return (), f"no answer from {endpoint} within {TRITON_LIMIT_S:g} s"
    finally:
        await probe.close()


def _remembered(model: LogicalModel, settings: Settings) -> dict[str, Any] | None:
    """What the gateway remembers of it on the volume; None of a model that has not been served from here."""
    from gateway.admin.model_report import model_report
    from gateway.commands.models.outlook import remembered

    state = remembered(model.spec.name, settings.model_repository, settings)
    return model_report(model.spec.name, state, None) if state.written_at else None


def _entry(model: LogicalModel, settings: Settings, index: tuple[IndexEntry, ...]) -> dict[str, Any]:
    from gateway.doctor.drops import examine_drop, report_json

    spec, variants = model.spec, []
    for name, triton_model in spec.variants.items():
        report = report_json(examine_drop(settings.model_repository / triton_model, model, name))
        variants.append({**report, "triton": _states(index, triton_model) if index else None})
    sizes = [variant["input_size"] for variant in variants if variant["input_size"]]
    answers, reason = _who_answers(model, settings)
    return {
        "name": spec.name,
        "model_yaml": str(model.path),
        "model_type": spec.model_type,
        "layout": spec.layout.name,
        "labels": list(model.labels),
        "input_size": sizes[0] if sizes else None,
        "answers": answers,
        "answers_because": reason,
        "input_topics": list(spec.mqtt.input_topics),
        "variants": variants,
    }


def _states(index: tuple[IndexEntry, ...], triton_model: str) -> list[dict[str, str]]:
    """Of each version; none for a model that Triton does not see."""
    return [
        {"version": entry.version, "state": entry.state or "not loaded", **_refusal(entry.reason)}
        for entry in index
        if entry.name == triton_model
    ]


def _refusal(reason: str) -> dict[str, str]:
    """Why it does not serve, and the fix; both empty where Triton gives no reason, or only says that we unloaded it."""
    from gateway.adapters.triton_errors import load_refusal

    if not reason or reason == "unloaded":
        return {"reason": reason, "fix": ""}
    text, fix = load_refusal(reason)
    return {"reason": text, "fix": fix}


def _who_answers(model: LogicalModel, settings: Settings) -> tuple[str, str]:
    """The variant that answers a message which names none, and what says so, when all of them serve."""
    from gateway.flow.variants import choose
    from gateway.messages import Asked, Origin, Place
    from gateway.models.catalog import ServedModel, ServedVariant, State

    variants = {name: ServedVariant(name, triton, State.READY) for name, triton in model.spec.variants.items()}
    served = ServedModel(model.spec, model.labels, variants)
    nobody = Origin(
        result_id="",
        device_id="",
        timestamp=0,
        topic="",
        payload_bytes=0,
        payload_sha256="",
        received_at=0.0,
        place=Place("", "", ""),
    )
    selection = choose(Asked(origin=nobody), served, settings)
    if selection.policy == "dual":
        return "dual", {"model": "model.yaml"}.get(selection.reason, selection.reason)
    usual = "DEFAULT_BACKEND" if selection.primary == served.meant_by(settings.default_backend) else "first variant"
    return selection.primary, {"model": "model.yaml", "default": usual}.get(selection.reason, selection.reason)


def _in_words(entry: dict[str, Any]) -> Iterator[str]:
    from gateway.doctor.drops import classes_in_words

    size = entry["input_size"]
    pieces = [entry["model_type"], f"layout {entry['layout']}"]
    if size:
        pictures = not entry["model_type"].startswith("sensor-")
        pieces.append(f"input {size[0]} high, {size[1]} wide" if pictures else f"input {'x'.join(map(str, size))}")
    if classes := classes_in_words(len(entry["labels"]), [variant["classes"] for variant in entry["variants"]]):
        pieces.append(classes)
    yield f"{entry['name']}    {', '.join(pieces)}; {entry['answers']} answers ({entry['answers_because']})"
    for variant in entry["variants"]:
        versions = ", ".join(map(str, variant["versions"])) or "none"
        head = f"  {variant['variant']:<8} {variant['triton_model']}  versions on disk: {versions}"
        yield f"{head}; {_at_triton(variant['triton'])}"
        if problem := variant["problem"]:
            place = f"{problem['where']}: " if problem["where"] else ""
            yield f"  {'':<8} problem: {place}{problem['message']}. {problem['fix']}"


def _at_triton(states: list[dict[str, str]] | None) -> str:
    if states is None:
        return "Triton not asked"
    if not states:
        return "Triton does not see it"
    return "Triton: " + ", ".join(
        f"version {each['version']} {each['state']}".replace("version  ", "")
        + (f" ({'. '.join(filter(None, (each['reason'], each['fix'])))})" if each["reason"] else "")
        for each in states
    )
