"""Where logical models lie: folders with a model.yaml in MODEL_REPOSITORY, or the one MODEL_CONFIG_PATH."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigError
from gateway.models.inference_spec import unknown_label
from gateway.models.onnx_file import labels_of, read_onnx
from gateway.models.spec import ModelSpec, read_labels, read_spec
from gateway.models.torchscript_file import read_torchscript_metadata

ANOMALY_LABELS = ("normal", "anomaly")
"""The classes of a model that says how unusual something is."""


@dataclass(frozen=True, slots=True)
class LogicalModel:
    """A model.yaml with its labels, and where it was read; labels are empty where nothing names them."""

    spec: ModelSpec
    labels: tuple[str, ...]
    path: Path


def read_served(
    repository: Path, model_config_path: Path | None = None
) -> tuple[list[LogicalModel], list[ConfigError]]:
    """The models to serve: the one of MODEL_CONFIG_PATH, else all of the repository, and the errors of the others.

    Raises ConfigError for what is wrong with the one model, or with the repository itself.
    """
    if model_config_path is not None:
        return [read_model(model_config_path, repository)], []
    return read_repository(repository)


def read_repository(root: Path) -> tuple[list[LogicalModel], list[ConfigError]]:
    """All logical models of a repository and the errors of those that cannot be read; one bad one hides no other.

    Raises ConfigError for the repository itself.
    """
    models: dict[str, LogicalModel] = {}
    errors: list[ConfigError] = []
    for path in _model_yamls(root):
        try:
            model = read_model(path, root)
            if model.spec.name in models:
                raise ConfigError(
                    f"name '{model.spec.name}' is also used by {models[model.spec.name].path.parent}",
                    where=str(path),
                    fix="Give each model a name of its own",
                )
            models[model.spec.name] = model
        except ConfigError as error:
            errors.append(error)
    return list(models.values()), errors


def _model_yamls(root: Path) -> list[Path]:
    where, fix = f"MODEL_REPOSITORY={root}", "Name the folder with the models"
    try:
        if not root.is_dir():
            raise ConfigError("no such folder", where=where, fix=fix)
        return sorted(path for path in root.glob("*/model.yaml") if not path.parent.name.startswith("."))
    except (OSError, ValueError) as error:  # a name that is too long, a disk that is gone
        raise ConfigError(f"cannot be read: {_reason(error)}", where=where, fix=fix) from error


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def read_model(path: Path, repository: Path | None = None, version: int | None = None) -> LogicalModel:
    """One model.yaml and its labels, if need be out of the ONNX file in `repository`; raises ConfigError.

    The files of `version` are asked for what they say of themselves; without one those of the newest.
    """
    try:
        return _read_model(path, repository or path.parent.parent, version)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot be read: {_reason(error)}",
            where=str(path),
            fix="Check this path, the files beside it and MODEL_REPOSITORY",
        ) from error


def _read_model(path: Path, repository: Path, version: int | None) -> LogicalModel:
    if path.is_fifo():  # whoever opened it would wait for ever
        raise OSError(errno.EINVAL, "it is no regular file")
    spec = read_spec(path)
    labels = read_labels(spec, path)
    if not labels and spec.model_type in ("anomaly-detection", "sensor-anomaly"):
        labels = ANOMALY_LABELS
    files = _metadata_of_files(spec, repository, version)
    labels = labels or next((found for each in files if (found := labels_of(each))), ())
    spec = _with_defaults_of_files(spec, files)
    # Without any, the model file may be damaged or missing, which Triton's refusal will say; `fit` asks again.
    if labels and (unknown := unknown_label(spec.inference, labels)):
        key, name, hint = unknown
        where = f"inference.{key} names '{name}', which is no label ({hint})"
        raise ConfigError(where, where=str(path), fix="Correct the name")
    return LogicalModel(spec=spec, labels=labels, path=path)


def _metadata_of_files(spec: ModelSpec, repository: Path, version: int | None) -> list[Mapping[str, str]]:
    """What a model file of each variant says of itself, as Ultralytics' tools write it."""
    found = []
    for triton_model in spec.variants.values():
        found_here = (repository / triton_model).glob(f"{version or '*'}/model.*")
        for path in sorted(found_here, key=_newest_first)[:1]:
            with contextlib.suppress(ConfigError):  # Triton says what is wrong with the file when it loads it
                found.append(read_onnx(path).metadata if path.suffix == ".onnx" else read_torchscript_metadata(path))
    return found


def _with_defaults_of_files(spec: ModelSpec, files: list[Mapping[str, str]]) -> ModelSpec:
    """Ultralytics' classifiers end in a softmax; a second one would flatten their confidences."""
    softmaxed = any(each.get("task") == "classify" and "Ultralytics" in each.get("author", "") for each in files)
    if not softmaxed or spec.inference.activation is not None or not spec.layout.name.startswith("classification"):
        return spec
    return spec.model_copy(update={"inference": spec.inference.model_copy(update={"activation": "none"})})


def _newest_first(path: Path) -> int:
    return -int(path.parent.name) if path.parent.name.isdecimal() else 0
