"""Masks held against a plain one-pixel-at-a-time version, and against real exports with Ultralytics' own masks."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse
from gateway.layouts import Detections, Head, named
from gateway.layouts.base import Mask
from gateway.layouts.binding import bind, read
from gateway.layouts.segmentation import MAX_CELLS_PER_SIDE, with_masks
from gateway.messages import TensorSpec

EXPORTS = sorted((Path(__file__).parent / "references").glob("*-seg*.npz"))


def detect(layout: str, output: NDArray[Any], prototypes: NDArray[Any], head: Head) -> Detections:
    seen = read(named(layout), {"output": output, "prototypes": prototypes}, head)
    assert isinstance(seen, Detections)
    return seen


def on_input(mask: Mask, height: int, width: int) -> NDArray[np.bool_]:
    """The mask, whose cells are pixels, on the whole input."""
    full = np.zeros((height, width), dtype=np.bool_)
    top, left = int(mask.top), int(mask.left)
    full[top : top + mask.cells.shape[0], left : left + mask.cells.shape[1]] = mask.cells
    return full


def mask_of(found: Detections, index: int) -> Mask:
    assert found.masks is not None
    return found.masks.of(index)


def plain_mask(
    box: list[float], coefficients: NDArray[Any], prototypes: NDArray[Any], height: int, width: int
) -> NDArray[np.float64]:
    """The interpolated sum of the prototypes at each pixel (h, w); NaN outside of the box."""
    weighted = np.einsum("p,phw->hw", coefficients.astype(np.float64), prototypes.astype(np.float64))
    found = np.full((height, width), np.nan)
    for y in range(height):
        for x in range(width):
            if box[0] <= x < box[2] and box[1] <= y < box[3]:
                at_y = min(max((y + 0.5) * weighted.shape[0] / height - 0.5, 0), weighted.shape[0] - 1)
                at_x = min(max((x + 0.5) * weighted.shape[1] / width - 0.5, 0), weighted.shape[1] - 1)
                upper, left = int(at_y), int(at_x)
                lower, right = min(upper + 1, weighted.shape[0] - 1), min(left + 1, weighted.shape[1] - 1)
                top = weighted[upper, left] * (1 - at_x + left) + weighted[upper, right] * (at_x - left)
                bottom = weighted[lower, left] * (1 - at_x + left) + weighted[lower, right] * (at_x - left)
                found[y, x] = top * (1 - at_y + upper) + bottom * (at_y - upper)
    return found


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_masks_are_those_of_the_plain_version(seed: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    (height, width), box = size, np.sort(rng.uniform(-5, 45, (2, 2)), axis=0).ravel().astype(np.float32)
    prototypes = rng.normal(0, 1, (32, *grid)).astype(np.float32)
    coefficients = rng.normal(0, 1, (1, 32)).astype(np.float32)
    one = Detections(box[None], np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.intp))

    found = with_masks(one, coefficients, prototypes, Head(height=height, width=width))

    expected = plain_mask(box.tolist(), coefficients[0], prototypes, height, width)
    differs = on_input(mask_of(found, 0), height, width) != (expected > 0)
    assert not (differs & ~(np.abs(expected) < 1e-4)).any()  # rounding alone decides so close to 0


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_same_objects_and_masks_as_the_tool_that_exported_the_model(path: Path) -> None:
    with np.load(path) as stored:
        height, width = stored["input_size"].tolist()
        head = Head(
            height=height,
            width=width,
            thresholds=float(stored["setting.confidence"]),
            iou_threshold=float(stored.get("setting.iou", 1.0)),  # a head that needs no suppression has none
        )
        for case in range(int(stored["cases"])):
            outputs = {stored[key].ndim: stored[key][0] for key in stored.files if key.startswith(f"{case}.output.")}
            found = detect(str(stored["layout"]), outputs[3], outputs[4], head)
            np.testing.assert_allclose(found.boxes, stored[f"{case}.answer.boxes"], atol=1e-3)
            np.testing.assert_allclose(found.scores, stored[f"{case}.answer.scores"], atol=1e-6)
            assert found.class_ids.tolist() == stored[f"{case}.answer.classes"].tolist()
            masks = np.unpackbits(stored[f"{case}.answer.masks"], axis=-1)[..., :width].astype(np.bool_)
            for index, mask in enumerate(masks):
                ours = on_input(mask_of(found, index), height, width)
                assert (ours & mask).sum() / (ours | mask).sum() > 0.999


def two_objects() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An object on the left and one on the right, of classes 0 and 2; the second prototype is the right half."""
    output = np.zeros((4 + 3 + 32, 5), dtype=np.float32)
    output[:4, 1], output[4, 1], output[7, 1] = (16, 16, 20, 20), 0.9, 1.0
    output[:4, 3], output[6, 3], output[8, 3] = (48, 32, 32, 64), 0.8, 1.0
    prototypes = np.full((32, 16, 16), -1.0, dtype=np.float32)
    prototypes[0], prototypes[1, :8] = 1.0, 1.0
    return output, prototypes


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_each_object_has_the_mask_of_its_own_coefficients(kind: type[np.floating[Any]]) -> None:
    output, prototypes = two_objects()

    found = detect("yolov8-seg", output.astype(kind), prototypes.astype(kind), Head(classes=3, height=64, width=64))

    assert found.class_ids.tolist() == [0, 2]
    left, right = (mask_of(found, index) for index in range(2))
    assert (left.left, left.top, left.cells.shape) == (6, 6, (20, 20))
    assert left.cells.all()
    assert (right.left, right.top, right.cells.shape) == (32, 0, (64, 32))
    assert right.cells[:32].all()
    assert not right.cells[32:].any()


