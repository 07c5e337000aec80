"""What several commands share: kinds of values, options, and how examples stand in their help."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gateway.errors import ConfigError

FILE = click.Path(exists=False, path_type=Path)
PORT = click.IntRange(1, 65535)

REPOSITORY = click.option(
    "--repository",
    type=FILE,
    default=lambda: Path(os.environ.get("MODEL_REPOSITORY") or "model_repository"),
    help="Folder of models for Triton.  [default: $MODEL_REPOSITORY or ./model_repository]",
)
CONFIG = click.option(
    "--config", type=FILE, help="gateway.yaml to read; the environment wins.  [default: $GATEWAY_CONFIG]"
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def examples(*lines: str) -> str:
    """The end of a command's help: lines to copy."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def require_folder(repository: Path) -> None:
    """Raise ConfigError before anything is started."""
    if not repository.is_dir():
        fix = "Name the folder of the models with --repository or MODEL_REPOSITORY"
        raise ConfigError("no such folder", where=str(repository), fix=fix)
