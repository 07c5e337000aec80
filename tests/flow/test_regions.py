"""Regions of a heat map held against OpenCV's connected components."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.flow.regions import MAX_REGIONS, components, regions
from gateway.messages import Geometry, Outline, Rle

SQUARE = Geometry(100, 100, 1, 1, 0, 0)


def spots(*places: tuple[int, int, int, float]) -> NDArray[np.float32]:
    """A map of 100x100 with squares: x, y, side and heat of each."""
    heat = np.zeros((100, 100), dtype=np.float32)
    for x, y, side, value in places:
        heat[y : y + side, x : x + side] = value
    return heat


def test_the_highest_peak_comes_first() -> None:
    found = regions(spots((10, 20, 5, 0.7), (60, 30, 20, 0.9), (40, 80, 8, 0.3)), 0.5, SQUARE, (100, 100))

    assert [region.bbox for region in found] == [(60, 30, 80, 50), (10, 20, 15, 25)]
    assert [region.peak for region in found] == pytest.approx([0.9, 0.7])
    assert found[1].shape == Outline((((10, 20), (15, 20), (15, 25), (10, 25)),))


@pytest.mark.parametrize(("form", "kind"), [("polygon", Outline), ("rle", Rle), ("none", type(None))])
def test_the_shape_has_the_form_that_is_asked_for(form: str, kind: type) -> None:
    (found,) = regions(spots((10, 20, 5, 0.7)), 0.5, SQUARE, (100, 100), form)  # type: ignore[arg-type]

    assert isinstance(found.shape, kind)


def test_a_coarse_map_spans_the_whole_input() -> None:
    heat = np.zeros((8, 16), dtype=np.float32)
    heat[2:4, 4:6] = 0.8

    (found,) = regions(heat, 0.5, Geometry(640, 320, 0.5, 0.5, 0, 0), (160, 320))

    assert found.bbox == (160, 80, 240, 160)


def test_padding_around_the_picture_does_not_count() -> None:
    # 1920x1080 in 640x640, so that the picture lies in the rows 140 to 500 of the input.
    heat = np.zeros((64, 64), dtype=np.float32)
    heat[:14], heat[50:] = 1.0, 1.0
    geometry = Geometry(1920, 1080, 1 / 3, 1 / 3, 0, 140)
    assert regions(heat, 0.5, geometry, (640, 640)) == []

    heat[13:16, 10:12] = 0.9
    (found,) = regions(heat, 0.5, geometry, (640, 640))

    assert found.bbox == pytest.approx((300, 0, 360, 60))
    assert found.peak == pytest.approx(0.9)


def test_single_hot_pixels_of_a_large_map_are_noise() -> None:
    heat = np.zeros((256, 256), dtype=np.float32)
    heat[10, 10], heat[100:104, 100:104] = 1.0, 0.6

    assert [region.peak for region in regions(heat, 0.5, Geometry(256, 256, 1, 1, 0, 0), (256, 256))] == [
        pytest.approx(0.6)
    ]


def test_nothing_is_above_the_threshold() -> None:
    assert regions(np.full((8, 8), 0.5, np.float32), 0.5, SQUARE, (100, 100)) == []


def test_a_map_that_is_hot_everywhere_is_one_region() -> None:
    (found,) = regions(np.ones((50, 50), np.float32), 0.5, SQUARE, (100, 100))

    assert found.bbox == (0, 0, 100, 100)


def test_a_map_of_noise_has_a_bounded_number_of_regions() -> None:
    heat = np.kron(np.random.default_rng(0).random((50, 50)) > 0.8, np.ones((4, 4))).astype(np.float32)

    assert len(regions(heat, 0.5, Geometry(200, 200, 1, 1, 0, 0), (200, 200))) == MAX_REGIONS


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    density=st.floats(0.05, 0.95),
)
def test_the_parts_are_those_of_opencv(seed: int, shape: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.random(shape) < density
    heat = rng.random(shape, dtype=np.float32)
    count, expected = cv2.connectedComponents(cells.astype(np.uint8), connectivity=8)

    labels, peaks, areas = components(cells, heat)

    assert (labels >= 0).tolist() == cells.tolist()
    pairs = {(int(ours), int(theirs)) for ours, theirs in zip(labels[cells], expected[cells], strict=True)}
    assert len(pairs) == count - 1 == len(peaks)
    for ours, theirs in pairs:
        assert areas[ours] == (expected == theirs).sum()
        assert peaks[ours] == heat[expected == theirs].max()


@pytest.mark.parametrize("turns", [1, 30])
def test_a_spiral_is_one_part(turns: int) -> None:
    cells = np.zeros((4 * turns + 3, 4 * turns + 3), dtype=np.bool_)
    for ring in range(turns):
        low, high = 2 * ring, cells.shape[0] - 1 - 2 * ring
        cells[low, low : high + 1] = cells[low : high + 1, high] = cells[high, low : high + 1] = True
        cells[low + 2 : high + 1, low] = True
        cells[low + 2, low : low + 3] = True

    assert components(cells, cells.astype(np.float32))[2].tolist() == [cells.sum()]
