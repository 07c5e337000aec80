"""`edge-gateway models`: what there is to serve, and whether a drop would fit."""

from __future__ import annotations

import click

from gateway.commands.models.check import check_drops
from gateway.commands.models.layouts import list_layouts
from gateway.commands.models.listing import list_models
from gateway.commands.models.manifest import write_manifest
from gateway.commands.models.new import new
from gateway.commands.models.reading import load_layouts, read_models
from gateway.commands.options import examples
from gateway.terminal.overview import Commands

__all__ = ["load_layouts", "models", "read_models"]


@click.group(cls=Commands, epilog=examples("edge-gateway models list", "edge-gateway models check model_repository"))
def models() -> None:
    """List models, and check a drop before it goes into service."""


# In the order in which the help shows them.
for _command in (list_models, check_drops, new, write_manifest, list_layouts):
    models.add_command(_command)
