"""What one variant wants as input: settled once, from the loaded model's signature and model.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Meaning = Literal["input_height_width", "input_width_height", "scale_height_width", "mask"]
"""What an input beside the picture is told: the size of the input in pixels, the scale 1, or what is no padding."""

Datatype = Literal["FP32", "FP16", "UINT8", "INT8"]


@dataclass(frozen=True, slots=True)
class ExtraInput:
    """An input beside the picture."""

    name: str
    meaning: Meaning
    datatype: str
    """Triton's name: FP32, INT64, ..."""
    batch_axis: bool = True


@dataclass(frozen=True, slots=True)
class InputPlan:
    """One picture input and what stands beside it; equal plans of two variants share one tensor."""

    name: str
    height: int
    width: int
    channels: Literal[1, 3] = 3
    channels_last: bool = False
    """True: (H, W, C), as TensorFlow exports have it."""
    datatype: Datatype = "FP32"
    extras: tuple[ExtraInput, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The input of a model on plain numbers."""

    name: str
    shape: tuple[int, ...]
    """Without the batch axis: (window, channels), (channels, window), or all numbers in one axis."""
    datatype: Literal["FP32", "FP16"] = "FP32"
