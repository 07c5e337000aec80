"""From bytes to pixels: what is read, how it is decoded, and that it stands upright.

JPEG    baseline and progressive; grey, RGB, YCbCr, CMYK, YCCK (inverted if it has Adobe's marker); not 12 bit
PNG     all depths, palette, alpha, interlaced; of an APNG the still picture
WebP    lossy, lossless, alpha; of an animation the first frame
BMP     uncompressed, 1 to 32 bits a pixel; no run lengths (RLE)
TIFF    the first page, in strips or tiles; grey, palette, RGB, CMYK of 1 to 8 or 16 bit; uncompressed, LZW, deflate,
        PackBits, JPEG; no float or signed samples, no BigTIFF

Of 16 bits a sample the upper 8 stay, alpha is dropped, and CMYK becomes RGB without a colour profile. The EXIF
orientation is applied, as every viewer does: a box means what a person sees. A damaged EXIF counts as none.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from gateway.errors import ImageTooLarge, ImageUndecodable
from gateway.flow.picture_headers import READ_FORMATS, READABLE, Header, looks_like, read_header

__all__ = [
    "DAMAGED", "READABLE", "READ_FORMATS", "Decoded", "Picture", "decode", "looks_like", "open_picture", "turn_to_hold",
]  # fmt: skip

# The readers are used directly and not through Image.open: no search through formats, no second look at
# JPEGs for the 3D format MPO, and no pixel limit for the whole process beside the one given here.
READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
MAX_SIDE = 65_535
"""Most pixels along a side; no JPEG can have more. Pillow takes 8 bytes for each row, however short."""
WEIGHTS = {"WebP": 1.5}
"""What a pixel counts against the limit, if not 1: libwebp holds two frames beside the one that it hands over."""
LARGE_PIXELS = 4_000_000
_one_at_a_time = threading.Lock()
_CODECS = {"JPEG": "jpg", "PNG": "zlib", "WebP": "webp", "TIFF": "libtiff"}
_MISSING = frozenset(kind for kind, codec in _CODECS.items() if not features.check(codec))
"""Formats that this Pillow was built without; the wheels have all of them."""

DAMAGED = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, OverflowError, struct.error)
"""What Pillow raises on damaged bytes: documented, or found by fuzzing (struct.error only before Pillow 12)."""

# Doubtful metadata is no reason to refuse a picture. A filter for the process, because catching warnings
# around each picture is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Orientation -> how the stored raster is turned to stand upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of which nothing is decoded; `width` and `height` are those of the upright picture."""

    header: Header
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """The stored raster, perhaps at a fraction of its size, in mode L, RGB or RGBX (the X without meaning)."""

    raster: Image.Image
    ratio: tuple[float, float]
    """Pixels of `raster` in one pixel of the stored picture, across and down."""
    header: Header

    def on_raster(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box of the upright picture, [x1, y1, x2, y2], on `raster`."""
        header = self.header
        left, top, right, bottom = box
        if header.orientation >= 5:
            left, top, right, bottom = top, left, bottom, right
        if header.orientation in (2, 3, 7, 8):
            left, right = header.width - right, header.width - left
        if header.orientation in (3, 4, 6, 7):
            top, bottom = header.height - bottom, header.height - top
        x, y = self.ratio
        return left * x, top * y, right * x, bottom * y

    def upright(self, part: Image.Image) -> Image.Image:
        """A part of `raster` as the eye sees it."""
        turn = _TURNS.get(self.header.orientation)
        return part if turn is None else part.transpose(turn)

    def stored(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of an upright part as they are on `raster`."""
        return (size[1], size[0]) if self.header.orientation >= 5 else size


def open_picture(image: bytes, max_image_pixels: int) -> Picture:
    """Read the header, and nothing else.

    Raises ImageUndecodable for what is not read or is cut off here, ImageTooLarge by the size that the header claims.
    """
    try:
        header = read_header(image)
    except DAMAGED as error:
        raise damaged() from error
    width, height = header.width, header.height
    if header.orientation >= 5:
        width, height = height, width
    weight = WEIGHTS.get(header.kind, 1)
    if width * height * weight > max_image_pixels:
        more = "" if weight == 1 else f": a {header.kind} counts {weight} times, for the memory that it takes"
        raise ImageTooLarge(f"{width}x{height} pixels, more than {max_image_pixels}{more}", where="image")
    if max(width, height) > MAX_SIDE:
        raise ImageTooLarge(f"{width}x{height} pixels, more than {MAX_SIDE} along a side", where="image")
    if header.kind in _MISSING and header.compressed:
        raise ImageUndecodable(
            f"this installation of Pillow cannot read {header.kind}",
            where="image",
            fix=f"Install Pillow from its wheel, or send one of the other formats: {READ_FORMATS}",
        )
    return Picture(header, width, height)


def decode(picture: Picture, wanted: tuple[int, int] | None = None, *, grey: bool = False) -> Decoded:
    """All pixels; a JPEG at the smallest eighth that still holds `wanted` (width, height of the upright picture).

    `grey` decodes only the brightness where the format has it apart. Raises ImageUndecodable for damaged pixels.

    Memory at most, measured in bytes a pixel: JPEG 7 (progressive 8), PNG, BMP and TIFF 8, WebP 12; of a TIFF the
    file comes on top once more. A JPEG at an eighth of its size takes next to none, unless it is progressive.
    """
    header = picture.header
    try:
        reader = READERS[header.kind](io.BytesIO(header.data))
        if reader.size != (header.width, header.height):
            raise damaged()  # two headers that contradict each other, and the other one was checked
        if header.kind == "JPEG":
            # All at once: in Pillow's pieces of 64 KiB the decoder starts over at the end of each (2.5 % of its time).
            reader.decodermaxblock = len(header.data)
        ratio = (1.0, 1.0)
        if wanted is not None:
            size = (wanted[1], wanted[0]) if header.orientation >= 5 else wanted
            drafted = reader.draft("L" if grey else None, size)
            if drafted is not None:
                # The drafted size is rounded up; the part that is picture ends at the exact fraction.
                ratio = (drafted[1][2] / header.width, drafted[1][3] / header.height)
        return Decoded(_eight_bit(reader, header), ratio, header)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"more pixels than Pillow reads of a {header.kind}", where="image") from error
    except DAMAGED as error:
        raise damaged() from error


