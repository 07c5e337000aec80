"""That resizing by vector instructions gives Pillow's pixels, whatever the sizes, and where Pillow itself resizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from gateway.errors import ImageTooLarge
from gateway.flow import resizing
from gateway.flow.resizing import FILTERS, resized
from tests.flow.picture_files import LIMIT, encode, noise, plan, prepare, spec

SIDES = st.one_of(st.integers(1, 40), st.integers(41, 700))
ROUNDING = 2
"""Half a grey level for each axis and both ways; one is what all but the rarest pictures have."""
EDGES = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


def apart(first: Image.Image, second: Image.Image) -> int:
    """Grey levels between two pictures of one size, at most."""
    return int(np.abs(np.asarray(first).astype(int) - np.asarray(second)).max())


@settings(deadline=None, max_examples=300)
@given(width=SIDES, height=SIDES, size=st.tuples(SIDES, SIDES), across=EDGES, down=EDGES, grey=st.booleans())
@example(width=1, height=1, size=(640, 640), across=[0.0, 1.0], down=[0.0, 1.0], grey=False)
@example(width=700, height=1, size=(1, 700), across=[0.3, 1.0], down=[0.0, 1.0], grey=False)
@example(width=40, height=40, size=(9, 9), across=[1.0, 1.0], down=[0.0, 0.0], grey=True)
def test_bilinear_is_pillows_but_for_rounding(
    width: int, height: int, size: tuple[int, int], across: list[float], down: list[float], grey: bool
) -> None:
    picture = noise(width, height).convert("L" if grey else "RGB")
    left, top = min(across[0] * width, width - 0.01), min(down[0] * height, height - 0.01)
    right, bottom = max(across[1] * width, left + 0.01), max(down[1] * height, top + 0.01)

    # What rounding adds at the far edge must not matter.
    part = resized(picture, size, "bilinear", (left, top, right * (1 + 1e-15), bottom * (1 + 1e-15)))

    assert (part.mode, part.size) == (picture.mode, size)
    expected = picture.resize(size, FILTERS["bilinear"], (left, top, min(right, width), min(bottom, height)))
    assert apart(part, expected) <= ROUNDING


@settings(deadline=None, max_examples=100)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    more=st.tuples(st.floats(0.2, 9), st.floats(0.2, 9)),
    corner=st.tuples(st.floats(0, 90), st.floats(0, 90)),
)
def test_bicubic_is_pillows_along_one_axis_after_the_other(
    size: tuple[int, int], more: tuple[float, float], corner: tuple[float, float]
) -> None:
    right, bottom = corner[0] + size[0] * more[0], corner[1] + size[1] * more[1]
    picture = noise(int(right) + 40, int(bottom) + 40)
    box = (*corner, right, bottom)

    across = picture.resize((size[0], picture.height), FILTERS["bicubic"], (box[0], 0, box[2], picture.height))
    expected = across.resize(size, FILTERS["bicubic"], (0, box[1], size[0], box[3]))
    assert apart(resized(picture, size, "bicubic", box), expected) <= ROUNDING


@pytest.mark.parametrize(
    ("side", "size"), [((960, 540), (640, 360)), ((1920, 1080), (224, 224)), ((64, 48), (640, 480))]
)
def test_a_cameras_picture_is_off_by_one_grey_level_at_most(side: tuple[int, int], size: tuple[int, int]) -> None:
    picture = noise(*side)

    part = resized(picture, size, "bilinear", (0, 0, *side))

    assert 0 < apart(part, picture.resize(size, FILTERS["bilinear"])) <= 1


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBX"])
def test_exact_pixels_are_pillows(resample: str, mode: str) -> None:
    picture = noise(300, 200).convert(mode)
    box = (3.3, 5.5, 290.1, 200.0)

    part = resized(picture, (64, 48), resample, box, exact=True)

    assert apart(part, picture.resize((64, 48), FILTERS[resample], box)) == 0


def test_threads_share_one_picture() -> None:
    picture = noise(900, 700)
    sizes = [(width, width // 2 + 3) for width in range(50, 450, 10)] * 4
    expected = {size: np.asarray(resized(picture, size, "bilinear", (0, 0, 900, 700))) for size in set(sizes)}

    def resize(size: tuple[int, int]) -> NDArray[np.uint8]:
        return np.asarray(resized(picture, size, "bilinear", (0, 0, 900, 700)))

    with ThreadPoolExecutor(8) as threads:
        for size, found in zip(sizes, threads.map(resize, sizes), strict=True):
            np.testing.assert_array_equal(found, expected[size])


@pytest.fixture
def another_layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Pillow whose pictures the resizer would read wrongly."""
    resizing._layout_is_known.cache_clear()
    version = "12.0.0" if PIL.__version__.startswith("11.") else "11.0.0"
    monkeypatch.setattr("gateway.flow.resizing.pillow_version", version)
    yield
    resizing._layout_is_known.cache_clear()


@pytest.mark.usefixtures("another_layout")
def test_with_another_layout_of_pictures_pillow_resizes() -> None:
    picture = noise(300, 200)

    part = resized(picture, (64, 48), "bilinear", (0, 0, 300, 200))

    assert not resizing._layout_is_known()
    assert apart(part, picture.resize((64, 48), FILTERS["bilinear"])) == 0


def test_this_pillow_has_the_layout_that_is_known() -> None:
    assert resizing._layout_is_known()


MEMORY = """
import itertools, resource
from gateway.flow.resizing import resized
from tests.flow.picture_files import noise

noise(9, 9).resize((8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for side, size in itertools.product(((60_000, 3), (3, 60_000)), ((4096, 2), (2, 4096), (1000, 1000))):
    picture = noise(*side).convert("L")
    for resample, exact in itertools.product(("bilinear", "bicubic"), (False, True)):
        assert resized(picture, size, resample, (0, 0, *side), exact=exact).size == size
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_thin_picture_needs_no_more_memory_than_another() -> None:
    """In the wrong order 60,000 pixels by 3 would be 60,000 by 4096 in between, which is 246 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60


def test_no_side_is_longer_than_that_of_a_jpeg() -> None:
    """Pillow takes 8 bytes for each row: a file of some kilobytes with 50 million rows would take 400 MB and more."""
    within, beyond = (encode(Image.new("1", (1, rows)), "PNG") for rows in (65_535, 65_536))

    assert prepare(within, spec(), plan())[1][0].height == 65_535
    with pytest.raises(ImageTooLarge, match="1x65536 pixels, more than 65535 along a side"):
        prepare(beyond, spec(), plan(), LIMIT)


def test_without_the_fast_resizer_pillow_resizes() -> None:
    program = (
        "import sys; sys.modules['cykooz_resizer'] = None\n"
        "from PIL import Image; from gateway.flow.resizing import FILTERS, resized\n"
        "picture = Image.linear_gradient('L').resize((90, 70))\n"
        "for name, kind in FILTERS.items():\n"
        "    assert resized(picture, (33, 21), name, (0, 0, 90, 70)) == picture.resize((33, 21), kind)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
