"""`edge-gateway models`: what there is to serve, new drops, signatures over them, and commands to those in service."""

from __future__ import annotations

import click

from gateway.commands.models.actions import ACTIONS
from gateway.commands.models.check import check_drops
from gateway.commands.models.fetch import fetch
from gateway.commands.models.layouts import list_layouts
from gateway.commands.models.listing import list_models
from gateway.commands.models.manifest import write_manifest
from gateway.commands.models.new import new
from gateway.commands.models.reading import load_layouts, read_models
from gateway.commands.models.signing import sign, verify
from gateway.commands.options import examples
from gateway.terminal.overview import Commands

__all__ = ["load_layouts", "models", "read_models"]


@click.group(cls=Commands, epilog=examples("edge-gateway models list", "edge-gateway models check model_repository"))
def models() -> None:
    """List models, write and check drops, and say which version serves."""


# In the order in which the help shows them.
for _command in (list_models, check_drops, new, fetch, write_manifest, sign, verify, *ACTIONS, list_layouts):
    models.add_command(_command)
