"""A model that costs nothing, for each input size: what is left is the cost of everything around it.

It cuts twelve numbers out of the picture and takes their softmax. The file is written here, field by field in the wire
format of protobuf, so that no package for ONNX is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

CLASSES = 12
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet, as most classifiers want them: both contestants normalise."""
VARIANTS = ("onnx", "torch")
"""Both are the same ONNX file: two names that Triton works for."""
_INT64, _FLOAT = 7, 1
_INT_ATTRIBUTE = 2

_YAML = """\
name: {name}
model_type: image-classification
labels: labels.txt
variants: {{onnx: {name}-onnx, torch: {name}-torch}}
preprocessing: {{resize: [{size}, {size}], mode: letterbox, mean: {mean}, std: {std}}}
inference: {{output: classification}}
"""
_CONFIG = 'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 8\n'


def write_stub(repository: Path, size: int) -> str:
    """Add the model with square inputs of `size` pixels to a repository; returns its name."""
    name = stub_name(size)
    folder = repository / name
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(_YAML.format(name=name, size=size, mean=[*MEAN], std=[*STD]))
    (folder / "labels.txt").write_text("".join(f"class-{number}\n" for number in range(CLASSES)))
    for variant in VARIANTS:
        version = repository / f"{name}-{variant}" / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(_CONFIG.format(name=version.parent.name))
        (version / "model.onnx").write_bytes(stub_model(size))
    return name


def stub_name(size: int) -> str:
    """As the gateway's catalogue calls it."""
    return f"stub{size}"


def stub_model(size: int) -> bytes:
    """An ONNX file: images (n, 3, size, size) of 32 bit floats -> output0 (n, 12), shares of one."""
    nodes = [
        _node("Slice", ["images", "starts", "ends", "axes"], "cut"),
        _node("Reshape", ["cut", "shape"], "row"),
        _node("Softmax", ["row"], "output0", _field(1, b"axis") + _number(3, 1) + _number(20, _INT_ATTRIBUTE)),
    ]
    constants = {"starts": [0, 0], "ends": [1, CLASSES // 3], "axes": [2, 3], "shape": [-1, CLASSES]}
    graph = b"".join(
        [
            *(_field(1, node) for node in nodes),
            _field(2, b"stub"),
            *(_field(5, _constant(name, values)) for name, values in constants.items()),
            _field(11, _tensor_type("images", [3, size, size])),
            _field(12, _tensor_type("output0", [CLASSES])),
        ]
    )
    return _number(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, 17))  # ONNX 8, operators 17


def _node(operator: str, inputs: Sequence[str], output: str, attribute: bytes = b"") -> bytes:
    named = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode())
    return named + _field(4, operator.encode()) + (_field(5, attribute) if attribute else b"")


def _constant(name: str, values: Sequence[int]) -> bytes:
    raw = struct.pack(f"<{len(values)}q", *values)
    return _number(1, len(values)) + _number(2, _INT64) + _field(8, name.encode()) + _field(9, raw)


def _tensor_type(name: str, dims: Sequence[int]) -> bytes:
    """With a batch of any size in front."""
    shape = b"".join(_field(1, dim) for dim in (_field(2, b"n"), *(_number(1, size) for size in dims)))
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, _FLOAT) + _field(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
