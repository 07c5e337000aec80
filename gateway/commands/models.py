"""`edge-gateway models`: what there is to serve, and whether a drop would fit."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.options import CONFIG, FILE, JSON, examples
from gateway.config import Settings, load_settings
from gateway.errors import BackendUnavailable, ConfigError
from gateway.terminal.overview import Commands

if TYPE_CHECKING:
    from gateway.adapters.triton_probe import IndexEntry
    from gateway.doctor.drops import DropReport
    from gateway.models.repository import LogicalModel

TRITON_LIMIT_S = 6.0


@click.group(cls=Commands, epilog=examples("edge-gateway models list", "edge-gateway models check model_repository"))
def models() -> None:
    """List models, and check a drop before it goes into service."""


def read_models(settings: Settings) -> tuple[list[LogicalModel], list[ConfigError]]:
    """The models that `serve` would serve, and what is wrong with the others; raises ConfigError as `serve` does."""
    from gateway.models.repository import read_served

    load_layouts(settings)
    return read_served(settings.model_repository, settings.model_config_path)


def load_layouts(settings: Settings) -> None:
    """The user's own, which a model.yaml may name; raises ConfigError."""
    from gateway.layouts.custom import load_custom_layouts

    if settings.layouts_dir is not None:
        load_custom_layouts(settings.layouts_dir)


# --- list ---------------------------------------------------------------------------------------------


