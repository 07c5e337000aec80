"""Models that cannot serve: the answer to the load call says what is wrong, where, and how to fix it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.local.conftest import Server
from tests.local.tiny_models import FILES, Double, Tensors, add_model, onnx_double, parameters, pbtxt, torch_model

pytestmark = pytest.mark.triton

X: Tensors = {"x": ("FP32", [3])}
Y: Tensors = {"y": ("FP32", [3])}
TORCH_Y: Tensors = {"y__0": ("FP32", [3])}
REFUSED: dict[str, tuple[str, str, bytes | str | None, list[str]]] = {
    # name: (variant, config, content or None for no file, what the answer must say)
    "garbage-onnx": ("onnx", pbtxt("onnx"), b"not a model", ["cannot read the model", "1/model.onnx", "sha256"]),
    "garbage-torch": (
        "torch",
        pbtxt("torch", inputs=X, outputs=TORCH_Y),
        b"not a model",
        ["cannot read", "1/model.pt", "sha256"],
    ),
    "truncated-onnx": (
        "onnx",
        pbtxt("onnx", inputs=X, outputs=Y),
        onnx_double()[:-40],
        ["cannot read the model", "1/model.onnx"],
    ),
    "empty-onnx": ("onnx", pbtxt("onnx"), b"", ["0 bytes"]),
    "empty-torch": ("torch", pbtxt("torch", inputs=X, outputs=TORCH_Y), b"", ["0 bytes"]),
    "missing-onnx": ("onnx", pbtxt("onnx"), None, ["no model file 'model.onnx'", "notes.txt"]),
    "missing-torch": (
        "torch",
        pbtxt("torch", inputs=X, outputs=TORCH_Y),
        None,
        ["no model file 'model.pt'", "notes.txt"],
    ),
    "bare-torch": ("torch", pbtxt("torch"), "double", ["must declare input and output", "x: Tensor", "dims"]),
    "wrong-name": (
        "onnx",
        pbtxt("onnx", inputs={"picture": ("FP32", [3])}, outputs=Y, max_batch_size=2),
        onnx_double(),
        ["input 'picture'", "the model has x"],
    ),
    "wrong-type": (
        "onnx",
        pbtxt("onnx", inputs=X, outputs={"y": ("FP16", [3])}, max_batch_size=2),
        onnx_double(),
        ["output 'y' is TYPE_FP16", "TYPE_FP32"],
    ),
    "wrong-dims": (
        "onnx",
        pbtxt("onnx", inputs=X, outputs={"y": ("FP32", [4])}, max_batch_size=2),
        onnx_double(),
        ["output 'y' has dims [4]", "set dims: [3]"],
    ),
    "wrong-type-torch": (
        "torch",
        pbtxt("torch", inputs=X, outputs={"y__0": ("INT64", [3])}, max_batch_size=2),
        "double",
        ["output 'y__0' is TYPE_INT64", "TYPE_FP32"],
    ),
    "too-many-outputs": (
        "torch",
        pbtxt("torch", inputs=X, outputs={"y__0": ("FP32", [3]), "y__1": ("FP32", [3])}, max_batch_size=2),
        "double",
        ["returned 1 tensor(s)", "y__1"],
    ),
    "too-many-inputs": (
        "torch",
        pbtxt(
            "torch",
            inputs={"x": ("FP32", [3]), "z": ("FP32", [3])},
            outputs=TORCH_Y,
            max_batch_size=2,
        ),
        "double",
        ["declares 2 input(s)", "forward() takes 1: x"],
    ),
    "bad-threads": (
        "onnx",
        pbtxt("onnx", inputs=X, outputs=Y, max_batch_size=2, extra=parameters(intra_op_thread_count="many")),
        onnx_double(),
        ["intra_op_thread_count is 'many'"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_serve_is_refused_with_the_reason(
    server: Server, repository: Path, tmp_path: Path, name: str
) -> None:
    variant, config, content, expected = REFUSED[name]
    if content == "double":
        content = torch_model(Double(), tmp_path / "double.pt")
    if content is None:
        add_model(repository, name, config, "notes.txt", b"no model here")
    else:
        assert isinstance(content, bytes)
        add_model(repository, name, config, FILES[variant], content)
    with pytest.raises(InferenceServerException) as refusal:
        server.load(name)
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
    for text in [*expected, "Fix: "]:
        assert text in str(refusal.value)


def test_a_version_that_cannot_be_read_leaves_the_old_one_serving(
    server: Server, repository: Path, add_double: Callable[..., Path]
) -> None:
    path = add_double(repository, "stays", "onnx", max_batch_size=2)
    server.load("stays")
    (path.parents[1] / "2").mkdir()
    (path.parents[1] / "2" / "model.onnx").write_bytes(b"not a model")
    both = {
        "platform": "onnxruntime_onnx",
        "max_batch_size": 2,
        "version_policy": {"specific": {"versions": [1, 2]}},
    }
    with pytest.raises(InferenceServerException, match="cannot read the model"):
        server.load("stays", json.dumps(both))
    ones = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(server.ask("stays", {"x": ones}, ["y"], version="1")["y"], ones * 2)
