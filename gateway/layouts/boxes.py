"""Output tensors into detections: pure numpy, shared by all variants and models.

Boxes are [x1, y1, x2, y2] in pixels of the model's input.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

MAX_CANDIDATES = 30_000
"""The best that many enter suppression, so that a model which fires everywhere costs a bounded time."""

BLOCK = 256
"""Candidates compared at once: one matrix of overlaps that stays in the processor's cache."""


def decode_yolov8(
    output: NDArray[Any], confidence_threshold: float, iou_threshold: float, max_detections: int
) -> tuple[Floats, Floats, Indices]:
    """Boxes (K, 4), scores (K,) and class ids (K,), best first, of one YOLOv8 head (4 + classes, anchors).

    Raises BackendInvalidResponse for another shape and for values that are not finite.
    """
    if output.ndim != 2 or output.shape[0] < 5 or output.shape[1] < 1:
        raise BackendInvalidResponse(
            f"a YOLOv8 output has the shape (4 + classes, anchors), not {output.shape}", where="detections"
        )
    head = _finite(output)
    scores = head[4:].max(axis=0)
    candidates = np.flatnonzero(scores > confidence_threshold)
    candidates = candidates[_best_first(scores[candidates], MAX_CANDIDATES)]
    class_ids = head[4:, candidates].argmax(axis=0)
    boxes = _corners(head[:4, candidates])
    kept = _suppress(boxes, class_ids, iou_threshold, max_detections)
    return boxes[kept], scores[candidates[kept]], class_ids[kept]


def decode_classification(
    logits: NDArray[Any], activation: Literal["softmax", "sigmoid", "none"], top_k: int, threshold: float
) -> tuple[Indices, Floats]:
    """Class ids (K,) and scores (K,), best first, of one vector (classes,); only scores above the threshold.

    Raises BackendInvalidResponse for another shape and for values that are not finite.
    """
    if logits.ndim != 1 or not logits.size:
        raise BackendInvalidResponse(
            f"a classification output has the shape (classes,), not {logits.shape}", where="detections"
        )
    values = _finite(logits)
    if activation == "softmax":
        powers = np.exp(values.astype(np.float64) - values.max())
        values = (powers / powers.sum()).astype(np.float32)
    elif activation == "sigmoid":
        values = 0.5 * (1.0 + np.tanh(0.5 * values))  # 1 / (1 + exp(-x)), which would overflow
    class_ids = _best_first(values, top_k)
    class_ids = class_ids[values[class_ids] > threshold]
    return class_ids, values[class_ids]


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


def _finite(values: NDArray[Any]) -> Floats:
    """The values as float32; raises BackendInvalidResponse when one is NaN or infinite."""
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise BackendInvalidResponse(
            "the output has values that are not finite",
            where="detections",
            fix="Check the model's weights and precision: NaN often means an overflow in FP16",
        )
    return values


def _best_first(scores: Floats, limit: int) -> Indices:
    """The indices of the highest scores, at most `limit`; equal scores in their order."""
    if scores.size > limit:
        # A partition alone would choose freely among those that tie with the last one.
        last = np.partition(scores, -limit)[-limit]
        above = np.flatnonzero(scores > last)
        chosen = np.sort(np.concatenate((above, np.flatnonzero(scores == last)[: limit - above.size])))
        return chosen[np.argsort(-scores[chosen], kind="stable")]
    return np.argsort(-scores, kind="stable")


def _corners(centred: Floats) -> Floats:
    """Boxes (K, 4) from (4, K) rows of centre x, centre y, width and height."""
    centre, half = centred[:2], centred[2:] * np.float32(0.5)
    with np.errstate(over="ignore"):
        boxes = np.concatenate((centre - half, centre + half)).T
    return _finite(boxes)


def _suppress(boxes: Floats, class_ids: Indices, iou_threshold: float, limit: int) -> Indices:
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
