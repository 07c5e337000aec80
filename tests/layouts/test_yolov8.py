"""yolov8 held against OpenCV's class-aware NMS, and its suppression against what greedy suppression promises."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse
from gateway.layouts import Detections, Head, named
from gateway.layouts.binding import read
from gateway.layouts.boxes import iou_matrix

CONFIDENCE = 0.25


def decode_yolov8(
    output: NDArray[Any], confidence: float, iou: float, max_detections: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boxes, scores and classes of one head."""
    head = Head(thresholds=confidence, iou_threshold=iou, max_detections=max_detections)
    found = named("yolov8").decode({"output": output}, head)
    assert isinstance(found, Detections)
    return found.boxes, found.scores, found.class_ids


def random_head(seed: int, anchors: int, classes: int, *, spread: float = 640, grid: float = 0) -> NDArray[np.float32]:
    """A head of boxes in clusters; `grid` rounds positions and scores, so that many of them tie."""
    rng = np.random.default_rng(seed)
    head = np.zeros((4 + classes, anchors), dtype=np.float32)
    middles = rng.uniform(0, spread, (2, max(1, anchors // 8)))
    head[:2] = middles[:, rng.integers(0, middles.shape[1], anchors)] + rng.normal(0, 6, (2, anchors))
    head[2:4] = rng.uniform(20, 80, (2, anchors))
    head[4:] = rng.uniform(0, 1, (classes, anchors)) ** 2
    if grid:
        head[:4] = np.round(head[:4] / grid) * grid
        head[2:4] = np.maximum(head[2:4], grid)
        head[4:] = np.round(head[4:], 1)
    return head


def corners(head: NDArray[np.float32]) -> NDArray[np.float32]:
    """The boxes (N, 4) of a head as [x1, y1, x2, y2]."""
    half = head[2:4] / 2
    boxes: NDArray[np.float32] = np.concatenate((head[:2] - half, head[:2] + half)).T
    return boxes


def opencv_detections(head: NDArray[np.float32], iou: float) -> list[tuple[float, ...]]:
    """The same by OpenCV: (score, class, x1, y1, x2, y2), sorted."""
    scores, class_ids, boxes = head[4:].max(axis=0), head[4:].argmax(axis=0), corners(head)
    sized = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    kept = cv2.dnn.NMSBoxesBatched(sized.tolist(), scores.tolist(), class_ids.tolist(), CONFIDENCE, iou)
    return sorted((scores[index], class_ids[index], *boxes[index]) for index in np.array(kept, dtype=int))


def our_detections(head: NDArray[np.float32], iou: float) -> list[tuple[float, ...]]:
    """(score, class, x1, y1, x2, y2), sorted."""
    found = decode_yolov8(head, CONFIDENCE, iou, max_detections=10_000)
    return sorted((score, class_id, *box) for box, score, class_id in zip(*found, strict=True))


def no_overlap_at(head: NDArray[np.float32], threshold: float) -> bool:
    """False where rounding alone may decide: some IoU lies within 1e-5 of the threshold."""
    boxes = corners(head)
    return not bool((np.abs(iou_matrix(boxes, boxes) - threshold) < 1e-5).any())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("anchors", "classes"), [(1, 1), (40, 1), (300, 3), (900, 80)])
def test_same_detections_as_opencv(seed: int, anchors: int, classes: int) -> None:
    head = random_head(seed, anchors, classes)
    threshold = next(value for value in np.arange(0.45, 0.46, 1e-4) if no_overlap_at(head, value))

    assert our_detections(head, threshold) == opencv_detections(head, threshold)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), anchors=st.integers(1, 120), classes=st.integers(1, 4))
def test_ties_are_decided_as_in_opencv(seed: int, anchors: int, classes: int) -> None:
    head = random_head(seed, anchors, classes, spread=100, grid=8)
    assume(no_overlap_at(head, 0.47))

    assert our_detections(head, 0.47) == opencv_detections(head, 0.47)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    anchors=st.integers(1, 600),
    classes=st.integers(1, 4),
    iou=st.floats(0.05, 0.95),
    grid=st.sampled_from([0, 8]),
)
def test_what_greedy_suppression_promises(seed: int, anchors: int, classes: int, iou: float, grid: float) -> None:
    head = random_head(seed, anchors, classes, spread=200, grid=grid)
    boxes, scores, class_ids = decode_yolov8(head, CONFIDENCE, iou, max_detections=10_000)

    same_class = class_ids[:, None] == class_ids
    overlap = iou_matrix(boxes, boxes) * same_class
    np.fill_diagonal(overlap, 0)
    assert not (overlap > iou).any(), "two kept boxes of one class overlap"
    assert (np.diff(scores) <= 0).all(), "not best first"
    assert (scores > CONFIDENCE).all()

    every_score, every_class = head[4:].max(axis=0), head[4:].argmax(axis=0)
    every_box = corners(head)
    for index in np.flatnonzero(every_score > CONFIDENCE):
        better = (class_ids == every_class[index]) & (scores >= every_score[index])
        covered = iou_matrix(every_box[index : index + 1], boxes[better]) > iou
        itself = (boxes[better] == every_box[index]).all(axis=1)
        assert covered.any() or itself.any(), "a box was dropped that no better one covers"


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), anchors=st.integers(1, 300), iou=st.floats(0.1, 0.9))
def test_suppressing_again_changes_nothing(seed: int, anchors: int, iou: float) -> None:
    boxes, scores, class_ids = decode_yolov8(random_head(seed, anchors, 3, grid=8), CONFIDENCE, iou, 10_000)
    assume(len(boxes))
    again = np.zeros((7, len(boxes)), dtype=np.float32)
    again[:4] = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1).T
    again[4 + class_ids, np.arange(len(boxes))] = scores

    second_boxes, second_scores, second_classes = decode_yolov8(again, CONFIDENCE, iou, 10_000)

    np.testing.assert_allclose(second_boxes, boxes, atol=1e-3)
    np.testing.assert_array_equal(second_scores, scores)
    np.testing.assert_array_equal(second_classes, class_ids)


