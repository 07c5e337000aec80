"""Post-processing written once more, as plainly as possible: one box after the other, in Python's own numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.layouts import Detections, Head, named
from gateway.layouts.binding import read

Box = tuple[float, float, float, float]
Found = tuple[float, int, Box]
"""Score, class, box."""


def from_centre(cx: float, cy: float, w: float, h: float) -> Box:
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)


def iou(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def nms(found: Iterable[Found], threshold: float) -> list[Found]:
    kept: list[Found] = []
    for one in sorted(found, key=lambda each: -each[0]):
        if all(other[1] != one[1] or iou(other[2], one[2]) <= threshold for other in kept):
            kept.append(one)
    return kept


def rounding_decides(found: Iterable[Found], threshold: float = 1.0) -> bool:
    """Whether two scores are so close, or an overlap so close to the threshold, that single precision may differ."""
    order = sorted(found, key=lambda each: -each[0])
    if any(one[0] - other[0] < 1e-6 for one, other in itertools.pairwise(order)):
        return True
    same = ((a, b) for a, b in itertools.combinations(order, 2) if threshold < 1 and a[1] == b[1])
    return any(abs(iou(a[2], b[2]) - threshold) < 1e-5 for a, b in same)


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-np.float64(value))))


def softmax(values: Sequence[float]) -> list[float]:
    powers = [float(np.exp(np.float64(value))) for value in values]
    return [power / sum(powers) for power in powers]


def decoded(name: str, head: Head, **outputs: NDArray[Any]) -> Detections:
    """What the layout says, of arrays that nobody may write to."""
    for array in outputs.values():
        array.setflags(write=False)
    found = read(named(name), outputs, head)
    assert isinstance(found, Detections)
    assert found.boxes.dtype == np.float32
    assert found.scores.dtype == np.float32
    assert (np.diff(found.scores) <= 0).all(), "not best first"
    return found


def assert_same(found: Detections, expected: Iterable[Found], tolerance: float = 1e-3) -> None:
    """Both have the same objects, in the order of their scores."""
    order = sorted(expected, key=lambda each: -each[0])
    assert found.class_ids.tolist() == [class_id for _, class_id, _ in order]
    np.testing.assert_allclose(found.scores, [score for score, _, _ in order], atol=1e-5)
    np.testing.assert_allclose(found.boxes, np.reshape([box for _, _, box in order], (-1, 4)), atol=tolerance)


def thresholded(found: Iterable[Found], least: Callable[[int], float]) -> list[Found]:
    return [each for each in found if each[0] > least(each[1])]