@models.command("list", epilog=examples("edge-gateway models list", "edge-gateway models list --json | jq .models"))
@CONFIG
@JSON
def list_models(config: Path | None, as_json: bool) -> None:
    """List the models of MODEL_REPOSITORY, their variants, and how they stand at Triton."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    settings = load_settings(config)
    logical, errors = read_models(settings)
    index, unreachable = asyncio.run(_index(settings))
    found = [_entry(model, settings, index) for model in logical]
    if as_json:
        broken = [{"where": error.where, "message": error.message, "fix": error.fix} for error in errors]
        body = {"repository": str(settings.model_repository), "triton_unreachable": unreachable or None}
        click.echo(json.dumps({**body, "models": found, "broken": broken}, indent=2, ensure_ascii=False))
        return
    for entry in found:
        click.echo("\n".join(_in_words(entry)))
    for error in errors:
        click.echo(f"broken    {error}")
    if not found and not errors:
        click.echo(f"No folder in {settings.model_repository} has a model.yaml")
    if unreachable:
        click.echo(f"Triton not asked: {unreachable}")


async def _index(settings: Settings) -> tuple[tuple[IndexEntry, ...], str]:
    """How models stand at Triton, or () and why nobody knows."""
    from gateway.adapters.triton_probe import TritonProbe

    probe = TritonProbe(settings.triton_grpc_url)
    try:
        async with asyncio.timeout(TRITON_LIMIT_S):
            return await probe.index(), ""
    except BackendUnavailable as error:
        return (
            (),
            f"unreachable at {settings.triton_grpc_url} {error.message.removeprefix('Triton cannot be reached ')}",
        )
    except TimeoutError:
        return (), f"no answer from {settings.triton_grpc_url} within {TRITON_LIMIT_S:g} s"
    finally:
        await probe.close()


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


# --- check --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Checked:
    """A logical model with its variants, a broken one, or a Triton folder that no model.yaml names (no `name`)."""

    name: str
    where: str
    reports: tuple[DropReport, ...] = ()
    problem: ConfigError | None = None
    remarks: tuple[str, ...] = ()
    """What works, but may surprise."""

    @property
    def ok(self) -> bool:
        return self.problem is None and all(report.problem is None for report in self.reports)


@models.command(
    epilog=examples(
        "edge-gateway models check model_repository",
        "edge-gateway models check model_repository/industrial-safety",
        "edge-gateway models check model_repository/industrial-safety-onnx --json",
    )
)
@click.argument("folder", metavar="DIR", type=FILE)
@CONFIG
@JSON
def check(folder: Path, config: Path | None, as_json: bool) -> None:
    """Say whether what lies in DIR would serve, without starting anything.

    DIR is the folder of a model.yaml, whose Triton models lie beside it; one of these; or a whole repository. Exit
    code 2 when something is wrong with it.
    """
    load_layouts(load_settings(config))
    try:
        found = _checked(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"cannot be read: {reason}", where=str(folder), fix="Check the path") from error
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(line for each in found for line in _lines(each)))
    sys.exit(0 if all(each.ok for each in found) else 2)


def _checked(folder: Path) -> list[_Checked]:
    if not folder.is_dir():
        raise ConfigError("no such folder", where=str(folder), fix="Name the folder of a model, or of all of them")
    if (folder / "model.yaml").exists():
        return [_logical(folder / "model.yaml")]
    if _is_triton_model(folder):
        return _triton_folder(folder)
    logical = [_logical(path) for path in sorted(folder.glob("*/model.yaml"))]
    named = {report.folder for each in logical for report in each.reports}
    rest = [path for path in sorted(folder.iterdir()) if path.is_dir() and path not in named]
    alone = [_alone(path) for path in rest if not (path / "model.yaml").exists() and _is_triton_model(path)]
    if not logical and not alone:
        raise ConfigError(
            "has neither a model.yaml nor a config.pbtxt nor a version folder, and neither have the folders in it",
            where=str(folder),
            fix="Name the folder of a model, or of all of them",
        )
    return [*logical, *alone]


def _is_triton_model(folder: Path) -> bool:
    return (folder / "config.pbtxt").exists() or any(
        path.name.isdecimal() and path.is_dir() for path in folder.iterdir()
    )


def _logical(path: Path) -> _Checked:
    from gateway.doctor.drops import disagreement, examine_drop, remarks_on
    from gateway.models.repository import read_model

    try:
        model = read_model(path)
    except ConfigError as error:
        return _Checked(path.parent.name, str(path), problem=error)
    reports = tuple(
        examine_drop(path.parent.parent / triton_model, model, name)
        for name, triton_model in model.spec.variants.items()
    )
    return _Checked(model.spec.name, str(path), reports, disagreement(model, reports), remarks_on(model))


def _triton_folder(folder: Path) -> list[_Checked]:
    """With each model.yaml beside it that names it, else by itself."""
    found = []
    for path in sorted(folder.absolute().parent.glob("*/model.yaml")):
        each = _logical(path)
        own = tuple(report for report in each.reports if report.triton_model == folder.absolute().name)
        if own:
            found.append(replace(each, reports=own))
    return found or [_alone(folder)]


def _alone(folder: Path) -> _Checked:
    from gateway.doctor.drops import examine_drop

    return _Checked("", str(folder), (examine_drop(folder),))


def _lines(checked: _Checked) -> Iterator[str]:
    from gateway.doctor.drops import fits_in_words

    note = "" if checked.name else "  (no model.yaml beside it names it)"
    yield f"{checked.name or Path(checked.where).name}{note}"
    if checked.problem is not None:
        yield f"  problem   {checked.problem}"
    yield from (f"  remark    {text}" for text in checked.remarks)
    for report in checked.reports:
        yield f"  {report.variant or '-'}: {report.folder}"
        yield from (f"    ok        {text}" for text in fits_in_words(report))
        yield from (f"    unknown   {text}" for text in report.open)
        if report.problem is not None:
            yield f"    problem   {report.problem}"


def _as_json(found: list[_Checked]) -> dict[str, Any]:
    from gateway.doctor.drops import report_json

    return {
        "ok": all(each.ok for each in found),
        "models": [
            {
                "name": each.name or None,
                "where": each.where,
                "ok": each.ok,
                "problem": None
                if each.problem is None
                else {"message": each.problem.message, "where": each.problem.where, "fix": each.problem.fix},
                "remarks": list(each.remarks),
                "variants": [report_json(report) for report in each.reports],
            }
            for each in found
        ],
    }


# --- layouts ------------------------------------------------------------------------------------------


@models.command(epilog=examples("edge-gateway models layouts", "LAYOUTS_DIR=layouts edge-gateway models layouts"))
@CONFIG
@JSON
def layouts(config: Path | None, as_json: bool) -> None:
    """List the layouts that `inference.output` in model.yaml may name.

    With the shapes of their outputs without the batch (C: the classes), those of LAYOUTS_DIR among them.
    """
    from gateway.layouts import named, names

    load_layouts(load_settings(config))
    known = sorted((named(name) for name in names()), key=lambda each: (each.task, each.name))
    if as_json:
        body = [
            {
                "name": each.name,
                "model_type": each.task,
                "outputs": {role: list(shape) for role, shape in each.outputs.items()},
                "settings": {name: list(values) for name, values in each.settings.items()},
                "summary": each.summary,
            }
            for each in known
        ]
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
        return
    task = ""
    for each in known:
        if each.task != task:
            click.echo(f"{chr(10) if task else ''}{each.task}")
            task = each.task
        click.echo(f"  {each.name:<24} {each.expects}\n  {'':<24} {each.summary}")
