"""Reads Triton's config.pbtxt: what a model takes and gives, and which of its files Triton would open."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]

from gateway.adapters.triton_messages import model_config_pb2
from gateway.errors import ConfigError
from gateway.messages import ModelSignature, TensorSpec
from gateway.regular_file import open_regular
from gateway.schema import unknown_key

CONFIG_FILE = "config.pbtxt"
MAX_CONFIG_BYTES = 1 << 20
MAX_SAID = 300

_PLACE = re.compile(r"(?P<line>\d+):(?P<column>\d+)\s*:\s*")
_UNKNOWN = re.compile(r"(?:Message|Enum) type \"(?P<type>[\w.]+)\" has no (?P<what>field|value) named \"?(?P<name>\w+)")


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions of a model Triton serves: `specific` ones, else the `latest` n, else (None) all."""

    latest: int | None = 1
    specific: tuple[int, ...] = ()

    def choose(self, versions: Iterable[int]) -> tuple[int, ...]:
        """Those of the versions on disk that are served, the lowest first."""
        present = sorted(versions)
        if self.specific:
            return tuple(version for version in present if version in self.specific)
        return tuple(present if self.latest is None else present[max(0, len(present) - self.latest) :])


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """What one config.pbtxt says; texts are empty and tuples of tensors are () where it says nothing.

    `signature` has the shapes of Triton's metadata: with max_batch_size above 0 each begins with -1 for the batch.
    """

    signature: ModelSignature
    platform: str = ""
    backend: str = ""
    model_filename: str = ""
    label_filename: str = ""
    """Of the first output that names one; relative to the model's folder."""
    version_policy: VersionPolicy = VersionPolicy()
    dynamic_batching: bool = False
    ensemble: bool = False
    reshaped: frozenset[str] = frozenset()
    """Inputs and outputs which the model has in another shape than the signature."""
    hidden_inputs: bool = False
    """Whether Triton itself feeds inputs of the model (batch_input, sequence_batching)."""


def read_config(path: Path) -> TritonConfig:
    """One config.pbtxt; raises ConfigError with the line of what is wrong.

    A configuration without a name has that of its folder, as Triton takes it.
    """
    message = parse_config(_read(path), str(path))
    if message.max_batch_size < 0:
        raise ConfigError(
            f"max_batch_size is {message.max_batch_size}", where=str(path), fix="Set it to 0 (no batch axis) or more"
        )
    batched = message.max_batch_size > 0
    return TritonConfig(
        signature=ModelSignature(
            name=message.name or path.absolute().parent.name,
            version="",
            inputs=tuple(_tensor(each, "input", batched, str(path)) for each in message.input),
            outputs=tuple(_tensor(each, "output", batched, str(path)) for each in message.output),
            max_batch_size=message.max_batch_size,
        ),
        platform=message.platform,
        backend=message.backend,
        model_filename=message.default_model_filename,
        label_filename=next((each.label_filename for each in message.output if each.label_filename), ""),
        version_policy=_version_policy(message),
        dynamic_batching=message.HasField("dynamic_batching"),
        ensemble=message.HasField("ensemble_scheduling"),
        reshaped=frozenset(each.name for each in (*message.input, *message.output) if each.HasField("reshape")),
        hidden_inputs=bool(message.batch_input) or message.HasField("sequence_batching"),
    )


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigError("the file is larger than 1 MiB", where=str(path), fix="A configuration is a few lines")
        return content.decode()
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), fix="Check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"is not UTF-8 in line {line}", where=str(path), fix="Save the file as UTF-8") from error


def parse_config(text: str, where: str) -> Any:
    """The text of a config.pbtxt as Triton's ModelConfig message; raises ConfigError with the line of what is wrong."""
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, ValueError) as error:  # ValueError for some numbers out of range
        said = " ".join(str(error).split())
        place = _PLACE.match(said)
        line = f" in line {place['line']}" if place else ""
        raise ConfigError(
            f"is no valid model configuration{line}: {_in_plain_words(said[place.end() if place else 0 :])}",
            where=where,
            fix="Correct it; the fields are those of Triton's model configuration",
        ) from error
    return message


def _in_plain_words(said: str) -> str:
    """What protobuf says, with the nearest name where one is not known."""
    found = _UNKNOWN.search(said)
    if found is None:
        return said[:MAX_SAID].rstrip(".")  # it may repeat a whole line
    pool = model_config_pb2.DESCRIPTOR.pool
    if found["what"] == "field":
        known = [field.name for field in pool.FindMessageTypeByName(found["type"]).fields]
        return unknown_key(found["name"], known, "field")
    values = [value.name for value in pool.FindEnumTypeByName(found["type"]).values]
    nearest = difflib.get_close_matches(found["name"][:MAX_SAID].upper(), values, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"known values: {', '.join(values)}"
    return f"unknown value '{found['name'][:MAX_SAID]}' ({hint})"


def _tensor(tensor: Any, side: str, batched: bool, where: str) -> TensorSpec:
    """One input or output, held to what Triton itself asks of it."""
    if not tensor.name:
        raise ConfigError(f"an {side} has no name", where=where, fix=f"Name it as the model does, or leave {side} out")
    known = model_config_pb2.DataType.values()
    kind = model_config_pb2.DataType.Name(tensor.data_type) if tensor.data_type in known else "TYPE_INVALID"
    if kind == "TYPE_INVALID":
        raise ConfigError(
            f"{side} '{tensor.name[:200]}' has no data_type", where=where, fix="Give it one, such as TYPE_FP32"
        )
    dims = tuple(tensor.dims)
    if not dims or any(dim < 1 and dim != -1 for dim in dims):
        raise ConfigError(
            f"{side} '{tensor.name[:200]}' has dims {list(dims)[:20]}",
            where=where,
            fix="Give one number for each axis but the batch: at least 1, or -1 for any size",
        )
    datatype = "BYTES" if kind == "TYPE_STRING" else kind.removeprefix("TYPE_")
    return TensorSpec(tensor.name, datatype, (-1, *dims) if batched else dims)


def _version_policy(message: Any) -> VersionPolicy:
    policy = message.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return VersionPolicy(latest=None)
    if kind == "specific":
        return VersionPolicy(latest=None, specific=tuple(policy.specific.versions))
    return VersionPolicy(latest=policy.latest.num_versions or 1)
