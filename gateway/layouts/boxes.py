"""Arithmetic of boxes: overlap, suppression, finite values; pure numpy, shared by all layouts.

Boxes are [x1, y1, x2, y2] in pixels of the model's input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse
from gateway.layouts.base import BoxFormat, BoxUnits, Detections, Floats, Head, Indices

MAX_CANDIDATES = 30_000
"""The best that many enter suppression, so that a model which fires everywhere costs a bounded time."""

MAX_CLASSES = 100_000
"""No model has that many: a class beyond it is something else."""

MOST_CONFIDENT = 1.001
"""A probability, and what rounding in half precision may add to it."""

BLOCK = 256
"""Candidates compared at once: one matrix of overlaps that stays in the processor's cache."""


class NotFinite(BackendInvalidResponse):
    """Values that a layout needs are NaN or infinite."""


def candidates_of(scores: Floats, class_ids: Indices, head: Head) -> Indices:
    """Which of the scores (N,) are above the threshold of their class, best first, at most MAX_CANDIDATES."""
    above = np.flatnonzero(scores > head.threshold_of(class_ids))
    order = above[best_first(scores[above], MAX_CANDIDATES)]
    if order.size and scores[order[0]] > MOST_CONFIDENT:
        raise BackendInvalidResponse(
            f"the output has a confidence of {scores[order[0]]:.6g}, which is more than 1",
            fix="Set inference.activation to sigmoid or softmax where the layout has it, or correct inference.output",
        )
    return order


def by_best_class(scores: Floats, head: Head) -> tuple[Indices, Indices, Floats]:
    """The candidates (K,) of scores (classes, N) when a box counts for its best class only, best first.

    Which of the N they are, their classes and their scores.
    """
    best = scores.max(axis=0)
    likely = np.flatnonzero(best > head.least_threshold)
    # The class of the few that may count: that of all N would take longer than all the rest.
    class_ids = scores[:, likely].argmax(axis=0)
    chosen = candidates_of(best[likely], class_ids, head)
    return likely[chosen], class_ids[chosen], best[likely[chosen]]


def by_every_class(scores: Floats, head: Head) -> tuple[Indices, Indices, Floats]:
    """The same of scores (N, classes) when a box counts for every class whose threshold it is above."""
    rows, class_ids = np.divmod(np.flatnonzero(scores > head.least_threshold), scores.shape[1])
    above = scores[rows, class_ids]
    chosen = candidates_of(above, class_ids, head)
    return rows[chosen], class_ids[chosen], above[chosen]


def in_pixels(boxes: Floats, head: Head, box_format: BoxFormat, box_units: BoxUnits) -> Floats:
    """Boxes (K, 4) as [x1, y1, x2, y2] in pixels; what the head says of them comes before what the layout says."""
    match head.box_format or box_format:
        case "cxcywh":
            boxes = corners(boxes.T)
        case "yxyx":
            boxes = boxes[:, [1, 0, 3, 2]]
    if (head.box_units or box_units) == "normalized":
        with np.errstate(over="ignore"):
            boxes = boxes * np.array([head.width, head.height] * 2, dtype=np.float32)
    return finite(boxes)


def without_background(scores: Floats, background: str) -> Floats:
    """The scores (N, classes) of (N, classes + 1) that have one for the background, first or last."""
    return scores[:, :-1] if background == "last" else scores[:, 1:]


def whole_numbers(values: NDArray[Any], role: str, count: int, first: int = 0) -> Indices:
    """Indices from 0 on of `count` numbers that begin with `first`, which a model may give as floats.

    With `count` 0 any number up to MAX_CLASSES will do. Raises BackendInvalidResponse for any other number.
    """
    numbers = values.astype(np.float64) - first
    wrong = numbers[~((numbers >= 0) & (numbers < (count or MAX_CLASSES)) & (np.floor(numbers) == numbers))]
    if wrong.size:
        expected = f"{first} to {first + count - 1}" if count else f"from {first} on"
        raise BackendInvalidResponse(
            f"the {role} {wrong[0] + first:.6g} is not one of the whole numbers {expected}", where="layouts"
        )
    return numbers.astype(np.intp)


