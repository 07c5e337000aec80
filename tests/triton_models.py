"""Tiny real models for the embedded Triton, and the same as functions for MemoryTriton."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gateway.messages import ModelSignature, TensorSpec

ONNX_TYPES = {
    "FP32": TensorProto.FLOAT,
    "FP16": TensorProto.FLOAT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "BOOL": TensorProto.BOOL,
}
FREE = -1


def numpy_type(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy type of an input of `types`."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(ONNX_TYPES[spec.datatype]))


def double_signature(name: str) -> ModelSignature:
    """Up to four rows of three numbers, each doubled."""
    row = (FREE, 3)
    return ModelSignature(name, "1", (TensorSpec("x", "FP32", row),), (TensorSpec("y__0", "FP32", row),), 4)


def double(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the `double` models do."""
    return {"y__0": inputs["x"] * np.float32(2)}


def types_signature(name: str) -> ModelSignature:
    """One input and one output of each type, of any length, without a batch axis."""
    return ModelSignature(
        name,
        "1",
        tuple(TensorSpec(f"in_{kind}", kind, (FREE,)) for kind in ONNX_TYPES),
        tuple(TensorSpec(f"out_{kind}", kind, (FREE,)) for kind in ONNX_TYPES),
    )


def identities(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the `types` model does."""
    return {name.replace("in_", "out_"): array for name, array in inputs.items()}


def write_double_onnx(repository: Path, name: str) -> None:
    """`double` for ONNX Runtime."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y__0"])]
    _write_onnx(_model_file(repository, double_signature(name), "onnxruntime_onnx", "model.onnx"), nodes, name)


def write_double_torch(repository: Path, name: str) -> None:
    """`double` as TorchScript."""
    import torch

    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    path = _model_file(repository, double_signature(name), "pytorch_libtorch", "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what Triton's libtorch backend takes
        torch.jit.script(Double()).save(str(path))  # type: ignore[no-untyped-call]


def times_signature(name: str, version: int) -> ModelSignature:
    """As `double`, but version n multiplies by n."""
    return replace(double_signature(name), version=str(version))


def times(factor: int) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """What a version of the `times` models does."""
    return lambda inputs: {"y__0": inputs["x"] * np.float32(factor)}


def write_times_onnx(repository: Path, name: str, versions: Iterable[int], *, config: bool = True) -> None:
    """`times` for ONNX Runtime in several versions; with `config` False without a config.pbtxt."""
    for version in versions:
        path = _model_file(repository, times_signature(name, version), "onnxruntime_onnx", "model.onnx")
        factor = helper.make_tensor("factor", TensorProto.FLOAT, [], [version])
        nodes = [helper.make_node("Constant", [], ["k"], value=factor), helper.make_node("Mul", ["x", "k"], ["y__0"])]
        _write_onnx(path, nodes, name)
    if not config:
        (repository / name / "config.pbtxt").unlink()


def write_broken_version(repository: Path, name: str, version: int) -> None:
    """A version whose file is damaged."""
    path = _model_file(repository, times_signature(name, version), "onnxruntime_onnx", "model.onnx")
    path.write_bytes(b"no model")


def config_text(signature: ModelSignature, platform: str = "onnxruntime_onnx") -> str:
    """The config.pbtxt of a model."""
    batch_axes = 1 if signature.max_batch_size else 0
    lines = [f'name: "{signature.name}"', f'platform: "{platform}"', f"max_batch_size: {signature.max_batch_size}"]
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            dims = ", ".join(str(side) for side in spec.shape[batch_axes:])
            lines.append(f'{kind} [{{ name: "{spec.name}" data_type: TYPE_{spec.datatype} dims: [{dims}] }}]')
    return "\n".join(lines) + "\n"


def write_types_onnx(repository: Path, name: str) -> None:
    """`types` for ONNX Runtime."""
    path = _model_file(repository, types_signature(name), "onnxruntime_onnx", "model.onnx")
    nodes = [helper.make_node("Identity", [f"in_{kind}"], [f"out_{kind}"]) for kind in ONNX_TYPES]
    inputs = [helper.make_tensor_value_info(f"in_{kind}", value, [None]) for kind, value in ONNX_TYPES.items()]
    outputs = [helper.make_tensor_value_info(f"out_{kind}", value, [None]) for kind, value in ONNX_TYPES.items()]
    _save(helper.make_graph(nodes, name, inputs, outputs), path)


def write_broken_onnx(repository: Path, name: str) -> None:
    """A model whose file is damaged, so that its load is refused."""
    _model_file(repository, double_signature(name), "onnxruntime_onnx", "model.onnx").write_bytes(b"no model")


def _write_onnx(path: Path, nodes: list[Any], name: str) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    y = helper.make_tensor_value_info("y__0", TensorProto.FLOAT, [None, 3])
    _save(helper.make_graph(nodes, name, [x], [y]), path)


def _save(graph: Any, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _model_file(repository: Path, signature: ModelSignature, platform: str, file_name: str) -> Path:
    """Write the config.pbtxt of a model; returns where its file belongs."""
    folder = repository / signature.name / signature.version
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(config_text(signature, platform), encoding="utf-8")
    return folder / file_name
