"""A result drawn into its picture: boxes, classes, confidence."""

from __future__ import annotations

import io
import math
from itertools import islice
from typing import Any

import msgspec
from PIL import Image, ImageDraw, ImageFont

from gateway.errors import SnapshotError
from gateway.flow.pictures import decode, open_picture
from gateway.terminal.printable import one_cell_each

COLOURS = ("#2fbf4f", "#ff3b30", "#ffb000", "#3b82f6", "#c026d3", "#14b8a6")
MOST_BOXES = 300
MOST_LETTERS = 80
SMALLEST_TEXT, LARGEST_TEXT = 12, 64
QUALITY = 85

Box = tuple[float, float, float, float]
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


class _Prediction(msgspec.Struct):
    name: str = msgspec.field(name="class")
    class_id: int
    confidence: float
    bbox: Box | None = None


class _Result(msgspec.Struct):
    device_id: str
    model_name: str
    model_version: str
    backend_used: str
    inference_time_ms: float
    predictions: list[_Prediction]


def annotate(image: bytes, result: dict[str, Any], max_pixels: int) -> bytes | None:
    """The picture as JPEG with what a result message says of it, a line of text above.

    None for a picture that the gateway would not read, and for a result that is not as documented. Takes some ten
    milliseconds for each megapixel.
    """
    try:
        found = msgspec.convert(result, _Result)
        decoded = decode(open_picture(image, max_pixels))
        picture = decoded.upright(decoded.raster).convert("RGB")
    except (msgspec.ValidationError, SnapshotError):
        return None
    size = min(LARGEST_TEXT, max(SMALLEST_TEXT, picture.height // 45))
    font, bar = ImageFont.load_default(size), 2 * size
    canvas = Image.new("RGB", (picture.width, picture.height + bar))
    canvas.paste(picture, (0, bar))
    draw = ImageDraw.Draw(canvas)
    for item in islice(found.predictions, MOST_BOXES):
        if item.bbox is not None and all(map(math.isfinite, item.bbox)):
            _box(draw, item, _inside(item.bbox, canvas.size, bar), font, canvas.size, bar)
    draw.text((size // 2, bar // 2), _caption(found), fill="white", font=font, anchor="lm")
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _inside(bbox: Box, size: tuple[int, int], top: int) -> Box:
    """Where it is drawn, in a picture that begins at `top`: a box may reach beyond, or come upside down."""
    left, right = sorted(min(max(each, 0.0), size[0] - 1.0) for each in (bbox[0], bbox[2]))
    upper, lower = sorted(min(max(each, 0.0) + top, size[1] - 1.0) for each in (bbox[1], bbox[3]))
    return left, upper, right, lower


def _box(
    draw: ImageDraw.ImageDraw, item: _Prediction, where: Box, font: _Font, size: tuple[int, int], top: int
) -> None:
    """A rectangle, and its class above it, but inside the picture."""
    colour = COLOURS[item.class_id % len(COLOURS)]
    draw.rectangle(where, outline=colour, width=max(2, top // 11))
    text = one_cell_each(f"{item.name} {item.confidence:.2f}", MOST_LETTERS)
    text_left, text_top, text_right, text_bottom = draw.textbbox((0, 0), text, font=font, anchor="lt")
    wide, high = text_right - text_left + 8, text_bottom - text_top + 8
    x, y = max(0.0, min(where[0], size[0] - wide)), max(float(top), where[1] - high)
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    draw.text((x + 4, y + 4), text, fill="black", font=font, anchor="lt")


def _caption(result: _Result) -> str:
    classes = [f"{item.name} {item.confidence:.2f}" for item in result.predictions[:4] if item.bbox is None]
    parts = (
        result.device_id,
        f"{result.model_name} v{result.model_version}",
        f"{result.backend_used} {result.inference_time_ms:.1f} ms",
        ", ".join(classes),
    )
    return "   ".join(one_cell_each(part, MOST_LETTERS) for part in parts)
