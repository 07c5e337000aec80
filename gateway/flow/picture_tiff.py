"""TIFF, and the EXIF block that is one: only what decoding needs is read, checked and handed on.

A TIFF may hold any number of directories, tags and claims about sizes. Of the first directory the tags named in
`KEPT` are copied into a new one behind the file; neither Pillow nor libtiff sees any other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.errors import ImageUndecodable

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 273, 274, 277, 278, 279
PLANAR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 284, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 338, 339, 347
FILL_ORDER, PREDICTOR, COLOR_MAP, SUBSAMPLING = 266, 317, 320, 530

MAX_PARTS = 16_384
"""Most strips or tiles; each costs Python's time."""
MAX_TILE_SIDE = 1024
"""A tile may be this large, or as large as the picture; a decoder takes memory for all of it."""
MAX_ENTRIES = 1024
"""Tags in the first directory; more than a hundred are not seen in practice."""

# Tag -> the most values that it may have.
KEPT = {
    **dict.fromkeys((WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS_PER_STRIP, PLANAR), 1),
    **dict.fromkeys((TILE_WIDTH, TILE_HEIGHT, FILL_ORDER, PREDICTOR), 1),
    **dict.fromkeys((BITS, EXTRA_SAMPLES, SAMPLE_FORMAT), 5),
    **dict.fromkeys((STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES), MAX_PARTS),
    COLOR_MAP: 3 * 256,
    SUBSAMPLING: 2,
    JPEG_TABLES: 65_536,
}
COMPRESSIONS = {1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate"}
WHITE_IS_ZERO = 0
PHOTOMETRICS = {WHITE_IS_ZERO, 1, 2, 3, 5, 6}
"""Grey from white or from black, RGB, palette, CMYK, YCbCr."""
_TYPES = {1: "B", 3: "H", 4: "I", 7: "B"}
_FIX = "Save it as 8 or 16 bit grey, RGB or CMYK: uncompressed, LZW, deflate, PackBits or JPEG"


@dataclass(frozen=True, slots=True)
class Tiff:
    """What its first directory says, and the file with nothing but that."""

    width: int
    height: int
    orientation: int
    white_is_zero: bool
    compressed: bool
    data: bytes


def read_orientation(exif: bytes) -> int:
    """The orientation 1 to 8 that an EXIF block (a TIFF header with tags) gives; 1 without a valid one."""
    try:
        for tag, kind, count, field in _entries(exif):
            if tag == ORIENTATION and kind in (3, 4) and count == 1:
                value = struct.unpack_from(_order(exif) + _TYPES[kind], field)[0]
                return value if 1 <= value <= 8 else 1
    except (struct.error, ImageUndecodable):
        pass  # a damaged EXIF is no reason to refuse the picture
    return 1


def read_tiff(data: bytes) -> Tiff:
    """The first picture of a TIFF; raises ImageUndecodable, or struct.error where it is cut off."""
    tags: dict[int, tuple[str, tuple[int, ...]]] = {}
    order = _order(data)
    for tag, kind, count, field in _entries(data):
        if tag in KEPT and tag not in tags and kind in _TYPES:
            if not 0 < count <= KEPT[tag]:
                raise _damaged(f"tag {tag} has {count} values")
            format_ = f"{order}{count}{_TYPES[kind]}"
            inline = struct.calcsize(format_) <= 4
            place = 0 if inline else struct.unpack_from(order + "I", field)[0]
            tags[tag] = (_TYPES[kind], struct.unpack_from(format_, field if inline else data, place))
    values = {tag: found for tag, (_, found) in tags.items()}
    _refuse_odd_samples(values)
    _check_parts(values, data)
    return Tiff(
        width=values[WIDTH][0],
        height=values[HEIGHT][0],
        orientation=read_orientation(data),
        white_is_zero=_first(values, PHOTOMETRIC, 0) == WHITE_IS_ZERO,
        compressed=_first(values, COMPRESSION, 1) != 1,
        data=_rewritten(data, order, tags),
    )


def _order(data: bytes) -> str:
    """`<` or `>`, as struct wants it."""
    return ">" if data[:2] == b"MM" else "<"


def _entries(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Tag, type, count and the four bytes of value or offset of each entry in the first directory."""
    order = _order(data)
    magic, place = struct.unpack_from(order + "HI", data, 2)
    if magic != 42:
        raise _damaged("no directory")
    entries = struct.unpack_from(order + "H", data, place)[0]
    if entries > MAX_ENTRIES:
        raise _damaged(f"{entries} tags")
    for index in range(entries):
        yield struct.unpack_from(order + "HHI4s", data, place + 2 + 12 * index)


def _first(values: dict[int, tuple[int, ...]], tag: int, default: int) -> int:
    """The only value of a tag."""
    return values.get(tag, (default,))[0]


def _refuse_odd_samples(values: dict[int, tuple[int, ...]]) -> None:
    """Refuse what Pillow cannot read, or would read as something else."""
    if not all(values.get(tag, (0,))[0] > 0 for tag in (WIDTH, HEIGHT)):
        raise _damaged("no width or no height")
    compression = _first(values, COMPRESSION, 1)
    bits, formats = set(values.get(BITS, (1,))), set(values.get(SAMPLE_FORMAT, (1,)))
    photometric = _first(values, PHOTOMETRIC, 0)
    reasons = {
        f"compression {compression}": compression not in COMPRESSIONS,
        "signed, float or complex samples": formats != {1},
        f"{'/'.join(map(str, sorted(bits)))} bits a sample": len(bits) != 1 or not bits <= {1, 2, 4, 8, 16},
        f"photometric interpretation {photometric}": photometric not in PHOTOMETRICS,
        "more than five samples a pixel": not 1 <= _first(values, SAMPLES, 1) <= 5,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ImageUndecodable(f"a TIFF with {reason} is not read", where="image", fix=_FIX)


def _check_parts(values: dict[int, tuple[int, ...]], data: bytes) -> None:
    """All strips or tiles are there, inside the file and of a sane size; fills in rows per strip."""
    width, height = values[WIDTH][0], values[HEIGHT][0]
    tiled = TILE_OFFSETS in values
    if tiled:
        part = (_first(values, TILE_WIDTH, 0), _first(values, TILE_HEIGHT, 0))
        limits = (max(MAX_TILE_SIDE, width + 15), max(MAX_TILE_SIDE, height + 15))
        if not all(16 <= side <= limit for side, limit in zip(part, limits, strict=True)):
            raise _damaged(f"tiles of {part[0]}x{part[1]}")
    else:
        part = (width, min(height, _first(values, ROWS_PER_STRIP, height)))
        if not part[1]:
            raise _damaged("strips of no rows")
    samples = _first(values, SAMPLES, 1)
    planes = samples if _first(values, PLANAR, 1) == 2 else 1
    count = -(-width // part[0]) * -(-height // part[1]) * planes
    offsets = values.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, ())
    sizes = values.get(TILE_BYTES if tiled else STRIP_BYTES, ())
    if not len(offsets) == len(sizes) == count:
        raise _damaged(f"{len(offsets)} strips or tiles of {count}")
    if _first(values, COMPRESSION, 1) == 1:
        row = -(-part[0] * (samples // planes) * values.get(BITS, (1,))[0] // 8)
        rows = [part[1]] * count
        if not tiled:
            rows[count // planes - 1 :: count // planes] = [(height - 1) % part[1] + 1] * planes
        needed = [row * high for high in rows]
    else:
        needed = [1] * count
    for offset, size, least in zip(offsets, sizes, needed, strict=True):
        if size < least or offset + size > len(data):
            raise _damaged("strips or tiles are cut off")


def _rewritten(data: bytes, order: str, tags: dict[int, tuple[str, tuple[int, ...]]]) -> bytes:
    """The same strips and tiles under a new directory, which stands behind them."""
    place = len(data) + len(data) % 2
    large = place + 2 + 12 * len(tags) + 4
    entries, values = [], b""
    for tag, (letter, found) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(found)}{letter}", *found)
        kind = 7 if tag == JPEG_TABLES else {"B": 1, "H": 3, "I": 4}[letter]
        field = packed.ljust(4, b"\0")
        if len(packed) > 4:
            field = struct.pack(order + "I", large + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        entries.append(struct.pack(order + "HHI", tag, kind, len(found)) + field)
    return b"".join(
        (
            data[:2],
            struct.pack(order + "HI", 42, place),
            data[8:],
            b"\0" * (len(data) % 2),
            struct.pack(order + "H", len(entries)),
            *entries,
            bytes(4),
            values,
        )
    )


def _damaged(what: str) -> ImageUndecodable:
    return ImageUndecodable(f"the TIFF is damaged: {what}", where="image")
