"""From pixels and readings to the numbers that a model takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gateway.flow.pictures import Decoded
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
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MOST_AROUND = 8
"""How many times the pixels of the input the whole picture may have at its scale, to be resized before it is cut."""
_PART = 2048
"""OpenCV counts the share of a neighbouring pixel in 1/2048."""


def draw(decoded: Decoded, placement: Placement, resample: str) -> Image.Image:
    """The part of the picture at its size in the input, upright, in mode L or RGB.

    `bilinear` and `bicubic` weigh all pixels that they shrink into one. `opencv` gives cv2.resize's INTER_LINEAR to
    within one grey level: two pixels each way and nothing in between, so the JPEG must be decoded in full before.
    All of step 4 for a 1080p JPEG of 660 kB takes 4.4 ms for 224 x 224 and 7.4 ms for 640 x 640 with `bilinear`, 4.6
    and 9.2 ms with `bicubic`, 10.5 and 19 ms with `opencv` (one core).
    """
    box = decoded.on_raster(placement.box)
    size = decoded.stored(placement.content)
    if resample == "opencv":
        part = _as_opencv(decoded.raster, box, size)
    elif placement.cropped and math.prod(placement.whole) <= MOST_AROUND * math.prod(size):
        part = _resized_and_cropped(decoded, placement, _FILTERS[resample])
    else:
        part = decoded.raster.resize(size, _FILTERS[resample], box=box)
    return decoded.upright(part if part.mode in ("L", "RGB") else part.convert("RGB"))


def _resized_and_cropped(decoded: Decoded, placement: Placement, resample: Image.Resampling) -> Image.Image:
    """The whole resized and then cut, in the two steps of torchvision and timm, whose pixels these are.

    Resizing only the part is the same but for rounding in between, which is worth up to seven grey levels.
    """
    picture = decoded.on_raster((0.0, 0.0, placement.geometry.width, placement.geometry.height))
    whole = decoded.stored(placement.whole)
    box = decoded.on_raster(placement.box)
    left, top = round(box[0] * whole[0] / picture[2]), round(box[1] * whole[1] / picture[3])
    width, height = decoded.stored(placement.content)
    return decoded.raster.resize(whole, resample, box=picture).crop((left, top, left + width, top + height))


def _as_opencv(raster: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """cv2.resize(..., INTER_LINEAR) in its own integers: half-pixel centres, no smoothing, edges repeated."""
    pixels = np.asarray(raster)
    columns, right, right_share = _neighbours(box[0], box[2], size[0], pixels.shape[1])
    rows, below, below_share = _neighbours(box[1], box[3], size[1], pixels.shape[0])
    across = (1, -1) + (1,) * (pixels.ndim - 2)
    right_share = right_share.reshape(across)
    below_share = below_share.reshape(-1, 1, *across[2:])

    def line(chosen: NDArray[np.intp]) -> NDArray[np.int32]:
        strip = pixels[chosen]
        mixed: NDArray[np.int32] = strip.take(columns, axis=1) * (_PART - right_share)
        mixed += strip.take(right, axis=1) * right_share
        mixed >>= 4
        return mixed

    upper, lower = line(rows), line(below)
    upper *= _PART - below_share
    lower *= below_share
    upper >>= 16
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return Image.fromarray(upper.astype(np.uint8))


def _neighbours(
    start: float, end: float, count: int, length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """For each output pixel along one axis the two input pixels that it lies between, and the share of the second."""
    position = (start + (np.arange(count) + 0.5) * ((end - start) / count) - 0.5).astype(np.float32)
    position = position.clip(0, length - 1)
    first = position.astype(np.intp)
    share = np.rint((position - first) * np.float32(_PART)).astype(np.int32)
    return first, np.minimum(first + 1, length - 1), share


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
    an input of one channel takes the first of each.
    """
    whole_numbers = plan.datatype in ("UINT8", "INT8")
    normalize = spec.normalize and not whole_numbers
    shape = (plan.height, plan.width, plan.channels) if plan.channels_last else (plan.channels, plan.height, plan.width)
    tensor: NDArray[Any] = allocate((len(contents), *shape), np.dtype(np.uint8 if whole_numbers else np.float32))
    for one, content, placement in zip(tensor, contents, placements, strict=True):
        for channel, band in enumerate(_bands(content, spec, plan)):
            plane = one[..., channel] if plan.channels_last else one[channel]
            # (value / 255 - mean) / std as one multiplication and, where needed, one subtraction.
            factor, shift = 1.0, 0.0
            if normalize:
                factor, shift = 1.0 / (255.0 * spec.std[channel]), spec.mean[channel] / spec.std[channel]
            region = _padded(plane, placement, spec.pad_value * factor - shift)
            region[...] = band
            if factor != 1:
                region *= factor
            if shift:
                region -= shift
    if plan.datatype == "INT8":
        return cast("NDArray[np.generic]", (tensor ^ np.uint8(128)).view(np.int8))
    return tensor.astype(np.float16) if plan.datatype == "FP16" else tensor


def _padded(plane: NDArray[Any], placement: Placement, padding: float) -> NDArray[Any]:
    """Write the padding around the content; returns the view that the content shall fill."""
    left, top = placement.left, placement.top
    right, bottom = left + placement.content[0], top + placement.content[1]
    if placement.content[1] < plane.shape[0]:
        plane[:top] = padding
        plane[bottom:] = padding
    if placement.content[0] < plane.shape[1]:
        plane[top:bottom, :left] = padding
        plane[top:bottom, right:] = padding
    return plane[top:bottom, left:right]


def _bands(content: Image.Image, spec: PreprocessingSpec, plan: InputPlan) -> Sequence[NDArray[np.uint8]]:
    """The colour channels as planes, in the order that the model wants."""
    # Splitting in Pillow first and then copying whole planes takes two thirds of the time of a transpose.
    if content.mode == "RGB" and (spec.color == "GRAY" or plan.channels == 1):
        content = content.convert("L")
    bands = [np.asarray(band) for band in content.split()] * (1 if content.mode == "RGB" else plan.channels)
    return bands[::-1] if spec.color == "BGR" else bands


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
