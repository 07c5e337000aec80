"""What a folder of the model repository holds, as Triton would see it, without starting anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gateway.adapters.triton_config import CONFIG_FILE, TritonConfig, read_config
from gateway.errors import ConfigError
from gateway.messages import ModelSignature
from gateway.models.onnx_file import OnnxFacts, read_onnx
from gateway.models.onnx_signature import check, complete
from gateway.models.torchscript_file import read_torchscript_metadata
from gateway.schema import unknown_key

NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of model that Triton knows by itself."""

    platform: str
    backend: str
    filename: str


TENSORRT = Format("tensorrt_plan", "tensorrt", "model.plan")
ONNX = Format("onnxruntime_onnx", "onnxruntime", "model.onnx")
OPENVINO = Format("", "openvino", "model.xml")
TORCHSCRIPT = Format("pytorch_libtorch", "pytorch", "model.pt")
TORCH_AOTI = Format("torch_aoti", "pytorch", "model.pt2")
PYTHON = Format("", "python", "model.py")
FORMATS = (TENSORRT, ONNX, OPENVINO, TORCHSCRIPT, TORCH_AOTI, PYTHON)
"""In the order in which Triton looks for their files."""
PLATFORMS = {**{each.platform: each for each in FORMATS if each.platform}, "libtorch": TORCHSCRIPT}


