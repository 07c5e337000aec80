"""Tiny ONNX and TorchScript models in a Triton model repository, made in the test that needs them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

PLATFORMS = {"onnx": "onnxruntime_onnx", "torch": "pytorch_libtorch"}
FILES = {"onnx": "model.onnx", "torch": "model.pt"}

OnnxTensor = tuple[str, int, Sequence[int | str]]
Tensors = Mapping[str, tuple[str, Sequence[int]]]


def pbtxt(
    variant: str,
    *,
    inputs: Tensors | None = None,
    outputs: Tensors | None = None,
    max_batch_size: int = 0,
    extra: str = "",
) -> str:
    """A config.pbtxt; tensors as {name: (type without TYPE_, dims)}."""
    lines = [f'platform: "{PLATFORMS[variant]}"']
    if max_batch_size:
        lines.append(f"max_batch_size: {max_batch_size}")
    for side, tensors in (("input", inputs), ("output", outputs)):
        for name, (kind, dims) in (tensors or {}).items():
            lines.append(f'{side} {{ name: "{name}" data_type: TYPE_{kind} dims: {list(dims)} }}')
    return "\n".join([*lines, extra, ""])


def parameters(**values: object) -> str:
    """The `parameters` lines of a config.pbtxt."""
    return "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()
    )


def add_model(repository: Path, name: str, config: str, file: str, content: bytes, *, version: int = 1) -> Path:
    """Write one version of a model; returns the path of its model file."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    path = folder / file
    path.write_bytes(content)
    return path


def onnx_model(nodes: Sequence[Any], inputs: Sequence[OnnxTensor], outputs: Sequence[OnnxTensor]) -> bytes:
    """A graph of these nodes; an old opset and format, so that any onnxruntime reads it."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnx_double() -> bytes:
    """y = x + x for x of shape [n, 3]."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return onnx_model([node], [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, ["n", 3])])


def onnx_lookup() -> bytes:
    """y = [10, 11, 12, 13][x] for x of shape [n, 1]; fails for an x that is not 0 to 3."""
    table = helper.make_node(
        "Constant", [], ["table"], value=helper.make_tensor("table", TensorProto.FLOAT, [4], [10.0, 11.0, 12.0, 13.0])
    )
    node = helper.make_node("Gather", ["table", "x"], ["y"], axis=0)
    return onnx_model([table, node], [("x", TensorProto.INT64, ["n", 1])], [("y", TensorProto.FLOAT, ["n", 1])])


def torch_model(module: torch.nn.Module, path: Path) -> bytes:
    """The module as TorchScript, by way of a file as people do it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated in favour of torch.export; Triton takes both
        torch.jit.save(torch.jit.script(module), str(path))
    return path.read_bytes()


class Double(torch.nn.Module):
    """y = x + x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


class Lookup(torch.nn.Module):
    """Like onnx_lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor([10.0, 11.0, 12.0, 13.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x]


class SumAndDifference(torch.nn.Module):
    """Two inputs, a tuple of two outputs."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


class AsList(torch.nn.Module):
    """Like SumAndDifference, as a list."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        return [a + b, a - b]


class AsDict(torch.nn.Module):
    """Like SumAndDifference, as a dict."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": a + b, "difference": a - b}


class FromDict(torch.nn.Module):
    """Takes its two inputs as a dict."""

    def forward(self, x: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return x["a"] + x["b"], x["a"] - x["b"]


class Parallel(torch.nn.Module):
    """y = x + 1, by way of an operation large enough for torch to share among its threads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(1000000).exp().log().mean()


class Echo(torch.nn.Module):
    """Eight inputs, one of each type, and the same as outputs."""

    def forward(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        d: torch.Tensor,
        e: torch.Tensor,
        f: torch.Tensor,
        g: torch.Tensor,
        h: torch.Tensor,
    ) -> tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
    ]:
        return a.clone(), b.clone(), c.clone(), d.clone(), e.clone(), f.clone(), g.clone(), h.clone()
