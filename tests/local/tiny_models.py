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


def add_model(repository: Path, name: str, config: str | None, file: str, content: bytes, *, version: int = 1) -> Path:
    """Write one version of a model, without a config.pbtxt if that is None; returns the path of its model file."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    if config is not None:
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


def onnx_identities(*tensors: OnnxTensor) -> bytes:
    """Each input as the output of the same name with `out_` in front."""
    return onnx_model(
        [helper.make_node("Identity", [name], [f"out_{name}"]) for name, _, _ in tensors],
        tensors,
        [(f"out_{name}", kind, shape) for name, kind, shape in tensors],
    )


def onnx_detr() -> bytes:
    """As RT-DETR is exported: picture and original size (int64) to labels, boxes scaled to that size, and scores.

    Here all four queries have the mean of the picture as score, label 2 and the box (0, 0, w, h).
    """
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Expand", ["column", "queries"], ["scores"]),
        helper.make_node("Cast", ["orig_target_sizes"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["size", "size"], ["zeros"]),
        helper.make_node("Concat", ["zeros", "size"], ["box"], axis=1),
        helper.make_node("Unsqueeze", ["box", "one"], ["row"]),
        helper.make_node("Expand", ["row", "boxes_shape"], ["boxes"]),
        helper.make_node("Greater", ["scores", "low"], ["any"]),
        helper.make_node("Where", ["any", "two", "two"], ["labels"]),
    ]
    constants: dict[str, tuple[int, list[int], list[float]]] = {
        "one": (TensorProto.INT64, [1], [1]),
        "queries": (TensorProto.INT64, [2], [1, 4]),
        "boxes_shape": (TensorProto.INT64, [3], [1, 4, 1]),
        "low": (TensorProto.FLOAT, [1], [-1e9]),
        "two": (TensorProto.INT64, [1], [2]),
    }
    nodes = [
        *(
            helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, dims, values))
            for name, (kind, dims, values) in constants.items()
        ),
        *nodes,
    ]
    return onnx_model(
        nodes,
        [("images", TensorProto.FLOAT, ["n", 3, 8, 8]), ("orig_target_sizes", TensorProto.INT64, ["n", 2])],
        [
            ("labels", TensorProto.INT64, ["n", 4]),
            ("boxes", TensorProto.FLOAT, ["n", 4, 4]),
            ("scores", TensorProto.FLOAT, ["n", 4]),
        ],
    )


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


class Detr(torch.nn.Module):
    """Like onnx_detr."""

    def forward(
        self, images: torch.Tensor, orig_target_sizes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = images.mean(dim=[1, 2, 3]).unsqueeze(1).expand(-1, 4)
        size = orig_target_sizes.to(torch.float32)
        boxes = torch.cat([torch.zeros_like(size), size], dim=1).unsqueeze(1).expand(-1, 4, -1)
        return torch.full([images.size(0), 4], 2, dtype=torch.int64), boxes, scores


class Halves(torch.nn.Module):
    """Half of a picture's first channel, and its mean over height and width, for any size."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :1] / 2, x.mean(dim=[2, 3])


class FromTorchvision(torch.nn.Module):
    """Calls an operator that no torchvision has; torch.library must know it where this is made."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.torchvision.of_the_future(x)
        return y