def pixels_held(picture: Picture, wanted: tuple[int, int] | None) -> int:
    """How many pixels `decode` holds at once: of most JPEGs those at the scale that is decoded, otherwise all."""
    pixels = picture.width * picture.height
    if wanted is None or picture.header.kind != "JPEG" or picture.header.progressive:
        return pixels
    smaller = min(picture.width // wanted[0], picture.height // wanted[1])
    scale = next((scale for scale in (8, 4, 2) if scale <= smaller), 1)
    return pixels // scale**2


def turn_to_hold(picture: Picture, wanted: tuple[int, int] | None) -> AbstractContextManager[object]:
    """To be entered around `decode`, and left when the raster is not needed any more.

    A picture takes 7 bytes and more for each pixel that is held: where those are many, one comes after the other.
    """
    return _one_at_a_time if pixels_held(picture, wanted) > LARGE_PIXELS else nullcontext()


def damaged() -> ImageUndecodable:
    """The error for bytes that begin like a picture and do not go on like one."""
    return ImageUndecodable("the picture is damaged or cut off", where="image")


def _eight_bit(picture: ImageFile, header: Header) -> Image.Image:
    """The decoded picture in mode L, RGB or RGBX; alpha is dropped, of 16 bits the upper 8 stay."""
    if isinstance(picture, WebPImageFile):
        return _first_frame(picture)
    if picture.mode.startswith("I;16"):
        upper = (np.asarray(picture) >> 8).astype(np.uint8)
        # Pillow turns the 8 bit pictures that count from white, but not those of 16 bit.
        return Image.fromarray(255 - upper if header.inverted else upper)
    if picture.mode in ("L", "RGB"):
        picture.load()
        return picture
    if header.kind == "JPEG" and header.inverted:
        # Pillow takes all CMYK for Adobe's, which counts from full ink; without Adobe's marker it counts from none.
        picture.tile = [tile._replace(args=("CMYK", "")) for tile in picture.tile]
    return picture.convert("L" if picture.mode in ("1", "LA") else "RGB")


def _first_frame(picture: WebPImageFile) -> Image.Image:
    """The pixels as libwebp hands them over; Pillow's own way copies them twice."""
    frame = picture._decoder.get_next()  # noqa: SLF001 - there is no other way to them
    del picture._decoder  # noqa: SLF001 - it holds two more frames
    if frame is None:
        raise damaged()
    return Image.frombuffer("RGBX", picture.size, frame[0], "raw", "RGBX", 0, 1)
