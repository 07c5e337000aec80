"""Bytes into pixels: what is read and what is refused, which way up, and what no file can make it cost."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from gateway.errors import ImageUndecodable
from gateway.flow import pictures
from gateway.flow.pictures import READABLE, decode, looks_like, open_picture, pixels_held
from tests.flow.picture_files import (
    LIMIT,
    SEEDS,
    encode,
    exif,
    gradient,
    grey_tiff,
    noise,
    plan,
    png_chunk,
    prepare,
    spec,
    tiled_tiff,
)

STRETCH = spec(mode="stretch")
EXACT = plan(44, 60)


def pixel(payload: bytes) -> list[float]:
    """The three numbers in the middle of a picture of one colour."""
    values: list[float] = prepare(payload, STRETCH, plan(16, 16))[0][0, :, 8, 8].tolist()
    return values


# --- what is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SEEDS if "I;16" not in name and "big-endian" not in name])
def test_every_format_gives_the_pixels_that_a_viewer_shows(name: str) -> None:
    payload = SEEDS[name]
    viewed = ImageOps.exif_transpose(Image.open(io.BytesIO(payload)))
    viewed.info.pop("transparency", None)
    expected = np.asarray(viewed.convert("RGB"))

    tensor, (geometry,) = prepare(payload, STRETCH, EXACT)

    np.testing.assert_array_equal(tensor[0].transpose(1, 2, 0), expected)
    assert (geometry.width, geometry.height) == (60, 44)


@pytest.mark.parametrize("name", ["PNG I;16", "TIFF I;16", "TIFF I;16 lzw"])
def test_of_16_bits_the_upper_8_stay(name: str) -> None:
    expected = (np.arange(44 * 60).reshape(44, 60) * 20) >> 8

    np.testing.assert_array_equal(prepare(SEEDS[name], STRETCH, EXACT)[0][0, 1], expected)


def test_of_16_bits_of_each_colour_the_upper_8_stay() -> None:
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", *(0x12FF, 0x34FF, 0x56FF) * 2)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(row)), png_chunk(b"IEND", b""))
    )
    rgb = grey_tiff(2, 1, row[1:], ">", t258=("H", (16,) * 3), t262=("H", (2,)), t277=("H", (3,)))

    assert pixel(png) == [0x12, 0x34, 0x56]
    assert pixel(rgb) == [0x12, 0x34, 0x56]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_may_count_from_white(bits: int) -> None:
    pixels = bytes([55]) * (20 * 20 * bits // 8)

    assert pixel(grey_tiff(20, 20, pixels, t258=("H", (bits,)), t262=("H", (0,)))) == [200] * 3


def test_cmyk_is_inverted_only_with_the_marker_of_adobe() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 255))  # all but cyan
    payload = encode(ink, "JPEG", quality=100)
    start = payload.index(b"\xff\xee")
    plain = payload[:start] + payload[start + 2 + struct.unpack_from(">H", payload, start + 2)[0] :]

    np.testing.assert_allclose(pixel(payload), [0, 0, 0], atol=3)
    np.testing.assert_allclose(pixel(plain), [0, 255, 255], atol=3)  # the same numbers, counted from no ink


def test_alpha_is_dropped_in_every_format() -> None:
    picture = Image.new("RGBA", (16, 16), (200, 100, 50, 3))

    assert pixel(encode(picture, "PNG")) == [200, 100, 50]
    assert pixel(encode(picture, "TIFF")) == [200, 100, 50]
    assert pixel(encode(picture, "BMP")) == [200, 100, 50]
    assert pixel(encode(picture, "WEBP", lossless=True, exact=True)) == [200, 100, 50]


@pytest.mark.parametrize("side", [16, 64])
def test_tiles_of_a_tiff_come_together(side: int) -> None:
    picture = gradient(90, 70)

    tensor, _ = prepare(tiled_tiff(picture, side), STRETCH, plan(70, 90))

    np.testing.assert_array_equal(tensor[0, 0], np.asarray(picture.convert("L")))


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_colours_of_a_tiff_may_stand_apart(order: str) -> None:
    planes = b"".join(bytes([value]) * 400 for value in (200, 100, 50))
    separate = grey_tiff(
        20, 20, planes, order, t258=("H", (8,) * 3), t262=("H", (2,)), t273=("I", (8, 408, 808)), t277=("H", (3,)),
        t278=("I", (2**32 - 1,)), t279=("I", (400,) * 3), t284=("H", (2,)),
    )  # fmt: skip

    assert pixel(separate) == [200, 100, 50]


def test_a_predictor_of_a_tiff_is_undone() -> None:
    payload = encode(gradient(60, 44), "TIFF", compression="tiff_lzw", tiffinfo={317: 2})

    np.testing.assert_array_equal(prepare(payload, STRETCH, EXACT)[0], prepare(SEEDS["PNG RGB"], STRETCH, EXACT)[0])


def test_bmp_from_the_top_down() -> None:
    payload = bytearray(encode(gradient(60, 44), "BMP"))
    payload[22:26] = struct.pack("<i", -44)

    np.testing.assert_array_equal(
        prepare(bytes(payload), STRETCH, EXACT)[0], prepare(SEEDS["BMP RGB"], STRETCH, EXACT)[0][:, :, ::-1]
    )


# --- which way up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["letterbox", "crop", "stretch", "tiles"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_model_sees_the_picture_upright(kind: str, mode: str, orientation: int) -> None:
    options: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    more = options.get(kind, {})
    payload = encode(gradient(500, 300), kind, exif=exif(orientation), **more)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(payload)))
    tiles = {"tiles": {"max_tiles": 4}} if mode == "tiles" else {}

    tensor, geometries = prepare(payload, spec(mode=mode, **tiles), plan())
    expected, same = prepare(encode(upright, "PNG"), spec(mode=mode, **tiles), plan())

    assert geometries == same
    assert (geometries[0].width, geometries[0].height) == upright.size
    assert upright.size == ((300, 500) if orientation >= 5 else (500, 300))
    assert np.abs(tensor - expected).max() <= 3  # a JPEG is decoded at a quarter of its size


def test_an_impossible_orientation_counts_as_none() -> None:
    plain = prepare(encode(gradient(60, 44), "PNG"), STRETCH, EXACT)[0]
    for orientation in (0, 9, 65535):
        turned = encode(gradient(60, 44), "PNG", exif=exif(orientation))
        np.testing.assert_array_equal(prepare(turned, STRETCH, EXACT)[0], plain)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
@example(b"\xff\xff", b"II*\0\x08\0\0\0")
def test_a_damaged_exif_is_ignored(data: bytes, head: bytes) -> None:
    payload = encode(gradient(60, 44), "JPEG", exif=b"Exif\0\0" + head + data)

    assert prepare(payload, STRETCH, plan())[0].shape == (1, 3, 64, 96)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (encode(gradient(8, 8), "GIF"), "GIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "MP4 video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (encode(gradient(8, 8), "JPEG2000"), "JPEG 2000"),
        (b"%PDF-1.7\n", "PDF"),
        (encode(gradient(8, 8), "PPM"), "Netpbm"),
        (encode(gradient(8, 8), "TIFF", big_tiff=True), "BigTIFF"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI video"),
        (encode(gradient(8, 8), "ICO", sizes=[(8, 8)]), "ICO"),
    ],
)
def test_other_formats_are_named_and_refused(payload: bytes, name: str) -> None:
    assert looks_like(payload) == name
    assert name not in READABLE
    with pytest.raises(ImageUndecodable, match=f"look like {name}, not like JPEG, PNG, WebP, BMP or TIFF") as caught:
        prepare(payload, STRETCH, EXACT)
    assert caught.value.fix == "Send a JPEG, PNG, WebP, BMP or TIFF"


@pytest.mark.parametrize("payload", [b"", b"\xff\xd8", b"hello", b"BM is not a picture", b"RIFF\0\0\0\0WAVEfmt "])
def test_what_is_no_picture_is_refused(payload: bytes) -> None:
    assert looks_like(payload) is None
    with pytest.raises(ImageUndecodable, match=f"{len(payload)} bytes that are no picture"):
        prepare(payload, STRETCH, EXACT)


@pytest.mark.parametrize("name", SEEDS)
def test_what_is_read_is_named(name: str) -> None:
    assert looks_like(SEEDS[name]) == name.split()[0].replace("APNG", "PNG")
    assert looks_like(SEEDS[name]) in READABLE


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        *(("TIFF", {"compression": by}) for by in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
    ],
)
def test_a_truncated_picture_is_refused(kind: str, more: dict[str, Any], share: float) -> None:
    payload = encode(noise(300, 200), kind, **more)

    with pytest.raises(ImageUndecodable, match="damaged"):
        prepare(payload[: int(len(payload) * share)], STRETCH, EXACT)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"t339": ("H", (3,)), "t258": ("H", (32,))}, "float"),
        ({"t339": ("H", (2,))}, "signed"),
        ({"t258": ("H", (12,))}, "12 bits a sample"),
        ({"t258": ("H", (8, 16))}, "8/16 bits"),
        ({"t259": ("H", (6,))}, "compression 6"),
        ({"t259": ("H", (50000,))}, "compression 50000"),
        ({"t262": ("H", (8,))}, "photometric interpretation 8"),
        ({"t277": ("H", (6,))}, "five samples"),
    ],
)
def test_an_unusual_tiff_is_refused_with_the_reason(more: dict[str, Any], match: str) -> None:
    with pytest.raises(ImageUndecodable, match=match) as caught:
        prepare(grey_tiff(20, 20, bytes(400), **more), STRETCH, EXACT)
    assert "Save it as" in caught.value.fix


@pytest.mark.parametrize(
    "more",
    [
        {"t273": ("I", (8, 8))},
        {"t273": ("I", (10**9,))},
        {"t273": ("I", (8,) * 20_000), "t279": ("I", (20,) * 20_000)},
        {"t278": ("I", (0,))},
        {"t278": ("I", (5,))},
        {"t279": ("I", (400, 400))},
        {"t256": ("I", (0,))},
        {"t256": ("I", (21,))},
        {"t257": ("I", (40, 40))},
        {"t258": ("H", (8,) * 5000)},
        {"t256": ("f", (20,))},
        {"t322": ("I", (60_000,)), "t323": ("I", (60_000,)), "t324": ("I", (8,)), "t325": ("I", (400,))},
        {"t322": ("I", (0,)), "t323": ("I", (0,)), "t324": ("I", (8,)), "t325": ("I", (400,))},
    ],
)
def test_a_tiff_that_contradicts_itself_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ImageUndecodable, match="damaged"):
        prepare(grey_tiff(20, 20, bytes(400), **more), STRETCH, EXACT)


def test_a_compressed_bmp_is_refused() -> None:
    payload = bytearray(encode(gradient(60, 44).convert("P"), "BMP"))
    payload[30] = 1

    with pytest.raises(ImageUndecodable, match=r"compressed \(RLE\) BMP"):
        prepare(bytes(payload), STRETCH, EXACT)


def test_a_codec_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_MISSING", frozenset({"WebP", "TIFF"}))

    for name in ("WebP", "TIFF lzw"):
        with pytest.raises(ImageUndecodable, match="this installation of Pillow cannot read") as caught:
            prepare(SEEDS[name], STRETCH, EXACT)
        assert "Install Pillow" in caught.value.fix
    prepare(SEEDS["TIFF raw"], STRETCH, EXACT)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("wanted", [(1, 1), (100, 60), (101, 60), (400, 239), (801, 480), None])
def test_a_jpeg_is_held_at_the_scale_that_is_decoded(wanted: tuple[int, int] | None, orientation: int) -> None:
    raster = gradient(800, 480) if orientation == 1 else gradient(480, 800)
    picture = open_picture(encode(raster, "JPEG", exif=exif(orientation)), LIMIT)

    decoded = decode(picture, wanted).raster

    assert (picture.width, picture.height) == (800, 480)
    assert pixels_held(picture, wanted) == decoded.width * decoded.height


@pytest.mark.parametrize("name", ["JPEG progressive", "PNG RGB", "WebP"])
def test_all_pixels_of_another_picture_are_held(name: str) -> None:
    assert pixels_held(open_picture(SEEDS[name], LIMIT), (6, 4)) == 60 * 44
