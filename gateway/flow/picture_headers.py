"""What a picture is by its first bytes, how large it claims to be, and which way up it is.

Nothing is decoded here. Texts, profiles, thumbnails and further frames are left out of what Pillow gets to see: they
are of no use to a model, and each is a way to make a small file costly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import ImageUndecodable
from gateway.flow.picture_tiff import read_orientation, read_tiff

MAX_SEGMENTS = 1000
"""Segments of a JPEG before its pixels, or chunks of a WebP; about ten are usual."""
MAX_CHUNKS = 16_384
"""Chunks of a PNG; the usual 8 KiB a chunk makes 128 MiB."""
MAX_SCANS = 100
"""Passes over a progressive JPEG; ten are usual, and each costs time for every pixel whatever its size in bytes."""

SEQUENTIAL = frozenset((0xC0, 0xC1, 0xC3, 0xC9, 0xCB))
"""Frames of a JPEG that need one scan for each of their colours at most; all others count as progressive."""

FORMATS: tuple[tuple[str, int, tuple[bytes, ...]], ...] = (
    ("JPEG", 0, (b"\xff\xd8\xff",)),
    ("PNG", 0, (b"\x89PNG\r\n\x1a\n",)),
    ("WebP", 8, (b"WEBP",)),
    ("TIFF", 0, (b"II*\0", b"MM\0*")),
    # "BM" alone may begin a text: the size of the second header tells.
    ("BMP", 14, tuple(bytes((size, 0, 0, 0)) for size in (12, 40, 52, 56, 64, 108, 124))),
    ("GIF", 0, (b"GIF87a", b"GIF89a")),
    ("AVIF", 4, (b"ftypavif", b"ftypavis")),
    ("HEIF", 4, tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"))),
    ("MP4 video", 4, (b"ftyp",)),
    ("JPEG XL", 0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    ("JPEG 2000", 0, (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
    ("BigTIFF", 0, (b"II+\0", b"MM\0+")),
    ("AVI video", 8, (b"AVI ",)),
    ("Matroska video", 0, (b"\x1a\x45\xdf\xa3",)),
    ("H.264 video", 0, (b"\0\0\0\x01\x67", b"\0\0\0\x01\x09")),
    ("PDF", 0, (b"%PDF-",)),
    ("Photoshop", 0, (b"8BPS",)),
    ("OpenEXR", 0, (b"\x76\x2f\x31\x01",)),
    ("ICO", 0, (b"\0\0\x01\0",)),
    ("Netpbm", 0, tuple(b"P%d%s" % (kind, end) for kind in range(1, 8) for end in (b"\n", b" ", b"\r\n"))),
    ("SVG", 0, (b"<svg",)),
)
"""Name, place of the magic number, and its spellings; the first that fits counts."""

READABLE = frozenset(("JPEG", "PNG", "WebP", "BMP", "TIFF"))
READ_FORMATS = "JPEG, PNG, WebP, BMP or TIFF"
"""For messages and documentation."""
_CONTAINERS = {"WebP": b"RIFF", "AVI video": b"RIFF", "BMP": b"BM"}


@dataclass(frozen=True, slots=True)
class Header:
    """A picture of which nothing is decoded yet; `width` and `height` are those of the stored raster."""

    kind: str
    width: int
    height: int
    orientation: int
    """1 to 8 as in EXIF: how the stored raster is turned to stand upright."""
    data: bytes
    """What Pillow gets."""
    inverted: bool = False
    """Whether Pillow takes dark for light: a 16 bit TIFF that counts from white, a CMYK JPEG that is not Adobe's."""
    compressed: bool = True
    """Whether Pillow needs the codec of that format."""
    progressive: bool = False
    """Whether it is a JPEG that is held in full while it is decoded, at whatever scale."""


def looks_like(data: bytes) -> str | None:
    """The format that these bytes begin like, by its usual name, or None; READABLE says which are read.

    A name says nothing about the rest: the bytes may still be damaged or cut off.
    """
    for name, place, spellings in FORMATS:
        if data.startswith(spellings, place) and data.startswith(_CONTAINERS.get(name, b"")):
            return name
    return None


def read_header(data: bytes) -> Header:
    """Size and orientation; raises ImageUndecodable, or struct.error where the header is cut off."""
    kind = looks_like(data)
    if kind is None or kind not in _HEADERS:
        what = f"{len(data)} bytes that look like {kind}" if kind else f"{len(data)} bytes that are no picture"
        raise ImageUndecodable(f"{what}, not like {READ_FORMATS}", where="image", fix=f"Send a {READ_FORMATS}")
    header = _HEADERS[kind](data)
    if header.width < 1 or header.height < 1:
        raise _damaged(kind, "it has no width or no height")
    return header


