"""Step 4: a picture becomes the input tensor, written once for all variants.

Only JPEG and PNG are opened, the size in the header is checked before anything is decoded, and a JPEG is
decoded straight to the smallest eighth that still holds the wanted size.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from gateway.errors import ImageTooLarge, ImageUndecodable
from gateway.messages import Geometry
from gateway.models.spec import PreprocessingSpec

# The readers are used directly and not through Image.open: no search through formats, no second look at
# JPEGs for the 3D format MPO, and no pixel limit for the whole process beside the one given here.
READERS: dict[bytes, Callable[[io.BytesIO], ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
}

LARGE_PIXELS = 4_000_000
_one_at_a_time = threading.Lock()
# Without scaled decoding a picture takes up to 7 bytes a pixel for a moment: large ones are decoded one by one.

DAMAGED = (OSError, SyntaxError, ValueError, IndexError, struct.error)
"""What Pillow raises on damaged bytes: documented, or found by fuzzing (struct.error only before Pillow 12)."""

# Texts and profiles in a PNG are of no use here; a few compressed bytes may claim up to 64 MiB by default.
PngImagePlugin.MAX_TEXT_MEMORY = 4 * 1024 * 1024

# Doubtful metadata is no reason to refuse a picture. A filter for the process, because catching warnings
# around each picture is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which part of the picture lands where in the input; `box` in pixels of the picture."""

    scaled: tuple[int, int]
    """The whole picture at the wanted scale, width and height; larger than the input when cropped."""
    content: tuple[int, int]
    left: int
    top: int
    box: tuple[float, float, float, float]
    geometry: Geometry


def prepare_image(image: bytes, spec: PreprocessingSpec, max_image_pixels: int) -> tuple[NDArray[np.float32], Geometry]:
    """The tensor (1, 3, H, W) and how the picture lies in it; safe to run in threads.

    Raises ImageUndecodable for anything but a whole JPEG or PNG, ImageTooLarge by the size in its header.
    """
    try:
        picture = _open(image)
        width, height = picture.size
        if width * height > max_image_pixels:
            raise ImageTooLarge(f"{width}x{height} pixels, more than {max_image_pixels}", where="image")
        layout = lay_out(width, height, spec)
        with _one_at_a_time if width * height > LARGE_PIXELS else contextlib.nullcontext():
            content = _scale(picture, layout)
    except DAMAGED as error:
        raise ImageUndecodable("the picture is damaged or cut off", where="image") from error
    return _to_tensor(content, layout, spec), layout.geometry


def lay_out(width: int, height: int, spec: PreprocessingSpec) -> Layout:
    """Where a picture of this size goes; sizes are whole pixels, so each axis has its own exact scale."""
    input_height, input_width = spec.resize
    if spec.mode == "stretch":
        scaled_width, scaled_height = input_width, input_height
    else:
        ratios = (input_width / width, input_height / height)
        ratio = min(ratios) if spec.mode == "letterbox" else max(ratios)
        scaled_width, scaled_height = max(1, round(width * ratio)), max(1, round(height * ratio))
    geometry = Geometry(
        width=width,
        height=height,
        scale_x=scaled_width / width,
        scale_y=scaled_height / height,
        offset_x=(input_width - scaled_width) // 2,
        offset_y=(input_height - scaled_height) // 2,
    )
    content = (min(scaled_width, input_width), min(scaled_height, input_height))
    hidden_x, hidden_y = max(0.0, -geometry.offset_x), max(0.0, -geometry.offset_y)
    return Layout(
        scaled=(scaled_width, scaled_height),
        content=content,
        left=max(0, (input_width - scaled_width) // 2),
        top=max(0, (input_height - scaled_height) // 2),
        box=(
            hidden_x / geometry.scale_x,
            hidden_y / geometry.scale_y,
            min(width, (hidden_x + content[0]) / geometry.scale_x),
            min(height, (hidden_y + content[1]) / geometry.scale_y),
        ),
        geometry=geometry,
    )


def boxes_to_picture(boxes: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Boxes (N, 4) as [x1, y1, x2, y2] from pixels of the input to pixels of the picture, clipped to it."""
    offset = np.array([geometry.offset_x, geometry.offset_y] * 2)
    scale = np.array([geometry.scale_x, geometry.scale_y] * 2)
    corner = np.array([geometry.width, geometry.height] * 2)
    clipped: NDArray[np.float64] = np.clip((boxes - offset) / scale, 0, corner)
    return clipped.astype(np.float32)


def _open(image: bytes) -> ImageFile:
    """The picture with its header read and nothing decoded."""
    for magic, reader in READERS.items():
        if image.startswith(magic):
            return reader(io.BytesIO(image))
    raise ImageUndecodable(
        f"{len(image)} bytes that are neither a JPEG nor a PNG", where="image", fix="Send a JPEG or PNG"
    )


def _scale(picture: ImageFile, layout: Layout) -> Image.Image:
    """Decode and resize in one go to `layout.content`, in mode L or RGB."""
    width, height = picture.size
    drafted = picture.draft(None, layout.scaled)
    # The drafted size is rounded up; the part that is picture ends at the exact fraction.
    right, bottom = drafted[1][2:] if drafted else (width, height)
    left, upper, east, south = layout.box
    box = (left * right / width, upper * bottom / height, east * right / width, south * bottom / height)
    return _eight_bit(picture).resize(layout.content, Image.Resampling.BILINEAR, box=box)


def _eight_bit(picture: ImageFile) -> Image.Image:
    """The decoded picture in mode L or RGB; alpha is dropped, of 16 bits the upper 8 stay."""
    if picture.mode == "I;16":
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("L", "RGB"):
        picture.load()
        return picture
    picture.info.pop("transparency", None)  # convert() would look for a palette entry that stands for it
    return picture.convert("RGB")


def _to_tensor(content: Image.Image, layout: Layout, spec: PreprocessingSpec) -> NDArray[np.float32]:
    """The input with the content in place and padding around it; mean and std are in the order of `color`."""
    # Splitting in Pillow first and then copying whole planes takes two thirds of the time of a transpose.
    bands = content.split() if content.mode == "RGB" else (content,) * 3
    if spec.color == "BGR":
        bands = bands[::-1]
    tensor = np.full((1, 3, *spec.resize), spec.pad_value, dtype=np.float32)
    width, height = layout.content
    for plane, band, mean, std in zip(tensor[0], bands, spec.mean, spec.std, strict=True):
        plane[layout.top : layout.top + height, layout.left : layout.left + width] = np.asarray(band)
        if spec.normalize:
            # (value / 255 - mean) / std as one multiplication and, where needed, one addition.
            plane *= np.float32(1.0 / (255.0 * std))
            if mean:
                plane -= np.float32(mean / std)
    return tensor
