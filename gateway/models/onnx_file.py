"""What an ONNX file says of itself: inputs, outputs and metadata, read without its weights and without onnx.

The numbers are those of onnx.proto. A file of gigabytes costs a few milliseconds and some kilobytes of memory.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import ConfigError
from gateway.messages import TensorSpec
from gateway.models.wire_format import BYTES, Field, WireError, WireReader
from gateway.regular_file import open_regular

MAX_NAME_BYTES = 4096
MAX_TENSORS = 1000
MAX_RANK = 64
MAX_METADATA = 1000
MAX_METADATA_BYTES = 1 << 20
"""Of one entry; a larger one is left out, for nothing of ours is that large."""

MODEL_IR_VERSION, MODEL_GRAPH, MODEL_METADATA = 1, 7, 14
GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE_INITIALIZER = 5, 11, 12, 15
TENSOR_NAME, SPARSE_VALUES = 8, 1
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR, TYPE_DENOTATION = 1, 6
TENSOR_ELEMENT, TENSOR_SHAPE = 1, 2
SHAPE_DIMENSION, DIMENSION_VALUE = 1, 1
ENTRY_KEY, ENTRY_VALUE = 1, 2

DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
"""onnx.TensorProto.DataType in Triton's names; Triton has none for the others."""

_TEXT = r"""(?:'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+")"""
_NUMBERED = rf"\s*+(?:\d{{1,6}}|'\d{{1,6}}')\s*+:\s*+{_TEXT}\s*+"
_FLAT_NAMES = re.compile(rf"\s*+(?:\{{{_NUMBERED}(?:,{_NUMBERED})*+\}}|\[\s*+{_TEXT}\s*+(?:,\s*+{_TEXT}\s*+)*+\])\s*+")
"""A flat dict or list of texts. Held against it first, no text can make Python's parser nest, which may crash it."""


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What the graph takes and gives, in the file's order, and the file's metadata.

    -1 is an open dimension, the batch included. A tensor of which the file gives no shape has the shape ().
    onnxruntime infers more when it loads the file: it may fix a dimension that is open here.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_onnx(path: Path) -> OnnxFacts:
    """The facts of an ONNX file; raises ConfigError for one that cannot be read or is no ONNX model."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ConfigError("the model file is empty (0 bytes)", where=str(path), fix="Copy it again, completely")
            if file.read(4) == b"PK\x03\x04":
                raise ConfigError(
                    "is a zip archive, as TorchScript files are, and no ONNX model",
                    where=str(path),
                    fix='Put it beside a config.pbtxt with platform: "pytorch_libtorch" as model.pt, or export ONNX',
                )
            return _Walk(WireReader(file, size), path).facts()
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), fix="Check the path and its permissions"
        ) from error
    except WireError as error:
        raise ConfigError(
            f"is no complete ONNX model: it {error}",
            where=str(path),
            fix="Copy it again and compare its sha256 with the original, or export it again",
        ) from error


def labels_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names in `names` as Ultralytics writes it, by class id; () when there are none or ids are missing.

    It is a Python literal: {0: 'person', 1: 'bicycle'} or ['person', 'bicycle'].
    """
    text = metadata.get("names", "")
    if len(text) > MAX_METADATA_BYTES or not _FLAT_NAMES.fullmatch(text):
        return ()
    try:
        names = ast.literal_eval(text.strip())
        "".join(names.values() if isinstance(names, dict) else names).encode()
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # such as a broken \x escape, or half a character
        return ()
    if isinstance(names, list):
        return tuple(names)
    by_id = {int(key): name for key, name in names.items()}
    return tuple(by_id[number] for number in sorted(by_id)) if sorted(by_id) == list(range(len(names))) else ()