def suppressed(boxes: Floats, scores: Floats, class_ids: Indices, head: Head) -> tuple[Detections, Indices]:
    """What is left after NMS of boxes that come best first, and which of them these are."""
    kept = suppress(boxes, class_ids, head.iou_threshold, head.max_detections)
    return Detections(boxes[kept], scores[kept], class_ids[kept]), kept


def iou_matrix(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Intersection over union (N, M) of the boxes a (N, 4) and b (M, 4); 0 where both are empty."""
    # float64, because the areas of absurd but finite boxes overflow float32.
    ax1, ay1, ax2, ay2 = np.asarray(a, dtype=np.float64).reshape(-1, 4).T[..., None]
    bx1, by1, bx2, by2 = np.asarray(b, dtype=np.float64).reshape(-1, 4).T
    inner = np.minimum(ax2, bx2)
    inner -= np.maximum(ax1, bx1)
    inner.clip(0, out=inner)
    height = np.minimum(ay2, by2)
    height -= np.maximum(ay1, by1)
    inner *= height.clip(0, out=height)
    union = (ax2 - ax1).clip(0) * (ay2 - ay1).clip(0) + (bx2 - bx1).clip(0) * (by2 - by1).clip(0)
    union -= inner
    iou: NDArray[np.float64] = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    return iou.astype(np.float32)


def finite(values: NDArray[Any]) -> Floats:
    """The values as float32; raises NotFinite when one is NaN or infinite."""
    if values.dtype != np.float32:
        with np.errstate(over="ignore"):  # of FP64
            values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise NotFinite(
            "the output has values that are not finite",
            where="layouts",
            fix="Check the model's weights and precision: NaN often means an overflow in FP16",
        )
    return values


def best_first(scores: Floats, limit: int) -> Indices:
    """The indices of the highest scores, at most `limit`; equal scores in their order."""
    if scores.size > limit:
        # A partition alone would choose freely among those that tie with the last one.
        last = np.partition(scores, -limit)[-limit]
        above = np.flatnonzero(scores > last)
        chosen = np.sort(np.concatenate((above, np.flatnonzero(scores == last)[: limit - above.size])))
        return chosen[np.argsort(-scores[chosen], kind="stable")]
    return np.argsort(-scores, kind="stable")


def corners(centred: Floats) -> Floats:
    """Boxes (K, 4) from (4, K) rows of centre x, centre y, width and height."""
    centre, half = centred[:2], centred[2:] * np.float32(0.5)
    with np.errstate(over="ignore"):
        boxes = np.concatenate((centre - half, centre + half)).T
    return finite(boxes)


def suppress(boxes: Floats, class_ids: Indices, iou_threshold: float, limit: int) -> Indices:
    """The first `limit` boxes that no better kept box of their class overlaps by more than the threshold.

    Boxes come best first, so the result of greedy suppression is known as soon as `limit` are kept.
    """
    kept: Indices = np.empty(0, dtype=np.intp)
    for start in range(0, len(boxes), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(boxes)))
        block = block[~_clash(boxes, class_ids, block, kept, iou_threshold).any(axis=1)]
        clash = _clash(boxes, class_ids, block, block, iou_threshold)
        alive = np.ones(len(block), dtype=np.bool_)
        for index in range(len(block)):
            if alive[index]:
                alive[index + 1 :] &= ~clash[index, index + 1 :]
        kept = np.concatenate((kept, block[alive]))
        if len(kept) >= limit:
            break
    return kept[:limit]


def _clash(
    boxes: Floats, class_ids: Indices, rows: Indices, columns: Indices, iou_threshold: float
) -> NDArray[np.bool_]:
    """Where a row's box and a column's box are of one class and overlap by more than the threshold."""
    clash: NDArray[np.bool_] = iou_matrix(boxes[rows], boxes[columns]) > iou_threshold
    clash &= class_ids[rows][:, None] == class_ids[columns]
    return clash
