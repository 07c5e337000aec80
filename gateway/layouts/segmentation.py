"""Detectors that also say which pixels belong to each object: the YOLO family's -seg models.

Each object comes with coefficients; its mask is the sum of the prototypes weighted with them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gateway.layouts.base import Detections, Floats, Head, Indices, Mask, Masks, Outputs, layout
from gateway.layouts.boxes import by_best_class, candidates_of, corners, finite, suppressed, whole_numbers

COEFFICIENTS = 32
"""How many every published model of the family has."""

MAX_CELLS_PER_SIDE = 1024
"""A mask has a cell for each pixel of the input up to this many; then cells grow."""

_PROTOTYPES = (COEFFICIENTS, "mask_height", "mask_width")


@layout(
    "yolov8-seg",
    task="instance-segmentation",
    outputs={"output": ("4+C+32", "N"), "prototypes": _PROTOTYPES},
)
def yolov8_seg(outputs: Outputs, head: Head) -> Detections:
    """Centre x, y, width, height, one score a class, 32 coefficients; prototypes: YOLOv8-seg, v9, 11, 12."""
    output = finite(outputs["output"])
    chosen, class_ids, scores = by_best_class(output[4:-COEFFICIENTS], head)
    found, kept = suppressed(corners(output[:4, chosen]), scores, class_ids, head)
    return with_masks(found, output[-COEFFICIENTS:, chosen[kept]].T, finite(outputs["prototypes"]), head)


@layout(
    "end2end-seg",
    task="instance-segmentation",
    outputs={"output": ("N?", 6 + COEFFICIENTS), "prototypes": _PROTOTYPES},
)
def end2end_seg(outputs: Outputs, head: Head) -> Detections:
    """Rows of x1, y1, x2, y2, score, class, 32 coefficients, without overlaps; prototypes: YOLO26-seg."""
    rows = outputs["output"]
    # Only rows that count have to make sense: the tool fills up with a score of 0 and leaves the rest to chance.
    rows = finite(rows[np.flatnonzero(finite(rows[:, 4]) > head.least_threshold)])
    class_ids = whole_numbers(rows[:, 5], "class", head.classes)
    chosen = candidates_of(rows[:, 4], class_ids, head)[: head.max_detections]
    found = Detections(rows[chosen, :4], rows[chosen, 4], class_ids[chosen])
    return with_masks(found, rows[chosen, 6:], finite(outputs["prototypes"]), head)


def with_masks(found: Detections, coefficients: Floats, prototypes: Floats, head: Head) -> Detections:
    """The objects with their masks: coefficients (K, P) and prototypes (P, h, w), which span the model's input."""

    def mask(index: int) -> Mask:
        return _mask(found.boxes[index], coefficients[index], prototypes, head)

    return replace(found, masks=Masks(mask))


def _mask(box: Floats, coefficients: Floats, prototypes: Floats, head: Head) -> Mask:
    """The pixels of the input inside the box where the weighted prototypes, interpolated, are above 0.

    Above 0 is above 0.5 after a sigmoid. Only the prototypes under the box are read.
    """
    # Floats of a hostile model may lie anywhere: clip before they become sizes. The edges are those of the family's own
    # code, which keeps the pixels x1 <= x < x2.
    x1, y1, x2, y2 = (math.ceil(edge) for edge in box.clip(0, (head.width, head.height) * 2).tolist())
    if x1 >= x2 or y1 >= y2:
        return Mask(np.zeros((0, 0), dtype=np.bool_))
    columns, cell_width = _centres(x1, x2)
    rows, cell_height = _centres(y1, y2)
    left, right, across = _neighbours(columns, prototypes.shape[2], head.width)
    upper, lower, down = _neighbours(rows, prototypes.shape[1], head.height)
    part = prototypes[:, upper[0] : lower[-1] + 1, left[0] : right[-1] + 1]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite or NaN: filled or not
        weighted = np.tensordot(coefficients, part, axes=1)
        left, right = left - left[0], right - left[0]
        upper, lower = upper - upper[0], lower - upper[0]
        wide = weighted[:, left] * (1 - across) + weighted[:, right] * across
        full = wide[upper] * (1 - down[:, None]) + wide[lower] * down[:, None]
    return Mask(full > 0, left=x1, top=y1, cell_width=cell_width, cell_height=cell_height)


def _centres(start: int, end: int) -> tuple[Floats, float]:
    """Where the middles of the cells between two edges lie, and how wide a cell is, in pixels."""
    count = min(end - start, MAX_CELLS_PER_SIDE)
    size = (end - start) / count
    return (start + (np.arange(count) + 0.5) * size).astype(np.float32), size


def _neighbours(places: Floats, count: int, size: int) -> tuple[Indices, Indices, Floats]:
    """For places in the input the two prototype cells around each, and how far from the first to the second."""
    exact = (places * (count / size) - 0.5).clip(0, count - 1)
    first: Indices = exact.astype(np.intp)
    return first, np.minimum(first + 1, count - 1), (exact - first).astype(np.float32)
