"""`edge-gateway models layouts`: what `inference.output` in model.yaml may name."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gateway.commands.models.reading import load_layouts
from gateway.commands.options import CONFIG, JSON, examples
from gateway.config_reading import load_settings


@click.command(
    "layouts", epilog=examples("edge-gateway models layouts", "LAYOUTS_DIR=layouts edge-gateway models layouts")
)
@CONFIG
@JSON
def list_layouts(config: Path | None, as_json: bool) -> None:
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