def _jpeg(data: bytes) -> Header:
    kept, place, orientation = [data[:2]], 2, 1
    adobe = dropped = False
    frame, width, height, bands = 0, 0, 0, 0
    for _ in range(MAX_SEGMENTS):
        # Stray bytes between segments are skipped, as all decoders do.
        place = data.find(b"\xff", place)
        if place < 0:
            raise _damaged("JPEG", "it ends before its pixels")
        marker, length = struct.unpack_from(">BH", data, place + 1)
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:
            place += 1 if marker == 0xFF else 2
            continue
        segment = data[place : place + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0", 4) and orientation == 1:
            orientation = read_orientation(segment[10:])
        adobe = adobe or (marker == 0xEE and segment.startswith(b"Adobe", 4))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, (height, width, bands) = marker, struct.unpack_from(">HHB", segment, 5)
        if marker == 0xDA:
            if frame not in SEQUENTIAL:
                _refuse_more_scans(data, place, MAX_SCANS)
            elif segment[4] != bands:
                _refuse_more_scans(data, place, bands)
            # Most cameras write none of it, and a copy takes as long as all of this.
            whole = b"".join((*kept, data[place:])) if dropped else data
            # In several scans, which a sequential one may have too, every number is kept until the last.
            held = frame not in SEQUENTIAL or segment[4] != bands
            return Header(
                "JPEG", width, height, orientation, whole, inverted=bands == 4 and not adobe, progressive=held
            )
        # APP0 and APP14 say which colours the numbers are.
        if marker in (0xE0, 0xEE) or not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        else:
            dropped = True
        place += 2 + length
    raise _damaged("JPEG", f"it has more than {MAX_SEGMENTS} segments")


def _refuse_more_scans(data: bytes, place: int, most: int) -> None:
    # Inside compressed pixels FF is always followed by 00, so this counts markers, those of a second picture included.
    # It takes up to 1 ms a megabyte: too much to do for the JPEGs whose first scan is all of them, which most are.
    if data.count(b"\xff\xda", place) > most:
        raise _damaged("JPEG", f"it has more than {most} scans")


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise _damaged("PNG", "its first chunk is no IHDR")
    kept, place, orientation = [data[:8]], 8, 1
    for _ in range(MAX_CHUNKS):
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise _damaged("PNG", "it is cut off")
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(data[place:end])
        elif name == b"eXIf":
            orientation = read_orientation(data[place + 8 : end - 4])
        if name == b"IEND":
            return Header("PNG", width, height, orientation, b"".join(kept))
        place = end
    raise _damaged("PNG", f"it has more than {MAX_CHUNKS} chunks")


def _webp(data: bytes) -> Header:
    name = data[12:16]
    if name == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif name == b"VP8L":
        sides = struct.unpack_from("<I", data, 21)[0]
        width, height = (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    elif name == b"VP8X":
        sides = struct.unpack_from("<Q", data, 22)[0] >> 16  # 24 bits each, from byte 24 on
        width, height = (sides & 0xFFFFFF) + 1, (sides >> 24 & 0xFFFFFF) + 1
    else:
        raise _damaged("WebP", "its first chunk is none of a picture")
    place, orientation = 12, 1
    for _ in range(MAX_SEGMENTS):
        if place + 8 > len(data):
            return Header("WebP", width, height, orientation, data)
        chunk, length = struct.unpack_from("<4sI", data, place)
        if chunk == b"EXIF":
            exif = data[place + 8 : place + 8 + length]
            orientation = read_orientation(exif.removeprefix(b"Exif\0\0"))
        place += 8 + length + length % 2
    raise _damaged("WebP", f"it has more than {MAX_SEGMENTS} chunks")


def _bmp(data: bytes) -> Header:
    pixels, header = struct.unpack_from("<II", data, 10)
    compression = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression not in (0, 3):
        # The decoder of run lengths is a loop in Python: seconds for a picture of a few kilobytes.
        raise ImageUndecodable("a compressed (RLE) BMP is not read", where="image", fix="Save it uncompressed")
    if pixels + (max(0, width) * bits + 31) // 32 * 4 * abs(height) > len(data):
        raise _damaged("BMP", "it is cut off")
    return Header("BMP", width, abs(height), 1, data)


def _tiff(data: bytes) -> Header:
    tiff = read_tiff(data)
    return Header(
        "TIFF",
        tiff.width,
        tiff.height,
        tiff.orientation,
        tiff.data,
        inverted=tiff.white_is_zero,
        compressed=tiff.compressed,
    )


def _damaged(kind: str, why: str) -> ImageUndecodable:
    return ImageUndecodable(f"the picture is damaged or cut off: it begins like a {kind}, but {why}", where="image")


_HEADERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WebP": _webp,
    "BMP": _bmp,
    "TIFF": _tiff,
}
