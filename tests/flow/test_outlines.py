"""Outlines held against OpenCV's contours, filled again, and against COCO's own run lengths."""

from __future__ import annotations

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from gateway.flow.outlines import (
    CORNER_BYTES,
    MAX_BYTES,
    MAX_CELLS,
    MAX_CORNERS,
    MAX_POLYGONS,
    outlines,
    polygons_of,
    rle_of,
    visible,
)
from gateway.layouts.base import Mask, Masks
from gateway.messages import Geometry, Outline, Rle

Cells = NDArray[np.bool_]
Polygon = tuple[tuple[float, float], ...]


def plain(cells: Cells) -> Geometry:
    """A picture whose pixels are the cells."""
    return Geometry(cells.shape[1], cells.shape[0], 1, 1, 0, 0)


def polygons(cells: Cells, geometry: Geometry | None = None) -> tuple[Polygon, ...]:
    found = polygons_of(Mask(cells), geometry or plain(cells))
    return found.polygons if found else ()


def filled(shapes: tuple[Polygon, ...], height: int, width: int) -> Cells:
    """The pixels whose middle a polygon winds around."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), dtype=np.bool_)
    for corners in shapes:
        turns = np.zeros((height, width), dtype=int)
        for (x1, y1), (x2, y2) in zip(corners, (*corners[1:], corners[0]), strict=True):
            if y1 != y2:
                crossed = (y >= min(y1, y2)) & (y < max(y1, y2)) & (x1 + (y - y1) * (x2 - x1) / (y2 - y1) < x)
                turns += crossed * (1 if y2 > y1 else -1)
        inside |= turns != 0
    return inside


def blob(rng: np.random.Generator, radius: float, size: int) -> Cells:
    """One to three ellipses that overlap."""
    y, x = np.mgrid[:size, :size] + 0.5
    cells = np.zeros((size, size), dtype=np.bool_)
    middle = rng.uniform(size * 0.3, size * 0.7, 2)
    for _ in range(rng.integers(1, 4)):
        (a, b), angle = radius * rng.uniform(0.8, 1.5, 2), rng.uniform(0, np.pi)
        u = (x - middle[0]) * np.cos(angle) + (y - middle[1]) * np.sin(angle)
        v = (y - middle[1]) * np.cos(angle) - (x - middle[0]) * np.sin(angle)
        cells |= (u / a) ** 2 + (v / b) ** 2 <= 1
        middle += rng.uniform(-radius, radius, 2)
    return cells


def iou(first: Cells, second: Cells) -> float:
    return float((first & second).sum() / (first | second).sum())


# --- polygons ----------------------------------------------------------------------------------------


def test_a_rectangle_has_four_corners_on_the_edges_of_its_pixels() -> None:
    cells = np.zeros((20, 30), dtype=np.bool_)
    cells[5:10, 7:20] = True

    assert polygons(cells) == (((7, 5), (20, 5), (20, 10), (7, 10)),)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), radius=st.sampled_from([3, 6, 12, 25]))
def test_a_blob_filled_again_is_the_blob(seed: int, radius: float) -> None:
    cells = blob(np.random.default_rng(seed), radius, 100)

    shapes = polygons(cells)

    assert iou(filled(shapes, 100, 100), cells) >= 0.95
    assert all(3 <= len(corners) <= MAX_CORNERS for corners in shapes)


@settings(deadline=None, max_examples=150)
@given(cells=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=10)))  # too few for specks
def test_the_parts_are_those_of_opencv(cells: Cells) -> None:
    contours, tree = cv2.findContours(cells.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = [contour for index, contour in enumerate(contours) if tree[0][index][3] < 0]
    boxes = sorted((*c.min(axis=(0, 1)).tolist(), *(c.max(axis=(0, 1)) + 1).tolist()) for c in outer)

    shapes = polygons(cells)

    assert len(shapes) == min(len(boxes), MAX_POLYGONS)
    found = {(*np.min(s, axis=0).tolist(), *np.max(s, axis=0).tolist()) for s in shapes}
    assert found <= set(boxes)


def test_holes_are_filled_and_what_is_inside_them_is_a_part() -> None:
    cells = np.zeros((40, 40), dtype=np.bool_)
    cells[2:38, 2:38] = True
    cells[8:32, 8:32] = False
    cells[15:25, 15:25] = True

    assert polygons(cells) == (
        ((2, 2), (38, 2), (38, 38), (2, 38)),
        ((15, 15), (25, 15), (25, 25), (15, 25)),
    )


def test_corners_that_touch_are_one_part() -> None:
    assert len(polygons(np.kron(np.eye(3), np.ones((8, 8))).astype(np.bool_))) == 1
    assert len(polygons(np.kron(np.eye(3)[::-1], np.ones((8, 8))).astype(np.bool_))) == 1


def test_the_largest_part_comes_first_and_specks_are_left_out() -> None:
    cells = np.zeros((60, 60), dtype=np.bool_)
    cells[0:10, 0:10] = cells[20:50, 20:50] = True
    cells[55, 5] = True

    assert [np.min(corners, axis=0).tolist() for corners in polygons(cells)] == [[20, 20], [0, 0]]


@pytest.mark.parametrize("density", [0.3, 0.5, 0.6, 0.9])
def test_noise_has_a_bounded_shape(density: float) -> None:
    cells = np.random.default_rng(7).random((640, 640)) < density

    shapes = polygons(cells)

    assert 0 < len(shapes) <= MAX_POLYGONS
    assert all(3 <= len(corners) <= MAX_CORNERS for corners in shapes)


@pytest.mark.parametrize("cells", [np.ones((1, 5000)), np.ones((5000, 1)), np.eye(3000), np.eye(3000)[::-1]])
def test_a_thin_line_keeps_a_shape(cells: NDArray[np.float64]) -> None:
    ((*corners,),) = polygons(cells > 0)

    assert len(corners) >= 3
    assert np.ptp(corners, axis=0).tolist() == [cells.shape[1], cells.shape[0]]


def test_an_empty_mask_has_no_shape() -> None:
    for cells in (np.zeros((5, 5), dtype=np.bool_), np.zeros((0, 0), dtype=np.bool_)):
        assert polygons_of(Mask(cells), Geometry(10, 10, 1, 1, 0, 0)) is None
        assert rle_of(Mask(cells), Geometry(10, 10, 1, 1, 0, 0)) is None


# --- the way to the picture --------------------------------------------------------------------------


def test_letterbox_and_the_place_of_the_cells_are_undone() -> None:
    # 1920x1080 in 640x640: a third, 140 rows of padding above. Cells of two pixels, from (100, 150) of the input on.
    mask = Mask(np.ones((10, 20), dtype=np.bool_), left=100, top=150, cell_width=2, cell_height=2)

    found = polygons_of(mask, Geometry(1920, 1080, 1 / 3, 1 / 3, 0, 140))

    assert found == Outline((((300, 30), (420, 30), (420, 90), (300, 90)),))


def test_padding_is_not_part_of_an_object() -> None:
    geometry = Geometry(1920, 1080, 1 / 3, 1 / 3, 0, 140)

    assert polygons(np.ones((640, 640), dtype=np.bool_), geometry) == (((0, 0), (1920, 0), (1920, 1080), (0, 1080)),)
    only_padding = np.zeros((640, 640), dtype=np.bool_)
    only_padding[:140] = True
    assert polygons(only_padding, geometry) == ()


def test_of_a_tile_the_whole_picture_is_the_frame() -> None:
    tile = Geometry(1000, 500, 1, 1, -600, -100, box=(600, 100, 900, 400))
    cells = np.zeros((320, 320), dtype=np.bool_)
    cells[10:20, 290:320] = True

    assert polygons(cells, tile) == (((890, 110), (900, 110), (900, 120), (890, 120)),)
    rle = rle_of(Mask(cells), tile)
    assert rle is not None
    assert np.argwhere(decoded(rle)).min(axis=0).tolist() == [110, 890]
    assert decoded(rle).sum() == 100


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)),
    offset=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    cell=st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)),
)
def test_nothing_lies_outside_of_the_picture(
    seed: int, scale: tuple[float, float], offset: tuple[float, float], cell: tuple[float, float]
) -> None:
    geometry = Geometry(90, 60, *scale, *offset)
    mask = Mask(blob(np.random.default_rng(seed), 10, 60), 3, -4, *cell)

    found = polygons_of(mask, geometry)
    rle = rle_of(mask, geometry)

    corners = [corner for corners in found.polygons for corner in corners] if found else []
    assert all(0 <= x <= 90 and 0 <= y <= 60 for x, y in corners)
    assert all(round(x, 1) == x and round(y, 1) == y for x, y in corners)
    if rle:
        assert decoded(rle).shape == (60, 90)


# --- run lengths -------------------------------------------------------------------------------------


def decoded(rle: Rle) -> Cells:
    """As rleFrString and rleDecode of the COCO API."""
    counts: list[int] = []
    text = [ord(character) - 48 for character in rle.counts]
    at = 0
    while at < len(text):
        value = shift = 0
        while True:
            five = text[at]
            value |= (five & 31) << shift
            shift += 5
            at += 1
            if not five & 32:
                break
        if five & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    assert sum(counts) == rle.height * rle.width
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(rle.width, rle.height).T


def rectangle() -> Cells:
    cells = np.zeros((48, 64), dtype=np.bool_)
    cells[5:20, 7:30] = True
    return cells


def disc() -> Cells:
    y, x = np.mgrid[:90, :120]
    return np.asarray((x - 50) ** 2 + (y - 40) ** 2 <= 900)


def board() -> Cells:
    return np.add.outer(np.arange(12), np.arange(9)) % 2 > 0


def ends() -> Cells:
    cells = np.zeros((5000, 3), dtype=np.bool_)
    cells[0, 0] = cells[-1, -1] = True
    return cells


# Written by pycocotools: mask.encode(numpy.asfortranarray(cells))["counts"].
WRITTEN_BY_COCO = [
    (rectangle(), "e:?Q10000000000000000000000000000000000000000000kb1"),
    (np.ones((33, 70), dtype=np.bool_), "0VX2"),
    (
        disc(),
        (
            "`i11b2>F6J6L2M4L4M2N2N2N2N2N2O0O2O0O2N2O000O2O000O2O00000000000O20N1000000000001N10001N10001N2N101N101N2N"
            "2N2N2N2N3L4L3N4J6J:Be\\3"
        ),
    ),
    (board(), "1110000000010O" + 7 * "0000000010O" + "000000000"),
    (ends(), "01fd>0"),
]


@pytest.mark.parametrize(("cells", "counts"), WRITTEN_BY_COCO)
def test_run_lengths_are_written_as_by_coco(cells: Cells, counts: str) -> None:
    assert rle_of(Mask(cells), plain(cells)) == Rle(cells.shape[0], cells.shape[1], counts)


@settings(deadline=None, max_examples=200)
@given(cells=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40), fill=st.booleans()))
def test_run_lengths_decode_to_the_mask(cells: Cells) -> None:
    rle = rle_of(Mask(cells), plain(cells))

    if not cells.any():
        assert rle is None
    else:
        assert rle is not None
        np.testing.assert_array_equal(decoded(rle), cells)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    scale=st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)),
    offset=st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
)
def test_each_pixel_is_the_cell_under_its_middle(
    seed: int, size: tuple[int, int], scale: tuple[float, float], offset: tuple[float, float]
) -> None:
    (width, height), (scale_x, scale_y), (offset_x, offset_y) = size, scale, offset
    geometry = Geometry(width, height, *scale, *offset)
    mask = visible(Mask(np.random.default_rng(seed).random((30, 20)) < 0.6, -2, 3, 1.5, 0.7), geometry)
    expected = np.zeros((height, width), dtype=np.bool_)
    for y, x in np.ndindex(height, width):
        row = np.floor(((y + 0.5) * scale_y + offset_y - mask.top) / mask.cell_height)
        column = np.floor(((x + 0.5) * scale_x + offset_x - mask.left) / mask.cell_width)
        if 0 <= row < mask.cells.shape[0] and 0 <= column < mask.cells.shape[1]:
            expected[y, x] = mask.cells[int(row), int(column)]

    rle = rle_of(mask, geometry)

    np.testing.assert_array_equal(decoded(rle) if rle else np.zeros_like(expected), expected)


# --- a whole result ----------------------------------------------------------------------------------


def test_shapes_come_in_the_order_of_the_objects() -> None:
    cells = [np.ones((2, 2), dtype=np.bool_), np.zeros((2, 2), dtype=np.bool_), np.ones((1, 2), dtype=np.bool_)]
    asked = [(Masks(lambda index: Mask(cells[index])), index, Geometry(4, 4, 1, 1, 0, 0)) for index in (2, 1, 0)]

    assert outlines(asked, "polygon") == (
        Outline((((0, 0), (2, 0), (2, 1), (0, 1)),)),
        None,
        Outline((((0, 0), (2, 0), (2, 2), (0, 2)),)),
    )
    assert [rle and decoded(rle).sum() for rle in outlines(asked, "rle") if not isinstance(rle, Outline)] == [
        2,
        None,
        4,
    ]
    assert outlines(asked, "none") == (None, None, None)


@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_a_result_has_bounded_bytes_and_the_best_objects_have_the_shapes(form: str) -> None:
    rng = np.random.default_rng(3)
    noise = cv2.GaussianBlur(rng.random((640, 640)).astype(np.float32), (0, 0), 4)
    cells = noise > np.median(noise)
    made: list[int] = []
    masks = Masks(lambda index: made.append(index) or Mask(cells))  # type: ignore[func-returns-value]
    geometry = Geometry(1920, 1920, 1 / 3, 1 / 3, 0, 0)

    shapes = outlines([(masks, index, geometry) for index in range(300)], form)  # type: ignore[arg-type]

    there = [shape is not None for shape in shapes]
    assert len(shapes) == 300
    assert there == sorted(there, reverse=True)
    assert 0 < sum(there) < 300
    assert len(made) <= sum(there) + 1
    assert len(msgspec.json.encode([shape for shape in shapes if shape])) < MAX_BYTES * 1.1


def test_a_result_looks_at_a_bounded_number_of_cells() -> None:
    cells = np.zeros((1024, 1024), dtype=np.bool_)
    masks = Masks(lambda index: Mask(cells))

    made = outlines([(masks, index, plain(cells)) for index in range(100)], "polygon")

    assert len(made) == 100
    assert MAX_CELLS // cells.size < 100


def test_a_corner_in_json_is_no_longer_than_is_counted() -> None:
    corners = tuple((1000.1 + index, 9999.9 - index) for index in range(100))

    assert len(msgspec.json.encode(corners)) <= CORNER_BYTES * 100 + len("[]")
