"""What no file can make step 4 cost: sizes that are claimed, parts without number, damage of every kind."""

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
from PIL import Image

from gateway.errors import ImageTooLarge, ImageUndecodable, SnapshotError
from gateway.flow.pictures import open_picture
from tests.flow.picture_files import LIMIT, SEEDS, encode, gradient, grey_tiff, plan, png_chunk, prepare, spec, tiff

STRETCH = spec(mode="stretch")
EXACT = plan(44, 60)


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
            prepare(BOMBS[name], STRETCH, EXACT, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_of_pixels_is_inclusive() -> None:
    payload = encode(gradient(20, 10), "PNG")

    prepare(payload, STRETCH, EXACT, 200)
    with pytest.raises(ImageTooLarge, match="20x10"):
        prepare(payload, STRETCH, EXACT, 199)


def test_a_webp_counts_more_because_it_takes_more_memory() -> None:
    payload = encode(gradient(20, 10), "WEBP")

    prepare(payload, STRETCH, EXACT, 300)
    with pytest.raises(ImageTooLarge, match="20x10 pixels, more than 299: a WebP counts"):
        prepare(payload, STRETCH, EXACT, 299)


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


@pytest.mark.parametrize("frame", [0xC2, 0xCA])
def test_scans_are_counted_in_every_progressive_jpeg(frame: int) -> None:
    """0xCA is a progressive JPEG in arithmetic coding, which the decoder reads too."""
    whole = SEEDS["JPEG progressive"].replace(b"\xff\xc2", bytes((0xFF, frame)), 1)
    scan = b"\xff\xda\0\x08\1\1\0\1\x3f\0" + bytes(4)

    def with_scans(count: int) -> bytes:
        return whole[:-2] + scan * (count - whole.count(b"\xff\xda")) + b"\xff\xd9"

    assert open_picture(with_scans(100), LIMIT).width == 60
    with pytest.raises(ImageUndecodable, match="100 scans"):
        open_picture(with_scans(101), LIMIT)


@pytest.mark.parametrize("frame", [0xC0, 0xC1, 0xC9])
def test_a_sequential_jpeg_has_no_more_scans_than_colours(frame: int) -> None:
    whole = encode(gradient(60, 44), "JPEG").replace(b"\xff\xc0", bytes((0xFF, frame)), 1)
    head = whole[: whole.index(b"\xff\xda")]

    def with_scans(count: int) -> bytes:
        scans = (b"\xff\xda\0\x08\1%c\0\0\x3f\0" % (index % 3 + 1) + bytes(4) for index in range(count))
        return head + b"".join(scans) + b"\xff\xd9"

    assert prepare(with_scans(3), STRETCH, EXACT)[1][0].width == 60
    with pytest.raises(ImageUndecodable, match="3 scans"):
        open_picture(with_scans(4), LIMIT)


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
    with pytest.warns(UserWarning, match="EXIF|larger than file|Truncated"):
        Image.open(io.BytesIO(payload))
    program = (
        f"import sys; from tests.flow.picture_files import *;prepare(sys.stdin.buffer.read(), spec(), plan(), {LIMIT})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], input=payload, capture_output=True, check=False, timeout=120
    )

    assert (done.returncode, done.stderr) == (0, b"")
