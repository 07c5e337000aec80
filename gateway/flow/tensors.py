"""From pixels and readings to the numbers that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gateway.flow.placement import Placement
from gateway.models.input_plan import ExtraInput, InputPlan, WindowPlan
from gateway.models.preprocessing_spec import PreprocessingSpec, SensorSpec

NUMPY_TYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
}
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
"""Gives memory for a tensor of this shape and type, its contents undefined."""


def picture_tensor(
    contents: Sequence[Image.Image],
    placements: Sequence[Placement],
    spec: PreprocessingSpec,
    plan: InputPlan,
    allocate: Allocate = np.empty,
) -> NDArray[np.generic]:
    """The input (tiles, C, H, W) or (tiles, H, W, C) with each content in place and padding around it.

    FP32 and FP16 are normalised if `spec` says so. UINT8 holds 0 to 255 as they are, INT8 the same less 128: neither
    is normalised, because a quantised model has its own scale inside. `mean` and `std` are in the order of `color`;
    an input of one channel takes the first of each. Nothing but what `allocate` gives is as large as the input.
    """
    shape = (plan.height, plan.width, plan.channels) if plan.channels_last else (plan.channels, plan.height, plan.width)
    tensor: NDArray[Any] = allocate((len(contents), *shape), np.dtype(NUMPY_TYPES[plan.datatype]))
    scalings = [_scaling(channel, spec, plan) for channel in range(plan.channels)]
    for one, content, placement in zip(tensor, contents, placements, strict=True):
        if plan.channels_last:
            _write(one.reshape(plan.height, -1), _interleaved(content, spec, plan), placement, scalings)
        else:
            for plane, band, scaling in zip(one, _bands(content, spec, plan), scalings, strict=True):
                _write(plane, band, placement, [scaling])
    return tensor


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What the pixels of one channel become, value * factor - shift; and what stands around them."""

    factor: float
    shift: float
    padding: float


def _scaling(channel: int, spec: PreprocessingSpec, plan: InputPlan) -> _Scaling:
    factor, shift = 1.0, 0.0
    if plan.datatype == "INT8":
        shift = 128.0
    elif spec.normalize and plan.datatype != "UINT8":
        # (value / 255 - mean) / std as one multiplication and, where needed, one subtraction.
        factor, shift = 1.0 / (255.0 * spec.std[channel]), spec.mean[channel] / spec.std[channel]
    return _Scaling(factor, shift, spec.pad_value * factor - shift)


def _write(plane: NDArray[Any], pixels: NDArray[np.uint8], placement: Placement, scalings: Sequence[_Scaling]) -> None:
    """Write the pixels of one channel, or of all in turn, into their place in a plane of as many rows as the input."""
    region = _padded(plane, placement, scalings)
    if plane.dtype == np.uint8:
        region[...] = pixels
    elif plane.dtype == np.int8:
        np.bitwise_xor(pixels, 0x80, out=region.view(np.uint8))
    elif plane.dtype == np.float16:
        # Halves are slow to compute with and slow to round to, so all 256 of them are looked up.
        table = np.stack([_scaled(np.arange(256, dtype=np.float32), [one]) for one in scalings]).astype(np.float16)
        starts = _in_turn(np.arange(0, table.size, 256), pixels.shape[1])
        region[...] = table.take(pixels if len(scalings) == 1 else pixels + starts, mode="clip")
    else:
        region[...] = pixels
        _scaled(region, scalings)


def _scaled(values: NDArray[np.float32], scalings: Sequence[_Scaling]) -> NDArray[np.float32]:
    """The same array, each channel in it multiplied and shifted."""
    length = values.shape[-1]
    if any(one.factor != 1 for one in scalings):
        values *= _in_turn(np.array([one.factor for one in scalings], np.float32), length)
    if any(one.shift for one in scalings):
        values -= _in_turn(np.array([one.shift for one in scalings], np.float32), length)
    return values