class _Walk:
    """One reading of one file."""

    def __init__(self, reader: WireReader, path: Path) -> None:
        self._reader = reader
        self._path = path
        self._inputs: dict[str, TensorSpec] = {}
        self._outputs: dict[str, TensorSpec] = {}
        self._initializers: set[str] = set()
        self._metadata: dict[str, str] = {}

    def facts(self) -> OnnxFacts:
        seen = set()
        for part in self._reader.whole():
            seen.add(part.number)
            if part.number == MODEL_GRAPH:
                self._graph(part)
            elif part.number == MODEL_METADATA:
                self._entry(part)
        if not {MODEL_IR_VERSION, MODEL_GRAPH} <= seen:
            raise WireError("has no graph")
        inputs = tuple(spec for name, spec in self._inputs.items() if name not in self._initializers)
        return OnnxFacts(inputs, tuple(self._outputs.values()), self._metadata)

    def _graph(self, graph: Field) -> None:
        # A constant that may be overridden stands among the inputs too, under the same name.
        for part in self._reader.inside(graph):
            if part.number == GRAPH_INPUT:
                self._add(self._inputs, part, "input")
            elif part.number == GRAPH_OUTPUT:
                self._add(self._outputs, part, "output")
            elif part.number == GRAPH_INITIALIZER:
                self._initializers.update(self._texts(self._reader.inside(part), TENSOR_NAME))
            elif part.number == GRAPH_SPARSE_INITIALIZER:
                for values in self._reader.inside(part):
                    if values.number == SPARSE_VALUES:
                        self._initializers.update(self._texts(self._reader.inside(values), TENSOR_NAME))

    def _texts(self, parts: Iterable[Field], number: int) -> list[str]:
        return [self._name(part) for part in parts if part.number == number]

    def _name(self, part: Field) -> str:
        try:
            return self._reader.content(part, MAX_NAME_BYTES).decode()
        except UnicodeDecodeError:
            raise WireError("has a name that is not UTF-8") from None

    def _add(self, found: dict[str, TensorSpec], value: Field, side: str) -> None:
        name, kind = "", None
        for part in self._reader.inside(value):
            if part.number == VALUE_NAME:
                name = self._name(part)
            elif part.number == VALUE_TYPE:
                kind = part
        if kind is None:
            raise WireError(f"has the {side} {name!r} without a type")
        if len(found) >= MAX_TENSORS:
            raise WireError(f"has more than {MAX_TENSORS} {side}s")
        found[name] = TensorSpec(name, *self._tensor_type(kind, f"{side} {name[:200]!r}"))

    def _tensor_type(self, kind: Field, tensor: str) -> tuple[str, tuple[int, ...]]:
        for part in self._reader.inside(kind):
            if part.number == TYPE_TENSOR:
                return self._element_and_shape(part, tensor)
            if part.number != TYPE_DENOTATION:
                raise ConfigError(
                    f"{tensor} is a sequence or map, and Triton serves tensors only",
                    where=str(self._path),
                    fix="Export the model without it (scikit-learn: options={'zipmap': False})",
                )
        raise WireError(f"has no type for {tensor}")

    def _element_and_shape(self, tensor_type: Field, tensor: str) -> tuple[str, tuple[int, ...]]:
        element, shape = 0, []
        for part in self._reader.inside(tensor_type):
            if part.number == TENSOR_ELEMENT:
                element = part.value
            elif part.number == TENSOR_SHAPE:
                shape = [self._size(each) for each in self._reader.inside(part) if each.number == SHAPE_DIMENSION]
        if len(shape) > MAX_RANK:
            raise WireError(f"has {len(shape)} dimensions for {tensor}, the limit is {MAX_RANK}")
        if element not in DATATYPES:
            raise ConfigError(
                f"{tensor} has the ONNX type {element}, for which Triton has none",
                where=str(self._path),
                fix=f"Export the model with one of {', '.join(DATATYPES.values())}",
            )
        return DATATYPES[element], tuple(shape)

    def _size(self, dimension: Field) -> int:
        sizes = [part.value for part in self._reader.inside(dimension) if part.number == DIMENSION_VALUE]
        return sizes[-1] if sizes and sizes[-1] < 1 << 63 else -1  # a negative number is one beyond, unsigned

    def _entry(self, entry: Field) -> None:
        if entry.kind == BYTES and entry.end - entry.start > MAX_METADATA_BYTES:
            return
        key, value = b"", b""
        for part in self._reader.inside(entry):
            if part.number == ENTRY_KEY:
                key = self._reader.content(part, MAX_NAME_BYTES)
            elif part.number == ENTRY_VALUE:
                value = self._reader.content(part, MAX_METADATA_BYTES)
        if len(self._metadata) < MAX_METADATA:
            self._metadata[key.decode(errors="replace")] = value.decode(errors="replace")
