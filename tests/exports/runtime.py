"""Runs exports and says what they look like from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Export:
    """The files of one family; not every tool makes TorchScript."""

    onnx: Path
    torchscript: Path | None = None

    def describe(self, size: tuple[int, int], channels: int = 3) -> None:
        """Prints names, shapes and types of the inputs and outputs, for the how-to pages."""
        session = _session(self.onnx)
        for word, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
            for value in values:
                print(f"  onnx {word}: {value.name} {value.shape} {value.type}")
        if self.torchscript is not None:
            answer = run_torchscript(self.torchscript, np.zeros((1, channels, *size), np.float32))
            print(f"  torchscript outputs: {[(list(value.shape), str(value.dtype)) for value in answer]}")


def run_onnx(path: Path, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The outputs by name; inputs in the order of the model."""
    session = _session(path)
    names = [value.name for value in session.get_inputs()]
    answer = session.run(None, dict(zip(names, inputs, strict=True)))
    return {value.name: np.asarray(found) for value, found in zip(session.get_outputs(), answer, strict=True)}


def run_torchscript(path: Path, value: NDArray[Any]) -> list[NDArray[Any]]:
    """The outputs in their order; a dictionary's or a nested tuple's values one after the other."""
    import torch

    with torch.inference_mode():
        return [found.numpy() for found in _flat(cast("Any", torch.jit.load)(str(path))(torch.from_numpy(value)))]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [part for one in value for part in _flat(one)] if isinstance(value, list | tuple) else [value]


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
