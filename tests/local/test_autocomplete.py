"""Drops with little or no config.pbtxt in the real tritonserver, and what of them read_drop says without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from gateway.adapters.triton_drop import read_drop
from gateway.messages import TensorSpec
from tests.local import tiny_models
from tests.local.conftest import Server
from tests.local.tiny_models import FILES, add_model, onnx_detr, onnx_identities, onnx_model, pbtxt, torch_model

pytestmark = pytest.mark.triton

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
PICTURE = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)


def agree(server: Server, folder: Path) -> int:
    """Hold what read_drop says against what Triton serves; returns its max_batch_size."""
    expected = read_drop(folder).config
    metadata = server.client.get_model_metadata(folder.name)
    for specs, tensors in (
        (expected.signature.inputs, metadata.inputs),
        (expected.signature.outputs, metadata.outputs),
    ):
        served = {TensorSpec(each.name, each.datatype, tuple(each.shape)) for each in tensors}
        assert served == set(specs)
    config = server.client.get_model_config(folder.name).config
    assert config.max_batch_size == expected.signature.max_batch_size
    assert config.HasField("dynamic_batching") == expected.dynamic_batching
    assert (config.platform, config.backend) == (expected.platform, expected.backend)
    return int(config.max_batch_size)


def row_means() -> bytes:
    """One number for each of the batch: an output without an axis beside it."""
    node = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0)
    return onnx_model([node], [("x", FLOAT, ["n", 3, 4, 4])], [("mean", FLOAT, ["n"])])


def grand_mean() -> bytes:
    """One number for all: an output without any axis."""
    node = helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0)
    return onnx_model([node], [("x", FLOAT, ["n", 3, 4, 4])], [("mean", FLOAT, [])])


def values(kind: type[np.generic], *shape: int) -> NDArray[Any]:
    return (np.arange(np.prod(shape)) % 100).reshape(shape).astype(kind)


ECHOED: dict[str, tuple[bytes, dict[str, NDArray[Any]], int]] = {
    # name: (model, what to send, max_batch_size)
    "half": (onnx_identities(("x", HALF, ["n", 3, 4, 4])), {"x": values(np.float16, 2, 3, 4, 4)}, 4),
    "bytes": (onnx_identities(("x", TensorProto.UINT8, ["n", 4, 4, 3])), {"x": values(np.uint8, 1, 4, 4, 3)}, 4),
    "signed": (onnx_identities(("x", TensorProto.INT8, [1, 3, 4, 4])), {"x": values(np.int8, 1, 3, 4, 4)}, 0),
    "any-size": (onnx_identities(("x", FLOAT, ["n", 3, "h", "w"])), {"x": values(np.float32, 1, 3, 7, 5)}, 4),
    "any-size-alone": (onnx_identities(("x", FLOAT, [1, 3, "h", "w"])), {"x": values(np.float32, 1, 3, 7, 5)}, 0),
    "no-batch-axis": (onnx_identities(("x", FLOAT, [3, 4])), {"x": values(np.float32, 3, 4)}, 0),
    "mixed": (
        onnx_identities(("a", FLOAT, ["n", 2]), ("b", INT64, ["n", 1]), ("c", TensorProto.UINT8, ["n", 3])),
        {"a": values(np.float32, 3, 2), "b": values(np.int64, 3, 1), "c": values(np.uint8, 3, 3)},
        4,
    ),
    "not-all-batched": (
        onnx_identities(("a", FLOAT, ["n", 2]), ("b", INT64, [2])),
        {"a": values(np.float32, 3, 2), "b": values(np.int64, 2)},
        0,
    ),
}


@pytest.mark.parametrize("name", ECHOED)
def test_an_onnx_file_alone_is_served_as_read_drop_says(server: Server, repository: Path, name: str) -> None:
    content, sent, max_batch_size = ECHOED[name]
    add_model(repository, name, None, "model.onnx", content)
    server.load(name)
    assert agree(server, repository / name) == max_batch_size
    answers = server.ask(name, dict(sent), [f"out_{key}" for key in sent])
    for key, array in sent.items():
        assert answers[f"out_{key}"].dtype == array.dtype
        np.testing.assert_array_equal(answers[f"out_{key}"], array)


def test_a_number_for_each_of_the_batch_gets_an_axis(server: Server, repository: Path) -> None:
    add_model(repository, "row-means", None, "model.onnx", row_means())
    server.load("row-means")
    assert agree(server, repository / "row-means") == 4
    batch = np.concatenate([PICTURE, PICTURE + 1])
    assert server.ask("row-means", {"x": batch}, ["mean"])["mean"].tolist() == [[23.5], [24.5]]


def test_a_number_for_all_makes_the_model_unbatched(server: Server, repository: Path) -> None:
    add_model(repository, "grand-mean", None, "model.onnx", grand_mean())
    server.load("grand-mean")
    assert agree(server, repository / "grand-mean") == 0
    assert server.ask("grand-mean", {"x": PICTURE}, ["mean"])["mean"].tolist() == [23.5]


@pytest.mark.parametrize("size", [1, 8])
def test_platform_and_batch_size_are_enough(server: Server, repository: Path, size: int) -> None:
    name = f"detr-{size}"
    add_model(repository, name, pbtxt("onnx", max_batch_size=size), "model.onnx", onnx_detr())
    server.load(name)
    assert agree(server, repository / name) == size


def test_outputs_are_filled_in_beside_given_inputs(server: Server, repository: Path) -> None:
    config = pbtxt("onnx", inputs={"x": ("FP32", [3, 640, 640])}, max_batch_size=2)
    add_model(repository, "half-given", config, "model.onnx", onnx_identities(("x", FLOAT, ["n", 3, "h", "w"])))
    server.load("half-given")
    assert agree(server, repository / "half-given") == 2


def test_a_model_that_cannot_batch_is_refused_by_both(server: Server, repository: Path) -> None:
    content = onnx_identities(("x", FLOAT, [1, 3]))
    add_model(repository, "cannot-batch", pbtxt("onnx", max_batch_size=2), "model.onnx", content)
    with pytest.raises(InferenceServerException, match="max_batch_size is 2"):
        server.load("cannot-batch")
    with pytest.raises(Exception, match="max_batch_size is 2"):
        read_drop(repository / "cannot-batch")


def test_large_weights_lie_beside_the_file_in_a_folder(server: Server, repository: Path, tmp_path: Path) -> None:
    weight = helper.make_tensor("w", FLOAT, [1, 1024], np.full(1024, 2, np.float32).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 1024])],
        [weight],
    )
    folder = repository / "large" / "1" / "model.onnx"
    folder.mkdir(parents=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(folder / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=1)
    assert (folder / "weights.bin").stat().st_size >= 4096
    server.load("large")
    assert agree(server, repository / "large") == 4
    ones = np.ones((1, 1024), np.float32)
    np.testing.assert_array_equal(server.ask("large", {"x": ones}, ["y"])["y"], ones * 2)


def test_torchscript_alone_is_refused_with_what_to_write(server: Server, repository: Path, tmp_path: Path) -> None:
    content = torch_model(tiny_models.Double(), tmp_path / "double.pt")
    add_model(repository, "torch-alone", None, "model.pt", content)
    with pytest.raises(InferenceServerException) as refusal:
        server.load("torch-alone")
    for said in ("must declare input and output", "x: Tensor", "INPUT__0"):
        assert said in str(refusal.value)


DETR_INPUTS = {"images": ("FP32", [3, 8, 8]), "orig_target_sizes": ("INT64", [2])}
DETR_OUTPUTS = {"labels__0": ("INT64", [4]), "boxes__1": ("FP32", [4, 4]), "scores__2": ("FP32", [4])}


@pytest.mark.parametrize("variant", ["onnx", "torch"])
def test_two_inputs_and_three_outputs_of_several_types(
    server: Server, repository: Path, tmp_path: Path, variant: str
) -> None:
    name = f"detr-{variant}"
    if variant == "onnx":
        add_model(repository, name, None, "model.onnx", onnx_detr())
        outputs = [each.partition("__")[0] for each in DETR_OUTPUTS]
    else:
        config = pbtxt("torch", inputs=DETR_INPUTS, outputs=DETR_OUTPUTS, max_batch_size=4)
        add_model(repository, name, config, "model.pt", torch_model(tiny_models.Detr(), tmp_path / "detr.pt"))
        outputs = list(DETR_OUTPUTS)
    server.load(name)
    agree(server, repository / name)
    images = np.stack([np.full((3, 8, 8), level, np.float32) for level in (0.25, 0.5)])
    sizes = np.array([[640, 480], [1920, 1080]])
    answers = server.ask(name, {"images": images, "orig_target_sizes": sizes}, outputs)
    labels, boxes, scores = (answers[output] for output in outputs)
    assert labels.dtype == np.int64
    assert labels.tolist() == [[2] * 4] * 2
    assert boxes.tolist() == [[[0, 0, 640, 480]] * 4, [[0, 0, 1920, 1080]] * 4]
    assert scores.tolist() == [[0.25] * 4, [0.5] * 4]


@pytest.mark.parametrize(("batch", "kind"), [(0, "FP32"), (2, "FP32"), (0, "FP16"), (2, "FP16")])
def test_torchscript_with_any_size_and_a_tuple(
    server: Server, repository: Path, tmp_path: Path, batch: int, kind: str
) -> None:
    name = f"halves-{batch}-{kind}".lower()
    lead = [] if batch else [-1]
    config = pbtxt(
        "torch",
        inputs={"x": (kind, [*lead, 3, -1, -1])},
        outputs={"half__0": (kind, [*lead, 1, -1, -1]), "mean__1": (kind, [*lead, 3])},
        max_batch_size=batch,
    )
    add_model(repository, name, config, FILES["torch"], torch_model(tiny_models.Halves(), tmp_path / "halves.pt"))
    server.load(name)
    assert agree(server, repository / name) == batch
    for height, width in ((4, 4), (5, 7)):
        sent: NDArray[Any] = np.ones((2, 3, height, width), "f2" if kind == "FP16" else "f4")
        answers = server.ask(name, {"x": sent}, ["half__0", "mean__1"])
        np.testing.assert_array_equal(answers["half__0"], sent[:, :1] / 2)
        np.testing.assert_array_equal(answers["mean__1"], sent[:, :, 0, 0])
