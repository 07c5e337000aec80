"""Bytes into pixels: what is read and what is refused, which way up, and what no file can make it cost."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from gateway.errors import ImageTooLarge, ImageUndecodable, SnapshotError
from gateway.flow import pictures
from gateway.flow.pictures import READABLE, looks_like
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
    tiff,
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
    more: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
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


# --- what no file can make it cost ------------------------------------------------------------------------


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg_bomb() -> bytes:
    """A JPEG whose header claims 65,500 x 65,500 pixels."""
    payload = bytearray(encode(gradient(16, 16), "JPEG"))
    frame = payload.index(b"\xff\xc0")
    payload[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(payload)


def webp_bomb(name: str) -> bytes:
    """A WebP whose header claims 16,383 x 16,383 pixels."""
    payload = bytearray(SEEDS[name])
    if payload[12:16] == b"VP8X":
        payload[24:30] = struct.pack("<HBHB", 16_382, 0, 16_382, 0)
    else:
        payload[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    return bytes(payload)


BOMBS = {
    "PNG": png_bomb(30_000, 30_000),
    "PNG of 2 GiB a side": png_bomb(2**31 - 1, 2**31 - 1),
    "JPEG": jpeg_bomb(),
    "WebP": webp_bomb("WebP animated"),
    "WebP lossless": webp_bomb("WebP lossless"),
    "TIFF": grey_tiff(60_000, 60_000, bytes(99), t259=("H", (8,))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_costs_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match="pixels, more than 50000000"):
            prepare(BOMBS[name], STRETCH, EXACT)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_of_pixels_is_inclusive() -> None:
    payload = encode(gradient(20, 10), "PNG")

    prepare(payload, STRETCH, EXACT, 200)
    with pytest.raises(ImageTooLarge, match="20x10"):
        prepare(payload, STRETCH, EXACT, 199)


def test_a_limit_above_pillows_own_counts() -> None:
    """Pillow alone would warn from 89 million pixels on; here only the limit that is configured decides."""
    payload = encode(Image.new("1", (10_000, 9_000)), "PNG")

    assert prepare(payload, STRETCH, EXACT, 100_000_000)[1][0].width == 10_000


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_texts_are_not_inflated(kind: bytes) -> None:
    payload = encode(gradient(8, 8), "PNG")
    packed = zlib.compress(b"x" * 100_000_000)
    data = b"a\0\1\0\0\0" + packed if kind == b"iTXt" else b"a\0\0" + packed
    bomb = payload[:33] + png_chunk(kind, data) + payload[33:]
    tracemalloc.start()
    try:
        assert prepare(bomb, STRETCH, EXACT)[1][0].width == 8
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_segments_chunks_and_scans_are_counted() -> None:
    jpeg, png = encode(gradient(8, 8), "JPEG"), encode(gradient(8, 8), "PNG")
    webp, progressive = SEEDS["WebP"], SEEDS["JPEG progressive"]
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]

    for bomb, match in (
        (jpeg[:2] + b"\xff\xfe\0\2" * 1001 + jpeg[2:], "1000 segments"),
        (png[:33] + png_chunk(b"abCd", b"") * 17_000 + png[33:], "16384 chunks"),
        (webp + b"abcd\0\0\0\0" * 1001, "1000 chunks"),
        (progressive[:-2] + scan * 100 + b"\xff\xd9", "100 scans"),
    ):
        with pytest.raises(ImageUndecodable, match=match):
            prepare(bomb, STRETCH, EXACT)


def test_tags_of_a_tiff_that_are_not_needed_are_not_read() -> None:
    """A thousand tags that each claim the whole file; Pillow would read it a thousand times."""
    tags: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (20,)), 257: ("I", (20,)), 258: ("H", (8,)), 262: ("H", (1,)), 273: ("I", (8,)), 279: ("I", (400,)),
    }  # fmt: skip
    payload = bytearray(tiff({**tags, **{40_000 + index: ("I", (8,)) for index in range(1000)}}, bytes(1_000_000)))
    for place in range(1_000_008 + 2 + 12 * len(tags), len(payload) - 4, 12):
        payload[place + 2 : place + 8] = struct.pack("<HI", 7, 1_000_000)
    tracemalloc.start()
    try:
        prepare(bytes(payload), STRETCH, EXACT)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # the file, and the file with a new directory
    finally:
        tracemalloc.stop()


def test_more_tags_than_that_are_refused() -> None:
    with pytest.raises(ImageUndecodable, match="1025 tags"):
        prepare(tiff(dict.fromkeys(range(1025), ("H", (1,)))), STRETCH, EXACT)


def assert_answered(payload: bytes) -> None:
    """Either a tensor of numbers, or one of our errors with a fix."""
    try:
        tensor, _ = prepare(payload, STRETCH, plan(16, 16), 1_000_000)
    except (ImageUndecodable, ImageTooLarge) as error:
        refused: SnapshotError | None = error
    else:
        refused = None
        assert np.isfinite(tensor).all()
    assert refused is None or (refused.fix and len(str(refused)) < 500)


PILLOW_WARNS = pytest.mark.filterwarnings("ignore::UserWarning")  # in service pictures.py sees to that
EDITS = st.lists(
    st.tuples(
        st.integers(0, 4000), st.sampled_from(["set", "cut", "repeat", "end"]), st.binary(min_size=1, max_size=6)
    ),
    min_size=1,
    max_size=6,
)


@PILLOW_WARNS
@settings(deadline=None, max_examples=800)
@given(seed=st.sampled_from(sorted(SEEDS)), edits=EDITS)
@example(seed="PNG RGB", edits=[(20, "set", b"\xff")])
def test_damage_is_survived_or_reported(seed: str, edits: list[tuple[int, str, bytes]]) -> None:
    damaged = bytearray(SEEDS[seed])
    for place, action, data in edits:
        position = place % max(1, len(damaged))
        if action == "set":
            damaged[position : position + len(data)] = data
        elif action == "cut":
            del damaged[position : position + data[0]]
        elif action == "repeat":
            damaged[position:position] = damaged[: data[0]]
        else:
            del damaged[max(position, 9) :]
    assert_answered(bytes(damaged))


PNG_CHUNKS = b"IHDR PLTE tRNS gAMA cHRM sRGB pHYs tEXt zTXt iTXt iCCP eXIf acTL fcTL fdAT IDAT IEND caBX abCd".split()


@PILLOW_WARNS
@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(PNG_CHUNKS),
    data=st.binary(max_size=30),
    late=st.booleans(),
    seed=st.sampled_from([seed for seed in SEEDS.values() if seed.startswith(b"\x89PNG")]),
)
@example(kind=b"acTL", data=bytes(8), late=True, seed=SEEDS["APNG"])
@example(kind=b"eXIf", data=b"II*\0\x08\0\0\0\xff\xff\xff", late=False, seed=SEEDS["APNG"])
def test_odd_chunks_are_survived_or_reported(kind: bytes, data: bytes, late: bool, seed: bytes) -> None:
    position = len(seed) - 12 if late else 33
    assert_answered(seed[:position] + png_chunk(kind, data) + seed[position:])


@PILLOW_WARNS
@settings(deadline=None, max_examples=400)
@given(
    changes=st.dictionaries(
        st.sampled_from([256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 338, 339]),
        st.tuples(
            st.sampled_from("BHI"),
            st.lists(st.sampled_from([0, 1, 2, 3, 5, 7, 8, 16, 20, 255]), min_size=1, max_size=5).map(tuple),
        ),
        max_size=4,
    ),
    order=st.sampled_from("<>"),
)
def test_odd_tags_are_survived_or_reported(changes: dict[int, Any], order: str) -> None:
    assert_answered(grey_tiff(20, 20, bytes(1200), order, **{f"t{tag}": value for tag, value in changes.items()}))


MEMORY = """
import random, resource, sys
from gateway.errors import ImageTooLarge, ImageUndecodable, SnapshotError
from tests.flow.picture_files import SEEDS, plan, prepare, spec

