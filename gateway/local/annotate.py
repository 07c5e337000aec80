"""A result drawn into its picture: boxes, classes, confidence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#2fbf4f", "#ff3b30", "#ffb000", "#3b82f6", "#c026d3", "#14b8a6")
BAR = 44


def annotate(image: bytes, result: dict[str, Any], path: Path) -> None:
    """Draw a result message into the picture that it answers and save it as JPEG; raises OSError."""
    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    draw = ImageDraw.Draw(picture)
    size = max(14, picture.height // 45)
    font = ImageFont.load_default(size)
    for item in result["predictions"]:
        colour = COLOURS[item["class_id"] % len(COLOURS)]
        text = f"{item['class']} {item['confidence']:.2f}"
        if "bbox" in item:
            _box(draw, item["bbox"], text, colour, font, picture.width)
    _caption(draw, picture.width, result, font)
    temporary = path.with_suffix(".part")
    picture.save(temporary, "JPEG", quality=85)
    temporary.replace(path)


def _box(
    draw: ImageDraw.ImageDraw,
    bbox: list[float],
    text: str,
    colour: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
) -> None:
    x1, y1, x2, y2 = bbox
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=4)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font, anchor="lt")
    wide, high = right - left + 8, bottom - top + 8
    # Above the box, but inside the picture and below the caption.
    x, y = max(0.0, min(x1, width - wide)), max(float(BAR), y1 - high)
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    draw.text((x + 4, y + 4), text, fill="black", font=font, anchor="lt")


def _caption(
    draw: ImageDraw.ImageDraw,
    width: int,
    result: dict[str, Any],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    classes = ", ".join(f"{i['class']} {i['confidence']:.2f}" for i in result["predictions"] if "bbox" not in i)
    text = (
        f"{result['device_id']}   {result['model_name']} v{result['model_version']}   "
        f"{result['backend_used']} {result['inference_time_ms']:.1f} ms   {classes}"
    )
    draw.rectangle((0, 0, width, BAR), fill="black")
    draw.text((12, BAR // 2), text, fill="white", font=font, anchor="lm")
