"""Picture files for the tests of step 4: whole ones of every kind that is read, and bombs."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gateway.flow.preprocess import prepare_picture
from gateway.messages import Geometry
from gateway.models.input_plan import InputPlan
from gateway.models.preprocessing_spec import PreprocessingSpec

LIMIT = 50_000_000


def encode(picture: Image.Image, kind: str, **more: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **more)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: the colours tell where a pixel was."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    return Image.fromarray(np.stack((x, y, np.full_like(x, 50)), axis=-1).round().astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    """A picture that no compression makes small."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def spec(**more: Any) -> PreprocessingSpec:
    """Numbers 0 to 255 as they are, unless `more` says otherwise."""
    return PreprocessingSpec(**{"normalize": False, **more})


def plan(height: int = 64, width: int = 96, **more: Any) -> InputPlan:
    """An input named `images`."""
    return InputPlan("images", height, width, **more)


def prepare(
    image: bytes, spec: PreprocessingSpec, plan: InputPlan, limit: int = LIMIT
) -> tuple[NDArray[Any], tuple[Geometry, ...]]:
    """The picture's tensor for one plan, and its geometries."""
    prepared = prepare_picture(image, spec, [plan], limit)[plan]
    return prepared.tensors[plan.name], prepared.geometries


def exif(orientation: int) -> Image.Exif:
    """An EXIF block with more than the orientation in it."""
    block = Image.Exif()
    block[0x0112], block[0x011A], block[0x0128], block[0x010F] = orientation, 72.0, 2, "a camera"
    return block


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(tags: dict[int, tuple[str, tuple[int, ...]]], pixels: bytes = b"", order: str = "<") -> bytes:
    """A TIFF by hand: header, pixels at byte 8, then a directory. `tags`: tag -> (letter of struct, values)."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(pixels))
    entries, large = b"", b""
    behind = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, (letter, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        field = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "I", behind + len(large))
        large += packed if len(packed) > 4 else b""
        kind = {"B": 1, "H": 3, "I": 4, "f": 11}[letter]
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + field
    return head + pixels + struct.pack(order + "H", len(tags)) + entries + bytes(4) + large


def grey_tiff(width: int, height: int, pixels: bytes, order: str = "<", **more: Any) -> bytes:
    """An uncompressed grey TIFF in one strip; `more` changes tags by their number as `t256=("I", (5,))`."""
    tags: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (8,)), 259: ("H", (1,)), 262: ("H", (1,)),
        273: ("I", (8,)), 277: ("H", (1,)), 278: ("I", (height,)), 279: ("I", (len(pixels),)),
    }  # fmt: skip
    tags.update({int(name[1:]): value for name, value in more.items()})
    return tiff(tags, pixels, order)


def tiled_tiff(picture: Image.Image, side: int = 16) -> bytes:
    """A picture in grey as a TIFF in tiles."""
    grey = np.asarray(picture.convert("L"))
    rows, columns = -(-grey.shape[0] // side), -(-grey.shape[1] // side)
    padded = np.zeros((rows * side, columns * side), np.uint8)
    padded[: grey.shape[0], : grey.shape[1]] = grey
    tiles = padded.reshape(rows, side, columns, side).swapaxes(1, 2)
    count = rows * columns
    tags: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (grey.shape[1],)), 257: ("I", (grey.shape[0],)), 258: ("H", (8,)), 259: ("H", (1,)),
        262: ("H", (1,)), 277: ("H", (1,)), 322: ("H", (side,)), 323: ("H", (side,)),
        324: ("I", tuple(8 + index * side * side for index in range(count))), 325: ("I", (side * side,) * count),
    }  # fmt: skip
    return tiff(tags, tiles.tobytes())


def seeds() -> dict[str, bytes]:
    """Whole pictures of 60 x 44 of every kind that is read, some with metadata."""
    picture = gradient(60, 44)
    text = PngInfo()
    text.add_text("a", "b" * 50, zip=True)
    text.add_itxt("c", "d" * 50, zip=True)
    wide = Image.fromarray(np.arange(44 * 60, dtype=np.uint16).reshape(44, 60) * 20)
    turned = {"exif": exif(3)}
    jpegs: dict[str, dict[str, Any]] = {
        "": {}, "progressive": {"progressive": True}, "exif": turned, "icc": {"icc_profile": b"x" * 99},
    }  # fmt: skip
    tiffs = {
        "raw": None, "lzw": "tiff_lzw", "deflate": "tiff_adobe_deflate", "old deflate": "tiff_deflate",
        "packbits": "packbits", "jpeg": "jpeg",
    }  # fmt: skip
    return {
        **{f"JPEG {name}": encode(picture, "JPEG", **more) for name, more in jpegs.items()},
        **{f"JPEG {mode}": encode(picture.convert(mode), "JPEG") for mode in ("L", "CMYK")},
        **{
            f"PNG {mode}": encode(picture.convert(mode), "PNG", pnginfo=text)
            for mode in ("RGB", "L", "RGBA", "LA", "P", "1")
        },
        "PNG I;16": encode(wide, "PNG"),
        "PNG tRNS P": encode(picture.quantize(16), "PNG", transparency=bytes(range(16))),
        "PNG tRNS": encode(picture, "PNG", icc_profile=b"x" * 99, transparency=(1, 2, 3), **turned),
        "APNG": encode(picture, "PNG", save_all=True, append_images=[picture.rotate(90)]),
        "WebP": encode(picture, "WEBP", **turned),
        "WebP lossless": encode(picture, "WEBP", lossless=True),
        "WebP RGBA": encode(picture.convert("RGBA"), "WEBP"),
        "WebP animated": encode(picture, "WEBP", save_all=True, append_images=[picture.rotate(90)]),
        **{f"BMP {mode}": encode(picture.convert(mode), "BMP") for mode in ("RGB", "L", "RGBA", "P", "1")},
        **{f"TIFF {name}": encode(picture, "TIFF", compression=by) for name, by in tiffs.items()},
        **{
            f"TIFF {mode}": encode(picture.convert(mode), "TIFF", compression="tiff_lzw")
            for mode in ("L", "RGBA", "CMYK", "P", "1", "LA")
        },
        "TIFF I;16": encode(wide, "TIFF"),
        "TIFF I;16 lzw": encode(wide, "TIFF", compression="tiff_lzw"),
        "TIFF big-endian": grey_tiff(60, 44, bytes(60 * 44), ">"),
        "TIFF tiled": tiled_tiff(picture),
        "TIFF two pages": encode(picture, "TIFF", save_all=True, append_images=[noise(20, 20)], **turned),
    }


SEEDS = seeds()