random.seed(7)
for payload in SEEDS.values():
    prepare(payload, spec(), plan())
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 48_000_000,) * 2)  # 16 bytes for each of a million pixels, and arenas
answers = 0
for round in range(2500):
    payload = bytearray(random.choice(list(SEEDS.values())))
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(payload))
        payload[place : place + 4] = random.choice((b"\\xff" * 4, bytes(4), random.randbytes(1), b"\\0\\0\\xff\\xff"))
    try:
        prepare(bytes(payload), spec(), plan(), 1_000_000)
        answers += 1
    except (ImageTooLarge, ImageUndecodable):
        pass
print(answers)
"""


def test_no_damaged_file_takes_more_memory_than_its_pixels() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False, timeout=250)

    assert done.returncode == 0, done.stderr
    assert 100 < int(done.stdout) < 2400


def test_doubtful_metadata_gives_no_warning() -> None:
    """In a process of its own, because pytest sets the filters for warnings anew for each test."""
    block = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\0\0\0\xf0\0\0\0\0\0\0\0"
    payload = encode(gradient(60, 44), "JPEG", exif=block)
    with pytest.warns(UserWarning, match="EXIF|larger than file"):
        Image.open(io.BytesIO(payload))
    program = (
        f"import sys; from tests.flow.picture_files import *;prepare(sys.stdin.buffer.read(), spec(), plan(), {LIMIT})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], input=payload, capture_output=True, check=False, timeout=120
    )

    assert (done.returncode, done.stderr) == (0, b"")
