"""What several commands share: kinds of values, options, and how examples stand in their help."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from gateway.errors import ConfigError


class FiniteRange(click.FloatRange):
    """A number between bounds; NaN lies between none, and would never end a wait."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does; raises BadParameter for what is not finite too."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"'{value}' is no finite number", param, ctx)
        return number


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
JSON_LINES = click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, as it comes.")


def examples(*lines: str) -> str:
    """The end of a command's help: lines to copy."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def require_folder(repository: Path) -> None:
    """Raise ConfigError before anything is started."""
    if not repository.is_dir():
        fix = "Name the folder of the models with --repository or MODEL_REPOSITORY"
        raise ConfigError("no such folder", where=str(repository), fix=fix)
