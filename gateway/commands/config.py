"""`edge-gateway config`: what holds and why, what is wrong with it, and schemas for editors."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from gateway.addresses import shown
from gateway.commands.options import CONFIG, FILE, JSON, examples
from gateway.config import RELOADABLE, Settings
from gateway.config_files import missing_files
from gateway.config_reading import given_variables, load_settings, named_file, read_settings
from gateway.config_warnings import settings_warnings
from gateway.errors import ConfigError
from gateway.terminal.overview import Commands
from gateway.yaml_file import YamlMapping, read_yaml

if TYPE_CHECKING:
    from gateway.models.repository import LogicalModel


@dataclass(frozen=True, slots=True)
class Effective:
    """A setting that holds: its value as JSON has it, and where it comes from."""

    name: str
    value: Any
    source: str
    """`default`, `environment` or `file`."""
    place: str
    """The source in words, such as `gateway.yaml, line 3`."""


@click.group(cls=Commands, epilog=examples("edge-gateway config check gateway.yaml", "edge-gateway config show --all"))
def config() -> None:
    """Show, check and describe the configuration."""


@config.command(
    epilog=examples("edge-gateway config show", "edge-gateway config show --all --format env > gateway.env")
)
@CONFIG
@click.option("--all", "everything", is_flag=True, help="The defaults too.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["yaml", "json", "env"]),
    default="yaml",
    show_default=True,
    help="As gateway.yaml, as JSON with the source of each value, or as variables of a shell.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def show(config: Path | None, everything: bool, form: str, as_json: bool) -> None:
    """Print the settings that hold, and where each comes from.

    Files with secrets are named, what is in them is not shown.
    """
    form = "json" if as_json else form
    items = [item for item in effective(config) if everything or item.source != "default"]
    if not items and form != "json":
        click.echo("# Nothing is set; --all shows the defaults")
    elif form == "yaml":
        click.echo("\n".join(f"{_yaml_line(item)}  # {item.place}" for item in items))
    elif form == "env":
        click.echo("\n".join(_env_lines(items)))
    else:
        found = {item.name: _entry(item) for item in items}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))


def effective(file: Path | None = None) -> list[Effective]:
    """Every setting as it holds; raises ConfigError when some cannot."""
    settings = load_settings(file)
    path = file or named_file()
    data = read_yaml(path) if path else YamlMapping()
    variables = given_variables(os.environ)
    values = settings.model_dump(mode="json")
    return [Effective(name, _shown(value), *_origin(name, path, data, variables)) for name, value in values.items()]


def _origin(name: str, path: Path | None, data: YamlMapping, variables: dict[str, str]) -> tuple[str, str]:
    in_file = f"{path}, line {data.line((name,))}" if name in data else ""
    if name in variables:
        return "environment", f"environment, {variables[name]}" + (f" (over {in_file})" if in_file else "")
    return ("file", in_file) if in_file else ("default", "default")


def _shown(value: Any) -> Any:
    """The value without the password that a URL may hold."""
    return shown(value) if isinstance(value, str) and "://" in value else value


def _entry(item: Effective) -> dict[str, Any]:
    return {"value": item.value, "source": item.source, "place": item.place, "reload": item.name in RELOADABLE}


def _yaml_line(item: Effective) -> str:
    written = yaml.safe_dump([item.value], default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    return f"{item.name}: {written.strip()[1:-1]}"


def _env_lines(items: Iterable[Effective]) -> Iterator[str]:
    """Variables by their source; what has no value stands as a comment, since an empty variable is none either."""
    for source, title in (("environment", "the environment"), ("file", "the file"), ("default", "the defaults")):
        chosen = [item for item in items if item.source == source]
        if chosen:
            yield f"# From {title}"
        for item in chosen:
            text = ",".join(item.value) if isinstance(item.value, list) else _plain(item.value)
            yield f"# {item.name.upper()}=" if item.value is None else f"{item.name.upper()}={shlex.quote(text)}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@config.command(
    epilog=examples("edge-gateway config check", "edge-gateway config check gateway.yaml --json | jq .errors")
)
@click.argument("file", type=FILE, required=False)
@JSON
def check(file: Path | None, as_json: bool) -> None:
    """Say what is wrong with FILE, the environment and every model.yaml.

    FILE is a gateway.yaml, without it the one that GATEWAY_CONFIG names. Exit code 2 when the gateway would not run
    like this, 0 otherwise; everything that is wrong is named at once.
    """
    report = examine(file)
    if as_json:
        click.echo(json.dumps(_report_json(report), indent=2, ensure_ascii=False))
        sys.exit(2 if report.errors else 0)
    for warning in report.warnings:
        click.echo(f"edge-gateway: warning: {warning}", err=True)
    for error in report.errors:
        click.echo(f"edge-gateway: {error}", err=True)
    if report.errors:
        count = len(report.errors)
        click.echo(f"{count} {'problem' if count == 1 else 'problems'}")
        sys.exit(2)
    click.echo(f"ok: {report.summary}")


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be said of a configuration; it can be used when there are no errors."""

    errors: tuple[ConfigError, ...]
    warnings: tuple[str, ...]
    summary: str


