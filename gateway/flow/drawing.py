"""The part of a decoded picture that an input shows, at its size there."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gateway.flow.pictures import Decoded
from gateway.flow.placement import Placement
from gateway.flow.resizing import resized
from gateway.flow.tiles import Box
from gateway.models.preprocessing_spec import PreprocessingSpec

MOST_AROUND = 8
"""How many times the pixels of the input the whole picture may have at its scale, to be resized before it is cut."""
_PART = 2048
"""OpenCV counts the share of a neighbouring pixel in 1/2048."""
_ROWS = 32
"""Rows of the input that are computed at once as OpenCV does."""


def draw(decoded: Decoded, placement: Placement, spec: PreprocessingSpec) -> Image.Image:
    """The part of the picture at its size in the input, upright, in mode L or RGB.

    `bilinear` and `bicubic` weigh all pixels that they shrink into one; `decode: full` gives Pillow's own pixels.
    `opencv` gives cv2.resize's INTER_LINEAR to within one grey level: two pixels each way and nothing in between, so
    the JPEG must be decoded in full before. It takes 4 ms for 224 x 224 and 10 ms for 640 x 640 (one core).
    """
    box = decoded.on_raster(placement.box)
    size = decoded.stored(placement.content)
    if spec.resample == "opencv":
        part = _as_opencv(decoded.raster, box, size)
    elif placement.cropped and math.prod(placement.whole) <= MOST_AROUND * math.prod(size):
        part = _resized_and_cropped(decoded, placement, spec)
    else:
        part = resized(decoded.raster, size, spec.resample, box, exact=spec.decode == "full")
    return decoded.upright(part if part.mode in ("L", "RGB") else part.convert("RGB"))


def _resized_and_cropped(decoded: Decoded, placement: Placement, spec: PreprocessingSpec) -> Image.Image:
    """The whole resized and then cut, in the two steps of torchvision and timm, whose pixels these are.

    Resizing only the part is the same but for rounding in between, which is worth up to seven grey levels.
    """
    picture = decoded.on_raster((0.0, 0.0, placement.geometry.width, placement.geometry.height))
    size = decoded.stored(placement.whole)
    box = decoded.on_raster(placement.box)
    left, top = round(box[0] * size[0] / picture[2]), round(box[1] * size[1] / picture[3])
    width, height = decoded.stored(placement.content)
    whole = resized(decoded.raster, size, spec.resample, picture, exact=spec.decode == "full")
    return whole.crop((left, top, left + width, top + height))


def _as_opencv(raster: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
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

    result = np.empty((size[1], size[0], *pixels.shape[2:]), np.uint8)
    # A few rows at a time stay in the processor's cache, and take no memory worth the name of a picture however wide.
    for first in range(0, size[1], _ROWS):
        part = slice(first, first + _ROWS)
        upper, lower = line(rows[part]), line(below[part])
        upper *= _PART - below_share[part]
        lower *= below_share[part]
        upper >>= 16
        lower >>= 16
        upper += lower
        upper += 2
        upper >>= 2
        result[part] = upper
    return Image.fromarray(result)


def _neighbours(
    start: float, end: float, count: int, length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """For each output pixel along one axis the two input pixels that it lies between, and the share of the second."""
    position = (start + (np.arange(count) + 0.5) * ((end - start) / count) - 0.5).astype(np.float32)
    position = position.clip(0, length - 1)
    first = position.astype(np.intp)
    share = np.rint((position - first) * np.float32(_PART)).astype(np.int32)
    return first, np.minimum(first + 1, length - 1), share