def test_rows_that_are_already_sorted_out() -> None:
    output, prototypes = two_objects()
    rows = np.zeros((300, 38), dtype=np.float32)
    rows[:, 5] = -7.5  # what a tool leaves in rows without an object
    rows[0], rows[1] = [6, 6, 26, 26, 0.9, 0, *output[7:, 1]], [32, 0, 64, 64, 0.8, 2, *output[7:, 3]]

    found = detect("end2end-seg", rows, prototypes, Head(classes=3, height=64, width=64))

    assert found.boxes.tolist() == [[6, 6, 26, 26], [32, 0, 64, 64]]
    assert found.class_ids.tolist() == [0, 2]
    assert mask_of(found, 0).cells.all()
    assert mask_of(found, 1).cells.mean() == 0.5


def test_tensors_find_their_roles_by_shape() -> None:
    tensors = [TensorSpec("output0", "FP32", (-1, 39, 8400)), TensorSpec("output1", "FP32", (-1, 32, 160, 160))]

    bound = bind(named("yolov8-seg"), tensors, 3, {})

    assert bound is not None
    assert {role: output.tensor for role, output in bound.items()} == {"output": "output0", "prototypes": "output1"}


@pytest.mark.parametrize("role", ["output", "prototypes"])
def test_values_that_are_not_finite(role: str) -> None:
    output, prototypes = two_objects()
    (output if role == "output" else prototypes).flat[0] = np.nan

    with pytest.raises(BackendInvalidResponse, match="not finite"):
        detect("yolov8-seg", output, prototypes, Head(classes=3, height=64, width=64))


@pytest.mark.parametrize(
    "box", [(-1e30, -1e30, 1e30, 1e30), (100, 100, 200, 200), (-9, 3, -5, 6), (30, 30, 10, 10), (5, 5, 5, 5)]
)
def test_absurd_boxes_have_masks_within_the_input(box: tuple[float, ...]) -> None:
    one = Detections(np.array([box], dtype=np.float32), np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.intp))
    prototypes = np.full((32, 4, 4), 3e38, dtype=np.float32)

    mask = mask_of(with_masks(one, np.full((1, 32), 3e38, np.float32), prototypes, Head(height=64, width=48)), 0)

    rows, columns = mask.cells.shape
    assert 0 <= mask.left <= mask.left + columns <= 48
    assert 0 <= mask.top <= mask.top + rows <= 64


def test_a_huge_input_makes_larger_cells_and_not_more_memory() -> None:
    one = Detections(np.array([[0, 0, 8192, 8192]], np.float32), np.ones(1, np.float32), np.zeros(1, np.intp))
    found = with_masks(
        one, np.ones((1, 32), np.float32), np.ones((32, 16, 16), np.float32), Head(height=8192, width=8192)
    )

    mask = mask_of(found, 0)

    assert mask.cells.shape == (MAX_CELLS_PER_SIDE, MAX_CELLS_PER_SIDE)
    assert mask.cell_width * mask.cells.shape[1] == 8192


def test_300_masks_are_made_one_at_a_time() -> None:
    boxes = np.tile(np.array([[0, 0, 640, 640]], np.float32), (300, 1))
    many = Detections(boxes, np.ones(300, np.float32), np.zeros(300, np.intp))
    prototypes = np.ones((32, 160, 160), np.float32)
    tracemalloc.start()

    found = with_masks(many, np.ones((300, 32), np.float32), prototypes, Head(height=640, width=640))
    for index in range(0, 300, 100):
        assert mask_of(found, index).cells.all()

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000
