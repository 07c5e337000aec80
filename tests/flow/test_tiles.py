"""Which part of the picture goes where: tiles cover it, and every mode has an exact way back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.placement import boxes_to_picture, place, points_to_picture
from gateway.flow.tiles import cut
from tests.flow.picture_files import spec

MODES: dict[str, dict[str, Any]] = {
    "letterbox": {"mode": "letterbox"},
    "top-left": {"mode": "letterbox", "align": "top-left"},
    "stretch": {"mode": "stretch"},
    "crop": {"mode": "crop"},
    "crop 0.875": {"mode": "crop", "crop_fraction": 0.875},
    "tiles": {"mode": "tiles"},
    "tiles only": {"mode": "tiles", "tiles": {"size": 96, "overlap": 0.5, "whole": False, "max_tiles": 9}},
    "tiles top-left": {"mode": "tiles", "align": "top-left", "tiles": {"size": 96, "overlap": 0.0}},
}
SIDES = st.integers(1, 9000)
TILES = st.tuples(st.integers(8, 1300), st.integers(8, 1300))


@given(width=SIDES, height=SIDES, tile=TILES, overlap=st.floats(0, 0.5), max_tiles=st.integers(1, 64))
def test_tiles_cover_the_picture_and_are_never_too_many(
    width: int, height: int, tile: tuple[int, int], overlap: float, max_tiles: int
) -> None:
    boxes = cut(width, height, tile, overlap, max_tiles)

    assert 1 <= len(boxes) <= max_tiles
    assert len(set(boxes)) == len(boxes)
    assert len({(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes}) == 1
    for first, last, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(box[first], box[last]) for box in boxes})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        side = spans[0][1]
        for before, after in pairwise(spans):
            assert before[1] - after[0] >= overlap * side - 1.01  # starts are whole pixels
            assert after[0] <= before[1]
    columns, rows = {box[0::2] for box in boxes}, {box[1::2] for box in boxes}
    assert len(boxes) == len(columns) * len(rows)


@given(width=SIDES, height=SIDES, tile=TILES, overlap=st.floats(0, 0.5), max_tiles=st.integers(1, 64))
def test_tiles_grow_only_when_they_must(
    width: int, height: int, tile: tuple[int, int], overlap: float, max_tiles: int
) -> None:
    wanted = cut(width, height, tile, overlap, 1000)
    boxes = cut(width, height, tile, overlap, max_tiles)

    if len(wanted) <= max_tiles:
        assert boxes == wanted
        assert boxes[0][2:] == (min(width, tile[0]), min(height, tile[1]))
    else:
        assert boxes[0][2] > min(width, tile[0]) or boxes[0][3] > min(height, tile[1])


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "max_tiles", "starts"),
    [
        ((1920, 1080), (640, 640), 0.2, 16, ([0, 427, 853, 1280], [0, 440])),
        ((1280, 640), (640, 640), 0.0, 16, ([0, 640], [0])),
        ((1281, 640), (640, 640), 0.0, 16, ([0, 320, 641], [0])),
        ((640, 640), (640, 640), 0.2, 16, ([0], [0])),
        ((300, 2000), (640, 640), 0.2, 16, ([0], [0, 453, 907, 1360])),
        ((4000, 3000), (640, 640), 0.2, 4, ([0, 1777], [0, 777])),
    ],
)
def test_tiles_by_example(
    size: tuple[int, int],
    tile: tuple[int, int],
    overlap: float,
    max_tiles: int,
    starts: tuple[list[int], list[int]],
) -> None:
    boxes = cut(*size, tile, overlap, max_tiles)

    assert (sorted({box[0] for box in boxes}), sorted({box[1] for box in boxes})) == starts


def test_the_whole_picture_comes_first_and_once() -> None:
    def boxes(width: int, height: int, **tiles: Any) -> list[Any]:
        return [one.geometry.box for one in place(width, height, spec(mode="tiles", tiles=tiles), (64, 96))]

    assert boxes(192, 64, overlap=0) == [None, (0, 0, 96, 64), (96, 0, 192, 64)]
    assert boxes(192, 64, overlap=0, whole=False) == [(0, 0, 96, 64), (96, 0, 192, 64)]
    assert boxes(96, 64) == [None]
    assert boxes(96, 64, whole=False) == [None]
    assert boxes(40, 30) == [None]
    assert boxes(1000, 1000, max_tiles=1) == [None]


# --- every mode -------------------------------------------------------------------------------------------


@given(width=SIDES, height=SIDES, size=TILES, mode=st.sampled_from(sorted(MODES)))
def test_the_placement_of_any_size_is_consistent(width: int, height: int, size: tuple[int, int], mode: str) -> None:
    for one in place(width, height, spec(**MODES[mode]), size):
        geometry = one.geometry
        assert 1 <= one.content[0] <= size[1] - one.left
        assert 1 <= one.content[1] <= size[0] - one.top
        assert mode not in ("stretch", "crop", "crop 0.875") or one.content == (size[1], size[0])
        assert 0 <= one.box[0] < one.box[2] <= width
        assert 0 <= one.box[1] < one.box[3] <= height
        corners = np.array([one.box]) * ([geometry.scale_x, geometry.scale_y] * 2)
        corners += [geometry.offset_x, geometry.offset_y] * 2
        right, bottom = one.left + one.content[0], one.top + one.content[1]
        np.testing.assert_allclose(corners, [[one.left, one.top, right, bottom]], atol=1e-6)


@given(
    width=SIDES,
    height=SIDES,
    size=TILES,
    mode=st.sampled_from(sorted(MODES)),
    shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
)
def test_points_and_boxes_come_back_to_the_picture(
    width: int, height: int, size: tuple[int, int], mode: str, shares: list[tuple[float, float]]
) -> None:
    for one in place(width, height, spec(**MODES[mode]), size):
        geometry = one.geometry
        corner, span = np.array(one.box[:2]), np.subtract(one.box[2:], one.box[:2])
        points = corner + np.array(shares) * span
        scale, offset = (geometry.scale_x, geometry.scale_y), (geometry.offset_x, geometry.offset_y)
        seen = (points * scale + offset).astype(np.float32)

        atol = 0.002 * max(1.0, 1 / geometry.scale_x, 1 / geometry.scale_y)  # float32 of up to 1300 pixels
        np.testing.assert_allclose(points_to_picture(seen, geometry), points, atol=atol, rtol=1e-6)
        boxes = np.concatenate((seen, seen), axis=1)
        np.testing.assert_allclose(
            boxes_to_picture(boxes, geometry), np.concatenate((points, points), axis=1), atol=atol, rtol=1e-6
        )


def test_boxes_are_clipped_to_what_the_input_shows() -> None:
    far = np.array([[-500, -500, 900, 900]], np.float32)

    def clipped(width: int, height: int, index: int = 0, **more: Any) -> list[float]:
        geometry = place(width, height, spec(**more), (64, 96))[index].geometry
        boxes: list[list[float]] = boxes_to_picture(far, geometry).tolist()
        assert points_to_picture(far.reshape(-1, 2), geometry).tolist() == [boxes[0][:2], boxes[0][2:]]
        return boxes[0]

    assert clipped(40, 40) == [0, 0, 40, 40]
    assert clipped(192, 64, mode="crop") == [48, 0, 144, 64]
    assert clipped(192, 64, 0, mode="tiles", tiles={"overlap": 0}) == [0, 0, 192, 64]
    assert clipped(192, 64, 2, mode="tiles", tiles={"overlap": 0}) == [96, 0, 192, 64]


def test_nothing_found_stays_nothing() -> None:
    geometry = place(40, 40, spec(), (64, 96))[0].geometry

    assert boxes_to_picture(np.zeros((0, 4), np.float32), geometry).shape == (0, 4)
    assert points_to_picture(np.zeros((0, 2), np.float32), geometry).shape == (0, 2)
    assert boxes_to_picture(np.zeros((0, 4), np.float32), geometry).dtype == np.float32


# --- as others do it --------------------------------------------------------------------------------------


def letterbox_of_ultralytics(width: int, height: int, size: tuple[int, int]) -> tuple[int, ...]:
    """Content and corner by the arithmetic of ultralytics/data/augment.py, LetterBox (auto=False, scaleup=True)."""
    r = min(size[0] / height, size[1] / width)
    new = round(width * r), round(height * r)
    dw, dh = (size[1] - new[0]) / 2, (size[0] - new[1]) / 2
    return (*new, round(dw - 0.1), round(dh - 0.1))


@given(width=st.integers(8, 9000), height=st.integers(8, 9000), size=TILES)
def test_a_centred_letterbox_is_that_of_ultralytics(width: int, height: int, size: tuple[int, int]) -> None:
    expected = letterbox_of_ultralytics(width, height, size)
    (one,) = place(width, height, spec(), size)

    if min(expected[:2]) > 0:
        assert (*one.content, one.left, one.top) == expected


@given(width=st.integers(8, 9000), height=st.integers(8, 9000), size=TILES)
def test_a_letterbox_at_the_top_left_is_that_of_yolox(width: int, height: int, size: tuple[int, int]) -> None:
    (one,) = place(width, height, spec(align="top-left"), size)
    r = min(size[0] / height, size[1] / width)  # yolox/data/data_augment.py, preproc

    assert (one.left, one.top) == (0, 0)
    assert one.content == (max(1, int(width * r)), max(1, int(height * r)))


@pytest.mark.parametrize(
    ("picture", "fraction", "side", "scaled", "hidden"),
    [
        ((640, 480), 0.875, 224, (341, 256), (58, 16)),  # Resize(256): int(256 * 640 / 480); (341 - 224) / 2 = 58.5
        ((480, 640), 0.875, 224, (256, 341), (16, 58)),
        ((641, 480), 0.875, 225, (343, 257), (59, 16)),
        ((500, 500), 1.0, 224, (224, 224), (0, 0)),
        ((500, 500), 0.95, 224, (235, 235), (6, 6)),  # floor(224 / 0.95); 5.5 goes to the even 6
        ((500, 500), 0.9492, 224, (236, 236), (6, 6)),  # torchvision's "resize to 236, crop 224" in four digits
        ((100, 3000), 0.875, 224, (256, 7680), (16, 3728)),
    ],
)
def test_a_crop_is_that_of_torchvision_and_timm(
    picture: tuple[int, int], fraction: float, side: int, scaled: tuple[int, int], hidden: tuple[int, int]
) -> None:
    geometry = place(*picture, spec(mode="crop", crop_fraction=fraction), (side, side))[0].geometry

    np.testing.assert_allclose((geometry.scale_x * picture[0], geometry.scale_y * picture[1]), scaled)
    np.testing.assert_array_equal((-geometry.offset_x, -geometry.offset_y), hidden)


def test_a_fraction_in_four_digits_gives_the_size_that_was_meant() -> None:
    for crop in range(128, 513, 16):
        for resized in range(crop, crop + 80):
            (one,) = place(2000, 2000, spec(mode="crop", crop_fraction=round(crop / resized, 4)), (crop, crop))
            if 5e-5 * resized**2 / crop < 0.02:  # what four digits leave open
                assert round(one.geometry.scale_x * 2000) == resized
