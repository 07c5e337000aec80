"""Where logical models lie: folders with a model.yaml in MODEL_REPOSITORY, or the one MODEL_CONFIG_PATH."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigError
from gateway.models.spec import ModelSpec, read_labels, read_spec


@dataclass(frozen=True, slots=True)
class LogicalModel:
    """A model.yaml with its labels, and where they were read."""

    spec: ModelSpec
    labels: tuple[str, ...]
    folder: Path


def read_repository(root: Path) -> tuple[list[LogicalModel], list[ConfigError]]:
    """All logical models of a repository and the errors of those that cannot be read; one bad one hides no other."""
    models: dict[str, LogicalModel] = {}
    errors: list[ConfigError] = []
    if not root.is_dir():
        raise ConfigError("no such folder", where=f"MODEL_REPOSITORY={root}", fix="Name the folder with the models")
    for path in sorted(root.glob("*/model.yaml")):
        try:
            model = read_model(path)
            if model.spec.name in models:
                raise ConfigError(
                    f"name '{model.spec.name}' is also used by {models[model.spec.name].folder}",
                    where=str(path),
                    fix="Give each model a name of its own",
                )
            models[model.spec.name] = model
        except ConfigError as error:
            errors.append(error)
    return list(models.values()), errors


def read_model(path: Path) -> LogicalModel:
    """One model.yaml and its labels; raises ConfigError."""
    spec = read_spec(path)
    return LogicalModel(spec=spec, labels=read_labels(spec, path.parent), folder=path.parent)
