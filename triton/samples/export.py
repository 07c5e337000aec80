"""Writes trained networks as ONNX and as TorchScript, and proves that both answer alike."""

import copy
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import recipe
import torch
from dataset import classifier_input, detector_input, encode
from numpy.typing import NDArray
from readings import faulty_series
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gateway.local.scenes import TEST_SEEDS, render_scene

TOLERANCE = 1e-4
SENSOR_TOLERANCE = 1e-5
CHECKED_SCENES = 8
OPSET = 17


def export(name: str, model: nn.Module) -> float:
    """Writes both files of a model; returns the largest difference between the two on test scenes.

    Raises AssertionError where they differ by more than the tolerance or where a batch changes an answer.
    """
    if name == "sensor":
        return write_variants(recipe.SENSOR_NAME, recipe.SENSOR_PORTS, model, sensor_inputs(), SENSOR_TOLERANCE)
    logical, ports = _names(name)
    return write_variants(logical, ports, model, test_inputs(name, CHECKED_SCENES), TOLERANCE)


def write_variants(
    logical: str, ports: dict[str, tuple[str, str]], model: nn.Module, inputs: NDArray[np.float32], tolerance: float
) -> float:
    """Writes model.onnx and model.pt of one logical model; returns the largest difference between their answers."""
    plain = fused(model)
    onnx_file = recipe.REPOSITORY / f"{logical}-onnx" / "1" / "model.onnx"
    torch_file = recipe.REPOSITORY / f"{logical}-torch" / "1" / "model.pt"
    for file in (onnx_file, torch_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    example = torch.from_numpy(inputs[:2])
    port_in, port_out = ports["onnx"]
    # The tracing exporter: it needs no further package and writes plain operators that old runtimes read too.
    torch.onnx.export(
        plain, (example,), onnx_file, dynamo=False, opset_version=OPSET, input_names=[port_in], output_names=[port_out],
        dynamic_axes={port_in: {0: "batch"}, port_out: {0: "batch"}},
    )  # fmt: skip
    _fix_shape(onnx_file, list(plain(example).shape[1:]))
    traced = torch.jit.trace(plain, example)  # type: ignore[no-untyped-call]
    torch.jit.freeze(traced).save(str(torch_file))
    _without_debug_files(torch_file)
    return _compare(str(onnx_file), str(torch_file), inputs, tolerance)


def _without_debug_files(file: Path) -> None:
    """Takes out which source line made which operator: those records name folders of the machine that exported."""
    with zipfile.ZipFile(file) as archive:
        records = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entry, content in records:
            if not entry.filename.endswith(".debug_pkl"):
                # libtorch maps weights into memory, so each stays aligned: the extra field is filled up to 64 bytes.
                archive.writestr(_aligned(entry.filename, archive.start_dir), content)


def _aligned(name: str, offset: int) -> zipfile.ZipInfo:
    """An entry with a fixed date whose content begins at a multiple of 64 bytes when it is written at `offset`."""
    entry = zipfile.ZipInfo(name)
    fill = -(offset + 30 + len(name.encode()) + 4) % 64  # 30: a local header; 4: the head of the extra field
    entry.extra = b"FB" + fill.to_bytes(2, "little") + b"Z" * fill
    return entry


def _fix_shape(file: Path, dims: list[int]) -> None:
    """States the output's shape, of which the exporter leaves a part open because the batch is."""
    model = onnx.load(file)
    for dim, size in zip(model.graph.output[0].type.tensor_type.shape.dim[1:], dims, strict=True):
        dim.dim_value = size
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def fused(model: nn.Module) -> nn.Module:
    """A copy for inference: every batch normalisation folded into the convolution before it."""
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.modules():
        if isinstance(block, nn.Sequential) and len(block) > 1 and isinstance(block[1], nn.BatchNorm2d):
            block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()  # type: ignore[type-var]
    return model


def test_inputs(name: str, count: int) -> NDArray[np.float32]:
    """Input tensors for the first test scenes."""
    jpegs = [encode(render_scene(seed, recipe.CAMERA_SIZE), seed) for seed in TEST_SEEDS[:count]]
    return np.stack([detector_input(jpeg)[0] if name == "detector" else classifier_input(jpeg) for jpeg in jpegs])


def sensor_inputs() -> NDArray[np.float32]:
    """Windows of the first faulty test sensor: what a healthy one says, and every kind of fault."""
    return next(faulty_series())[0]


def _names(name: str) -> tuple[str, dict[str, tuple[str, str]]]:
    if name == "detector":
        return recipe.DETECTOR_NAME, recipe.DETECTOR_PORTS
    return recipe.CLASSIFIER_NAME, recipe.CLASSIFIER_PORTS


def _compare(onnx_file: str, torch_file: str, inputs: NDArray[np.float32], tolerance: float) -> float:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    script = torch.jit.load(torch_file)  # type: ignore[no-untyped-call]
    port = session.get_inputs()[0].name
    single = np.concatenate([session.run(None, {port: inputs[i : i + 1]})[0] for i in range(len(inputs))])
    with torch.inference_mode():
        batched = script(torch.from_numpy(inputs)).numpy()
    together = session.run(None, {port: inputs})[0]
    # Boxes run to hundreds of pixels: float32 itself rounds them to 3e-5, hence the relative part.
    for answer in (batched, together):
        np.testing.assert_allclose(answer, single, rtol=tolerance, atol=tolerance)
    return float(np.abs(batched - single).max())
