"""What the commands on models read before anything else: the models to serve, and the user's own layouts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gateway.config import Settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.models.repository import LogicalModel


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


def log_to_stderr() -> None:
    """What is logged while models are read, as sentences; on stdout it would stand in the JSON."""
    from gateway.logs import configure_logging

    configure_logging("warning", "sentence", sys.stderr)