@dataclass(frozen=True, slots=True)
class DropFacts:
    """One Triton model folder.

    `config` is completed as far as the files tell: a TensorRT engine without tensors in its config.pbtxt has none here,
    for only Triton reads those. `files` are the model files of the `served` versions, empty for a backend that is not
    known here. `onnx` and `metadata` (of ONNX and TorchScript files) are those of the highest served version.
    """

    folder: Path
    config: TritonConfig
    has_config: bool
    versions: tuple[int, ...]
    served: tuple[int, ...]
    files: Mapping[int, Path] = field(default_factory=dict)
    onnx: OnnxFacts | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_drop(folder: Path, version: int | None = None) -> DropFacts:
    """Read a model folder; raises ConfigError for what Triton would refuse to load, as far as the files tell.

    With a version as if only that one were served, whatever version_policy says.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", where=str(folder), fix="Name a folder of the model repository")
    name = folder.absolute().name
    has_config = (folder / CONFIG_FILE).exists()
    config = read_config(folder / CONFIG_FILE) if has_config else TritonConfig(ModelSignature(name, "", (), ()))
    if config.signature.name != name:
        raise ConfigError(
            f"names the model '{config.signature.name}', its folder is '{name}'",
            where=str(folder / CONFIG_FILE),
            fix="Rename the folder, or leave `name` out",
        )
    versions = _versions(folder)
    served = _served(config, versions, version, folder)
    facts = DropFacts(folder, config, has_config, versions, served)
    kind = None if config.ensemble else _format(config, folder, served)
    return facts if kind is None else _with_files(facts, kind)


def _served(config: TritonConfig, versions: tuple[int, ...], version: int | None, folder: Path) -> tuple[int, ...]:
    """The versions that are served; raises ConfigError when there are none."""
    if version is not None and version not in versions:
        raise ConfigError(
            f"has no version {version}, there is {_listed(versions)}",
            where=str(folder),
            fix=f"Put the model into {folder.name}/{version}/",
        )
    served = config.version_policy.choose(versions) if version is None else (version,)
    if not served:
        raise ConfigError(
            f"version_policy asks for {_listed(config.version_policy.specific)}, there is {_listed(versions)}",
            where=str(folder / CONFIG_FILE),
            fix="Add the version, or correct version_policy",
        )
    return served


def _versions(folder: Path) -> tuple[int, ...]:
    """The version folders that Triton takes: whole numbers without leading zeros."""
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    found = sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)
    if found:
        return tuple(found)
    loose = [each.filename for each in FORMATS if (folder / each.filename).exists()]
    what = (
        f"{loose[0]} lies beside" if loose else f"there is only {_listed(names)}" if names else "there are no folders"
    )
    raise ConfigError(
        f"has no version folder: {what}",
        where=str(folder),
        fix=f"Put the model into a folder named by its version: 1/{loose[0] if loose else ONNX.filename}",
    )


def _format(config: TritonConfig, folder: Path, served: tuple[int, ...]) -> Format | None:
    """What kind of model it is, by config.pbtxt or else by its files; None for a backend that is not known here."""
    where = str(folder / CONFIG_FILE)
    if config.platform and config.platform not in PLATFORMS and not config.backend:
        raise ConfigError(
            unknown_key(config.platform, PLATFORMS, "platform"), where=where, fix="Use one, or name the `backend`"
        )
    if config.backend:
        named = [each for each in FORMATS if each.backend == config.backend]
        chosen = next((each for each in named if each.platform == config.platform), named[0] if named else None)
        if chosen and config.platform in PLATFORMS and PLATFORMS[config.platform] not in named:
            raise ConfigError(
                f"has platform '{config.platform}' and backend '{config.backend}', which disagree",
                where=where,
                fix="Leave `backend` out",
            )
        return chosen
    if config.platform:
        return PLATFORMS[config.platform]
    name = config.model_filename
    version = folder / str(served[-1])
    chosen = next((each for each in FORMATS if (name == each.filename if name else _holds(version, each))), None)
    if chosen is None:
        raise _no_model_file(version, name or ONNX.filename, None)
    return chosen


def _holds(version: Path, kind: Format) -> bool:
    return (version / kind.filename).exists()


def _with_files(facts: DropFacts, kind: Format) -> DropFacts:
    name = facts.config.model_filename or kind.filename
    files = {version: _model_file(facts.folder / str(version), name, kind) for version in facts.served}
    config = replace(
        facts.config,
        platform=facts.config.platform or kind.platform,
        backend=facts.config.backend or kind.backend,
        model_filename=name,
    )
    facts = replace(facts, config=config, files=files)
    if kind is ONNX:
        return _with_onnx(facts)
    if kind is TORCHSCRIPT:
        return _with_torchscript(facts)
    return facts


def _model_file(version: Path, name: str, kind: Format) -> Path:
    path = version / name
    if path.is_dir() and kind is ONNX:  # so that the files of its large weights lie beside it
        path = path / ONNX.filename
    if not path.is_file():
        raise _no_model_file(version, name, kind)
    if path.stat().st_size == 0:
        raise ConfigError("the model file is empty (0 bytes)", where=str(path), fix="Copy it again, completely")
    return path


def _no_model_file(version: Path, name: str, kind: Format | None) -> ConfigError:
    present = sorted(path.name for path in version.iterdir())
    other = next((each for each in FORMATS if kind and each is not kind and _holds(version, each)), None)
    if not present:
        return ConfigError("the version folder is empty", where=str(version), fix=f"Put the model there as {name}")
    if kind is not None and other is not None:
        said = f"platform '{kind.platform}'" if kind.platform else f"backend '{kind.backend}'"
        return ConfigError(
            f"{CONFIG_FILE} says {said}, the folder holds {other.filename}",
            where=str(version),
            fix=f"Put {name} there, or correct {CONFIG_FILE}"
            + (f' to platform: "{other.platform}"' if other.platform else ""),
        )
    return ConfigError(
        f"there is no model file '{name}', only {_listed(present)}",
        where=str(version),
        fix=f"Rename the model to {name}, or name it with default_model_filename (and platform) in {CONFIG_FILE}",
    )


def _with_onnx(facts: DropFacts) -> DropFacts:
    where = str(facts.folder / CONFIG_FILE) if facts.has_config else str(facts.folder)
    given, config, onnx = facts.config, facts.config, OnnxFacts((), ())
    for path in facts.files.values():  # each version is loaded with the same configuration; the last is the highest
        onnx = read_onnx(path)
        signature = complete(given.signature, onnx, where)
        filled_in = _names(signature) - _names(given.signature)
        check(signature, onnx, where, reshaped=given.reshaped | filled_in, hidden_inputs=given.hidden_inputs)
        batching = bool(filled_in) and signature.max_batch_size > 1 and not given.hidden_inputs
        config = replace(given, signature=signature, dynamic_batching=given.dynamic_batching or batching)
    return replace(facts, config=config, onnx=onnx, metadata=onnx.metadata)


def _names(signature: ModelSignature) -> frozenset[str]:
    return frozenset(spec.name for spec in (*signature.inputs, *signature.outputs))


def _with_torchscript(facts: DropFacts) -> DropFacts:
    signature = facts.config.signature
    missing = [side for side, specs in (("input", signature.inputs), ("output", signature.outputs)) if not specs]
    if missing:
        raise ConfigError(
            f"lacks {' and '.join(missing)}, and a TorchScript file holds no shapes to fill them in",
            where=str(facts.folder / CONFIG_FILE),
            fix="Declare name (forward()'s argument or INPUT__0; outputs OUTPUT__0, ...), data_type and dims of each",
        )
    metadata: Mapping[str, str] = {}
    for path in facts.files.values():
        metadata = read_torchscript_metadata(path)
    return replace(facts, metadata=metadata)


def _listed(names: list[str] | tuple[int, ...]) -> str:
    shown = ", ".join(str(name) for name in names[:NAMES_SHOWN])
    return f"{shown}, ..." if len(names) > NAMES_SHOWN else shown or "none"