def _in_turn(values: NDArray[Any], length: int) -> NDArray[Any]:
    """The value of each channel for a row of `length` numbers, the channels in turn; one number if they are equal."""
    equal = len(values) == 1 or (values == values[0]).all()
    return values[0] if equal else np.tile(values, length // len(values))


def _padded(plane: NDArray[Any], placement: Placement, scalings: Sequence[_Scaling]) -> NDArray[Any]:
    """Write the padding around the content; returns the view that the content shall fill."""
    channels = len(scalings)
    left, top = placement.left * channels, placement.top
    right, bottom = left + placement.content[0] * channels, top + placement.content[1]
    if (right - left, bottom - top) != plane.shape[::-1]:
        padding = np.array([one.padding for one in scalings], np.float32).astype(plane.dtype)
        plane[:top] = plane[bottom:] = _in_turn(padding, plane.shape[1])
        plane[top:bottom, :left] = _in_turn(padding, left)
        plane[top:bottom, right:] = _in_turn(padding, plane.shape[1] - right)
    return plane[top:bottom, left:right]


def _bands(content: Image.Image, spec: PreprocessingSpec, plan: InputPlan) -> Sequence[NDArray[np.uint8]]:
    """The colour channels as planes (height, width), in the order that the model wants."""
    content = _grey_where_wanted(content, spec, plan)
    if content.mode == "L":
        return [np.asarray(content)] * plan.channels
    # Pillow takes the channels apart in half the time that numpy does.
    bands = [np.asarray(band) for band in content.split()]
    return bands[::-1] if spec.color == "BGR" else bands


def _interleaved(content: Image.Image, spec: PreprocessingSpec, plan: InputPlan) -> NDArray[np.uint8]:
    """The colour channels of each pixel in turn (height, width * channels), in the order that the model wants."""
    content = _grey_where_wanted(content, spec, plan)
    if content.mode == "L":
        return np.asarray(content).repeat(plan.channels, axis=1)
    return np.frombuffer(content.tobytes("raw", spec.color), np.uint8).reshape(content.height, -1)


def _grey_where_wanted(content: Image.Image, spec: PreprocessingSpec, plan: InputPlan) -> Image.Image:
    return content.convert("L") if spec.color == "GRAY" or plan.channels == 1 else content


def extra_tensor(extra: ExtraInput, plan: InputPlan, placements: Sequence[Placement]) -> NDArray[np.generic]:
    """What a second input is told: (tiles, 2), or (tiles, H, W) for the mask, whose ones are where picture is.

    The size is that of the input and the scale is one, so that boxes come back in pixels of the input, as they do
    from all other models.
    """
    kind = NUMPY_TYPES[extra.datatype]
    match extra.meaning:
        case "input_height_width":
            return np.tile(np.array((plan.height, plan.width), kind), (len(placements), 1))
        case "input_width_height":
            return np.tile(np.array((plan.width, plan.height), kind), (len(placements), 1))
        case "scale_height_width":
            return np.ones((len(placements), 2), kind)
        case "mask":
            mask: NDArray[np.generic] = np.zeros((len(placements), plan.height, plan.width), kind)
            for one, placement in zip(mask, placements, strict=True):
                width, height = placement.content
                one[placement.top : placement.top + height, placement.left : placement.left + width] = 1
            return mask


def window_tensor(readings: NDArray[np.float64], spec: SensorSpec, plan: WindowPlan) -> NDArray[np.generic]:
    """The last readings (window, channels), normalised, as the input (1, *plan.shape).

    The numbers stand in order of time, each reading's channels together, unless the plan is (channels, window). A
    number beyond the datatype's range becomes the largest that it has.
    """
    values = readings
    if spec.mean:
        values = values - np.array(spec.mean)
    if spec.std:
        values = values / np.array(spec.std)
    lengths = tuple(side for side in plan.shape if side != 1)
    turned = tuple(side for side in values.shape[::-1] if side != 1)
    if lengths == turned and values.shape[0] != values.shape[1]:
        values = values.T
    kind = np.float16 if plan.datatype == "FP16" else np.float32
    most = float(np.finfo(kind).max)
    return values.clip(-most, most).astype(kind).reshape(1, *plan.shape)
