"""The YOLO family: anchors of which many see the same object, left to us to suppress."""

from __future__ import annotations

import numpy as np

from gateway.errors import BackendInvalidResponse
from gateway.layouts.base import Detections, Floats, Head, Indices, Outputs, layout
from gateway.layouts.boxes import by_best_class, candidates_of, corners, finite, suppressed

STRIDES = (8, 16, 32, 64)
"""Pixels of the input from cell to cell of YOLOX's grids; the last one only in its P6 models."""


@layout("yolov8", task="object-detection", outputs={"output": ("4+C", "N")})
def yolov8(outputs: Outputs, head: Head) -> Detections:
    """Centre x, y, width, height, then one score a class, anchor by anchor: YOLOv8, v9, 11, 12 and YOLOv5u."""
    output = finite(outputs["output"])
    chosen, class_ids, scores = by_best_class(output[4:], head)
    return suppressed(corners(output[:4, chosen]), scores, class_ids, head)[0]


@layout("yolov5", task="object-detection", outputs={"output": ("N", "5+C")})
def yolov5(outputs: Outputs, head: Head) -> Detections:
    """Rows of centre x, y, width, height, objectness, one score a class: YOLOv5, v6, v7, and decoded YOLOX."""
    rows = finite(outputs["output"])
    chosen, class_ids, scores = _with_objectness(rows, head)
    return suppressed(corners(rows[chosen, :4].T), scores, class_ids, head)[0]


@layout("yolox", task="object-detection", outputs={"output": ("N", "5+C")})
def yolox(outputs: Outputs, head: Head) -> Detections:
    """Rows as of yolov5, in offsets and logarithms of cells of 8, 16 and 32 pixels: YOLOX by its own tool."""
    rows = finite(outputs["output"])
    grids = _grids(len(rows), head)
    chosen, class_ids, scores = _with_objectness(rows, head)
    centred = _from_cells(rows[chosen, :4], chosen, grids)
    return suppressed(corners(centred.T), scores, class_ids, head)[0]


def _with_objectness(rows: Floats, head: Head) -> tuple[Indices, Indices, Floats]:
    """As `by_best_class` of rows (N, 5 + classes): the confidence is the objectness times the class's score."""
    # No score is above 1, so a row whose objectness is too low needs no look at its classes.
    likely = np.flatnonzero(rows[:, 4] > head.least_threshold)
    scores = rows[likely, 5:]
    class_ids = scores.argmax(axis=1)
    with np.errstate(over="ignore"):  # what becomes infinite is refused as a confidence above 1
        best = scores[np.arange(len(likely)), class_ids] * rows[likely, 4]
    chosen = candidates_of(best, class_ids, head)
    return likely[chosen], class_ids[chosen], best[chosen]


def _grids(count: int, head: Head) -> list[tuple[int, int, int]]:
    """Stride, width and cells of each grid; raises BackendInvalidResponse when the input has another count of cells."""
    grids = [(stride, head.width // stride, head.width // stride * (head.height // stride)) for stride in STRIDES]
    usual = sum(cells for _, _, cells in grids[:3])
    with_p6 = sum(cells for _, _, cells in grids)
    if count not in (usual, with_p6):
        raise BackendInvalidResponse(
            f"a yolox output for an input of {head.width}x{head.height} pixels has {usual} rows, or {with_p6} with "
            f"stride 64, this one has {count}",
            where="layouts",
            fix="Check preprocessing.resize and inference.output; exported with --decode_in_inference, it is yolov5",
        )
    return grids[:3] if count == usual else grids


def _from_cells(raw: Floats, rows: Indices, grids: list[tuple[int, int, int]]) -> Floats:
    """Centre, width and height (K, 4) in pixels of what was said relative to the cells with these row numbers."""
    strides, widths, cells = np.array(grids, dtype=np.intp).T
    ends = np.cumsum(cells)
    level = np.searchsorted(ends, rows, side="right")
    y, x = np.divmod(rows - (ends - cells)[level], widths[level])
    with np.errstate(over="ignore"):
        units = np.concatenate((raw[:, :2] + np.stack((x, y), axis=1), np.exp(raw[:, 2:])), axis=1)
        pixels: Floats = (units * strides[level, None]).astype(np.float32)
    return pixels