def _report_json(report: Report) -> dict[str, Any]:
    errors = [{"message": error.message, "where": error.where, "fix": error.fix} for error in report.errors]
    return {"ok": not errors, "errors": errors, "warnings": list(report.warnings), "summary": report.summary}


def examine(file: Path | None = None) -> Report:
    """Read everything that `serve` reads, and find all that is wrong with it."""
    settings, errors = read_settings(file)
    models, wrong = _read_models(_paths(file))
    errors += wrong
    warnings: list[str] = []
    if settings is not None:
        errors += missing_files(settings) + _loops(settings, models)
        warnings = [*settings_warnings(settings, os.environ), *_model_warnings(settings, models, errors)]
    return Report(tuple(errors), tuple(warnings), _summary(file or named_file(), models))


def _paths(file: Path | None) -> dict[str, Path]:
    """Where models and layouts lie, even when other settings are wrong."""
    path = file or named_file()
    try:
        data = read_yaml(path) if path else YamlMapping()
    except ConfigError:
        data = YamlMapping()
    names = ("model_repository", "model_config_path", "layouts_dir")
    given = {name: os.environ.get(name.upper()) or data.get(name) for name in names}
    paths = {name: Path(value) for name, value in given.items() if isinstance(value, str)}
    return {"model_repository": Settings.model_fields["model_repository"].default, **paths}


def _read_models(paths: dict[str, Path]) -> tuple[list[LogicalModel], list[ConfigError]]:
    from gateway.layouts.custom import load_custom_layouts
    from gateway.models.repository import read_served

    errors = []
    try:
        if "layouts_dir" in paths:
            load_custom_layouts(paths["layouts_dir"])
    except ConfigError as error:
        errors.append(error)
    try:
        models, wrong = read_served(paths["model_repository"], paths.get("model_config_path"))
    except ConfigError as error:
        return [], [*errors, error]
    return models, errors + wrong


def _loops(settings: Settings, models: list[LogicalModel]) -> list[ConfigError]:
    from gateway.models.loops import loop_of, refuse_loops

    try:
        refuse_loops(settings)
    except ConfigError as error:
        return [error]
    return [found for model in models if (found := loop_of(settings, model))]


def _model_warnings(settings: Settings, models: list[LogicalModel], errors: list[ConfigError]) -> Iterator[str]:
    if not models and not errors:
        yield f"no folder in {settings.model_repository} has a model.yaml, so nothing is served"
    variants = sorted({name for model in models for name in model.spec.variants})
    if variants and settings.default_backend not in (*variants, "candle"):
        yield (
            f"DEFAULT_BACKEND={settings.default_backend} is a variant of no model; use one of: {', '.join(variants)}"
        )


def _summary(path: Path | None, models: list[LogicalModel]) -> str:
    count = len(given_variables(os.environ))
    parts = [str(path) if path else "no gateway.yaml", f"{count} setting{'s' * (count != 1)} from the environment"]
    parts += [f"model {model.spec.name} ({', '.join(model.spec.variants)})" for model in models]
    return "; ".join(parts)


@config.command(
    epilog=examples(
        "edge-gateway config schema > gateway.schema.json", "edge-gateway config schema model > model.schema.json"
    )
)
@click.argument("which", metavar="[gateway|model]", type=click.Choice(["gateway", "model"]), default="gateway")
def schema(which: str) -> None:
    """Print the JSON Schema of gateway.yaml or of model.yaml, for editors."""
    click.echo(json.dumps(schema_of(which), indent=2, ensure_ascii=False))


def schema_of(which: str) -> dict[str, Any]:
    """The schema of `gateway` or `model`.yaml."""
    from gateway.json_schema import json_schema
    from gateway.models.spec import ModelSpec

    return json_schema(Settings, "gateway.yaml") if which == "gateway" else json_schema(ModelSpec, "model.yaml")