def test_the_limit_keeps_the_best() -> None:
    head = random_head(5, 2000, 3)
    everything = decode_yolov8(head, CONFIDENCE, 0.5, 10_000)
    best = decode_yolov8(head, CONFIDENCE, 0.5, 7)

    for few, many in zip(best, everything, strict=True):
        np.testing.assert_array_equal(few, many[:7])


def test_the_limit_of_candidates_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    head = random_head(6, 3000, 2, grid=8)
    everything = decode_yolov8(head, CONFIDENCE, 0.5, 20)
    monkeypatch.setattr("gateway.layouts.boxes.MAX_CANDIDATES", 500)
    limited = decode_yolov8(head, CONFIDENCE, 0.5, 20)

    for few, many in zip(limited, everything, strict=True):
        np.testing.assert_array_equal(few, many)


def test_nothing_found_has_the_shapes_of_nothing() -> None:
    boxes, scores, class_ids = decode_yolov8(np.zeros((7, 30), np.float32), CONFIDENCE, 0.5, 300)

    assert (boxes.shape, scores.shape, class_ids.shape) == ((0, 4), (0,), (0,))
    assert boxes.dtype == np.float32


def test_half_precision_is_read_as_it_is() -> None:
    head = random_head(7, 300, 3).astype(np.float16)

    for half, single in zip(
        decode_yolov8(head, CONFIDENCE, 0.5, 300),
        decode_yolov8(head.astype(np.float32), CONFIDENCE, 0.5, 300),
        strict=True,
    ):
        np.testing.assert_array_equal(half, single)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 3, 4, 6])
def test_values_that_are_not_finite_are_refused(value: float, row: int) -> None:
    head = random_head(8, 50, 3)
    head[row, 17] = value

    with pytest.raises(BackendInvalidResponse, match="not finite"):
        decode_yolov8(head, CONFIDENCE, 0.5, 300)


def test_boxes_beyond_all_measure_are_refused_without_a_warning() -> None:
    head = random_head(9, 50, 3)
    head[2, :] = np.finfo(np.float32).max
    head[0, :] = np.finfo(np.float32).max

    with pytest.raises(BackendInvalidResponse):
        decode_yolov8(head, 0.0, 0.5, 300)


@pytest.mark.parametrize("shape", [(), (7,), (4, 10), (7, 0), (1, 7, 10)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendInvalidResponse, match=r"yolov8: output \[4\+C, N\]"):
        read(named("yolov8"), {"output": np.zeros(shape, np.float32)}, Head())


def test_classes_have_their_own_thresholds() -> None:
    head = np.zeros((7, 4), np.float32)
    head[:4] = [[50, 150, 250, 350], [50, 50, 50, 50], [20] * 4, [20] * 4]
    head[4:] = [[0.6, 0.4, 0.5, 0.3], [0, 0, 0, 0.35], [0, 0, 0, 0]]
    thresholds = np.array([0.5, 0.3, 0.9], np.float32)

    found = read(named("yolov8"), {"output": head}, Head(classes=3, thresholds=thresholds))

    # The third scores as much as its threshold, which is not above it; the fourth is of its best class only.
    assert isinstance(found, Detections)
    assert found.class_ids.tolist() == [0, 1]
    assert found.boxes[:, 0].tolist() == [40, 340]


def test_a_class_without_a_label_has_the_lowest_threshold() -> None:
    head = Head(thresholds=np.array([0.5, 0.3], np.float32))

    np.testing.assert_allclose(head.threshold_of(np.array([0, 1, 2, 70])), [0.5, 0.3, 0.3, 0.3])


def test_scores_above_one_are_refused() -> None:
    with pytest.raises(BackendInvalidResponse, match="more than 1"):
        decode_yolov8(random_head(3, 50, 3) * 8, CONFIDENCE, 0.5, 300)


def test_iou_of_known_boxes() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0], [-1e38, -1e38, 1e38, 1e38]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 0, 0]], np.float32)

    np.testing.assert_allclose(iou_matrix(a, b), [[1.0, 1 / 3, 0.0, 0.0], [0.0] * 4, [0.0] * 4], atol=1e-6)
    assert iou_matrix(a[:0], b).shape == (0, 4)
