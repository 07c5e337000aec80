"""Where the picture goes: which part of it lands where in the model's input, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.flow.tiles import Box, cut
from gateway.messages import Geometry
from gateway.models.preprocessing_spec import PreprocessingSpec


@dataclass(frozen=True, slots=True)
class Placement:
    """One part of the picture and its place in one input."""

    box: Box
    """The part, in pixels of the picture."""
    left: int
    top: int
    content: tuple[int, int]
    """Width and height of the part in the input; around it is padding."""
    geometry: Geometry
    cropped: bool = False
    """Whether the input is cut out of the whole picture at its scale, at a whole pixel."""

    @property
    def whole(self) -> tuple[int, int]:
        """Width and height that the whole picture has at this scale, rounded down."""
        geometry = self.geometry
        return int(geometry.width * geometry.scale_x + 1e-6), int(geometry.height * geometry.scale_y + 1e-6)


def place(width: int, height: int, spec: PreprocessingSpec, size: tuple[int, int]) -> tuple[Placement, ...]:
    """All parts of a picture of this size for an input of `size` (height, width); one, unless it is tiled.

    Sizes are whole pixels, so each axis has its own exact scale.
    """
    picture = (0.0, 0.0, float(width), float(height))
    match spec.mode:
        case "stretch":
            return (_put(picture, (width, height), (size[1], size[0]), (0, 0)),)
        case "crop":
            return (_crop(width, height, spec.crop_fraction, size),)
        case "tiles":
            return _tiles(width, height, spec, size)
        case _:
            return (_letterbox(picture, (width, height), spec.align, size),)


def boxes_to_picture(boxes: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Boxes (N, 4) as [x1, y1, x2, y2] from pixels of the input to pixels of the picture.

    They are clipped to what the input shows: the picture, its cropped middle, or the tile. What a model says about
    anything beyond is a guess; an object that a tile cuts is whole in the neighbour, or in the whole picture.
    """
    return points_to_picture(boxes.reshape(-1, 2), geometry).reshape(boxes.shape)


def points_to_picture(points: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Points (N, 2) as [x, y] from pixels of the input to pixels of the picture, clipped as boxes are."""
    left, top, right, bottom = geometry.box or (0, 0, geometry.width, geometry.height)
    offset = np.array((geometry.offset_x, geometry.offset_y))
    scale = np.array((geometry.scale_x, geometry.scale_y))
    clipped: NDArray[np.float64] = np.clip((points - offset) / scale, (left, top), (right, bottom))
    return clipped.astype(np.float32)


def _letterbox(box: Box, picture: tuple[int, int], align: str, size: tuple[int, int]) -> Placement:
    """The part in its own proportions, padding around it."""
    input_height, input_width = size
    width, height = box[2] - box[0], box[3] - box[1]
    ratio = min(input_height / height, input_width / width)
    if align == "top-left":
        # YOLOX, yolox/data/data_augment.py, preproc(): int(side * r), and the rest of the input is padding.
        content = (max(1, int(width * ratio)), max(1, int(height * ratio)))
        return _put(box, picture, content, (0, 0))
    # Ultralytics, ultralytics/data/augment.py, LetterBox: round(side * r), then round(padding / 2 - 0.1) before it,
    # which for whole pixels is the half rounded down.
    content = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return _put(box, picture, content, ((input_width - content[0]) // 2, (input_height - content[1]) // 2))


def _crop(width: int, height: int, fraction: float, size: tuple[int, int]) -> Placement:
    """The middle of the picture, scaled so that the input is `fraction` of the shorter side."""
    input_height, input_width = size
    # timm, timm/data/transforms_factory.py, transforms_imagenet_eval(): floor(side / crop_pct). The allowance makes
    # 0.9492 come out as torchvision's "resize to 236, crop 224", of which it is the fraction in four digits.
    least_width, least_height = int(input_width / fraction + 0.02), int(input_height / fraction + 0.02)
    # torchvision, transforms.Resize: the shorter side is exact, the longer one int(size * long / short).
    if width * least_height <= height * least_width:
        scaled = (least_width, height * least_width // width)
    else:
        scaled = (width * least_height // height, least_height)
    # torchvision, transforms.CenterCrop: int(round((side - crop) / 2.0)), so halves go to the even pixel.
    hidden = (round((scaled[0] - input_width) / 2), round((scaled[1] - input_height) / 2))
    scale_x, scale_y = scaled[0] / width, scaled[1] / height
    box = (
        hidden[0] / scale_x,
        hidden[1] / scale_y,
        min(float(width), (hidden[0] + input_width) / scale_x),
        min(float(height), (hidden[1] + input_height) / scale_y),
    )
    geometry = Geometry(width, height, scale_x, scale_y, -hidden[0], -hidden[1], box)
    return Placement(box, 0, 0, (input_width, input_height), geometry, cropped=True)


def _tiles(width: int, height: int, spec: PreprocessingSpec, size: tuple[int, int]) -> tuple[Placement, ...]:
    """The whole picture first, where asked for, then its tiles; `max_tiles` does not count the whole."""
    tile_height, tile_width = spec.tiles.size or size
    boxes = cut(width, height, (tile_width, tile_height), spec.tiles.overlap, spec.tiles.max_tiles)
    picture = (0.0, 0.0, float(width), float(height))
    if len(boxes) == 1 or spec.tiles.whole:
        boxes = [picture, *boxes] if len(boxes) > 1 else [picture]
    return tuple(_letterbox(box, (width, height), spec.align, size) for box in boxes)


def _put(box: Box, picture: tuple[int, int], content: tuple[int, int], corner: tuple[int, int]) -> Placement:
    """`box` of a picture of this width and height, as large as `content`, with its upper left corner at `corner`."""
    scale_x, scale_y = content[0] / (box[2] - box[0]), content[1] / (box[3] - box[1])
    geometry = Geometry(
        width=picture[0],
        height=picture[1],
        scale_x=scale_x,
        scale_y=scale_y,
        offset_x=corner[0] - box[0] * scale_x,
        offset_y=corner[1] - box[1] * scale_y,
        box=None if box == (0, 0, *picture) else box,
    )
    return Placement(box, *corner, content, geometry)
