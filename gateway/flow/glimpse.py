"""A picture as people look at it: upright, no wider than asked, as a JPEG."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from gateway.flow.pictures import decode, open_picture, turn_to_hold

QUALITY = 80
TALLEST = 2
"""Times its width that a picture may be high; a higher one is shown narrower."""


@dataclass(frozen=True, slots=True, eq=False)
class Glimpse:
    """A picture made smaller; `width` and `height` are those of the original, upright."""

    width: int
    height: int
    jpeg: bytes

    @property
    def text(self) -> str:
        """The JPEG in base64."""
        return base64.b64encode(self.jpeg).decode()


def glimpse(image: bytes, width: int, max_image_pixels: int) -> Glimpse:
    """The picture in at most `width` pixels across; safe to run in threads.

    Its size is looked at before anything is decoded. Raises ImageUndecodable and ImageTooLarge.
    """
    picture = open_picture(image, max_image_pixels)
    scale = min(1.0, width / picture.width, TALLEST * width / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    with turn_to_hold(picture, size):
        decoded = decode(picture, size)
        box = decoded.on_raster((0, 0, picture.width, picture.height))
        small = decoded.raster.resize(decoded.stored(size), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
        raster = decoded.upright(small)
    file = io.BytesIO()
    (raster if raster.mode in ("L", "RGB") else raster.convert("RGB")).save(file, "JPEG", quality=QUALITY)
    return Glimpse(picture.width, picture.height, file.getvalue())
