"""Quick real detectors of red and green pictures, for both backends, and such as must not come into service."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from tests.local.tiny_models import onnx_model

SIDE = 32
"""Height and width of the input in pixels."""
LABELS = ("person", "forklift")
CHANNELS, ANCHORS = 4 + len(LABELS), 21
BOX = (16.0, 16.0, 16.0, 16.0)
"""Centre x, y, width, height of the one object that there is in every picture."""
WIDE, ROWS, ROUNDS = 1024, 48, 30
"""Of the multiplications that make a detector slow: about 3 GFLOP."""

Floats = NDArray[np.float32]


def picture(red: int, green: int, blue: int) -> bytes:
    """A PNG of one colour, the size of the input: red is a person, green a forklift, as confident as it is bright."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (red, green, blue)).save(buffer, "PNG")
    return buffer.getvalue()


def weights(version: int, *, swapped: bool = False) -> tuple[Floats, Floats]:
    """A matrix (3, channels x anchors) on the mean colour, and what is added: each version sees the same.

    `swapped` takes persons for forklifts.
    """
    matrix = np.zeros((3, CHANNELS, ANCHORS), np.float32)
    for number in range(len(LABELS)):
        matrix[len(LABELS) - 1 - number if swapped else number, 4 + number, 0] = 1.0
    matrix[2, 4:, 1:] = version * 1e-6  # other weights, and the same answers
    added = np.zeros((CHANNELS, ANCHORS), np.float32)
    added[:4] = np.array(BOX, np.float32)[:, None]
    return matrix.reshape(3, -1), added.reshape(-1)


def onnx_detector(version: int, *, swapped: bool = False, slow: bool = False, ballast: Floats | None = None) -> bytes:
    """For ONNX Runtime; a slow one takes more than ten milliseconds in place of one; `ballast` makes the file large."""
    matrix, added = weights(version, swapped=swapped)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["colour", "matrix", "added"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["output0"]),
        _constant("matrix", matrix),
        _constant("added", added),
        _constant("shape", np.array([-1, CHANNELS, ANCHORS], np.int64)),
    ]
    if ballast is not None:
        nodes.append(_constant("ballast", ballast))
    nodes += _slowly() if slow else [helper.make_node("Identity", ["mean"], ["colour"])]
    known = {name for node in nodes for name in node.output}
    assert {"matrix", "added", "shape", "colour"} <= known
    return onnx_model(
        _sorted(nodes),
        [("images", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [("output0", TensorProto.FLOAT, ["n", CHANNELS, ANCHORS])],
    )


def _slowly() -> list[Any]:
    """Adds next to nothing to the mean colour, by way of large multiplications."""
    large = np.full((WIDE, WIDE), 1e-4, np.float32)
    nodes = [
        _constant("rows", np.array([-1, ROWS, SIDE * SIDE * 3 // ROWS], np.int64)),
        _constant("wider", np.full((SIDE * SIDE * 3 // ROWS, WIDE), 1e-4, np.float32)),
        _constant("large", large),
        _constant("tiny", np.array(1e-9, np.float32)),
        helper.make_node("Reshape", ["images", "rows"], ["narrow"]),
        helper.make_node("MatMul", ["narrow", "wider"], ["wide0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"wide{n}", "large"], [f"wide{n + 1}"]) for n in range(ROUNDS)]
    nodes += [
        helper.make_node("ReduceMean", [f"wide{ROUNDS}"], ["much"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["much", "tiny"], ["little"]),
        _constant("one", np.array([1], np.int64)),
        helper.make_node("Unsqueeze", ["little", "one"], ["column"]),
        helper.make_node("Add", ["mean", "column"], ["colour"]),
    ]
    return nodes


def _constant(name: str, values: NDArray[np.generic]) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = helper.make_tensor(name, kind, values.shape, values.tobytes(), raw=True)
    return helper.make_node("Constant", [], [name], value=tensor)


def _sorted(nodes: list[Any]) -> list[Any]:
    """Each node after those that it takes from, as ONNX wants it."""
    known, left, done = {"images"}, list(nodes), []
    while left:
        node = next(each for each in left if set(each.input) <= known)
        known |= set(node.output)
        done.append(node)
        left.remove(node)
    return done


class Detector(torch.nn.Module):
    """The same as TorchScript."""

    def __init__(self, matrix: torch.Tensor, added: torch.Tensor, channels: int, anchors: int) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(matrix)
        self.added = torch.nn.Parameter(added)
        self.channels = channels
        self.anchors = anchors

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = torch.addmm(self.added, images.mean(dim=[2, 3]), self.matrix)
        return flat.view(-1, self.channels, self.anchors)


def torch_detector(version: int, *, swapped: bool = False) -> bytes:
    """For libtorch."""
    matrix, added = weights(version, swapped=swapped)
    module = Detector(torch.from_numpy(matrix), torch.from_numpy(added), CHANNELS, ANCHORS)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated in favour of torch.export; Triton takes both
        torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def python_detector(*, crashes_at: int | None = None) -> bytes:
    """The same for Triton's Python backend; one that crashes ends its process at that request."""
    return f'''"""Mean colour to boxes."""
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.asked = 0

    def execute(self, requests):
        answers = []
        for request in requests:
            self.asked += 1
            if self.asked == {crashes_at}:
                os._exit(1)
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            found = np.zeros((len(images), {CHANNELS}, {ANCHORS}), np.float32)
            found[:, :4] = np.array({BOX}, np.float32)[:, None]
            found[:, 4:, 0] = images.mean(axis=(2, 3))[:, :{len(LABELS)}]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("output0", found)]))
        return answers
'''.encode()


MODEL_FILES = {"onnx": "model.onnx", "torch": "model.pt", "python": "model.py"}
TENSORS = {"onnx": ("images", "output0"), "torch": ("images__0", "output0__0"), "python": ("images", "output0")}
BACKENDS = {
    "onnx": 'platform: "onnxruntime_onnx"',
    "torch": 'platform: "pytorch_libtorch"',
    "python": 'backend: "python"',
}


def config_text(variant: str, *, anchors: int = ANCHORS) -> str:
    """The config.pbtxt of a detector."""
    image, output = TENSORS[variant]
    return (
        f"{BACKENDS[variant]}\n"
        "max_batch_size: 2\n"
        f'input {{ name: "{image}" data_type: TYPE_FP32 dims: [3, {SIDE}, {SIDE}] }}\n'
        f'output {{ name: "{output}" data_type: TYPE_FP32 dims: [{CHANNELS}, {anchors}] }}\n'
        "instance_group { count: 1 }\n"
    )


def write(folder: Path, variant: str, content: bytes, version: int, config: str | None = None) -> Path:
    """One version of a Triton model; returns the path of its file."""
    path = folder / str(version) / MODEL_FILES[variant]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if config is not None or not (folder / "config.pbtxt").exists():
        (folder / "config.pbtxt").write_text(config or config_text(variant))
    return path
