"""Detectors that have decided themselves: each row or entry is one object, and nothing is suppressed again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.layouts.base import BoxFormat, BoxUnits, Detections, Head, Outputs, layout
from gateway.layouts.boxes import candidates_of, finite, in_pixels, whole_numbers

CORNERS_FIRST = {"box_format": ("xyxy", "cxcywh", "yxyx"), "box_units": ("pixels", "normalized")}
CENTRES_FIRST = {"box_format": ("cxcywh", "xyxy", "yxyx"), "box_units": ("normalized", "pixels")}
SEPARATE: dict[str, tuple[int | str, ...]] = {"boxes": ("N?", 4), "scores": ("N?",), "labels": ("N?",)}


@layout("end2end", task="object-detection", outputs={"output": ("N?", 6)}, settings=CORNERS_FIRST)
def end2end(outputs: Outputs, head: Head) -> Detections:
    """Rows of x1, y1, x2, y2, score, class: YOLOv10, YOLO26, and what Ultralytics exports with nms=True."""
    rows = outputs["output"]
    return _decided(rows[:, :4], rows[:, 4], rows[:, 5], head)


@layout("yolov7-end2end", task="object-detection", outputs={"output": ("N?", 7)}, settings=CORNERS_FIRST)
def yolov7_end2end(outputs: Outputs, head: Head) -> Detections:
    """Rows of batch number, x1, y1, x2, y2, class, score: YOLOv7 exported with --end2end --max-wh."""
    rows = outputs["output"]
    # Such an output has no batch axis, so that one picture at a time is asked about.
    whole_numbers(rows[:, 0], "batch number", count=1)
    return _decided(rows[:, 1:5], rows[:, 6], rows[:, 5], head)


@layout("rtdetr-end2end", task="object-detection", outputs={"output": ("N?", 6)}, settings=CENTRES_FIRST)
def rtdetr_end2end(outputs: Outputs, head: Head) -> Detections:
    """Rows of centre x, y, width, height in fractions, score, class: RT-DETR of newer Ultralytics."""
    rows = outputs["output"]
    return _decided(rows[:, :4], rows[:, 4], rows[:, 5], head, box_format="cxcywh", box_units="normalized")


@layout("boxes", task="object-detection", outputs=SEPARATE,
        settings={"background": ("none", "first", "last")} | CORNERS_FIRST)  # fmt: skip
def boxes(outputs: Outputs, head: Head) -> Detections:
    """Boxes, scores and labels as three tensors: RT-DETR and D-FINE as their own tools export them."""
    return _separate(outputs, head, head.background == "first")


@layout("torchvision", task="object-detection", outputs=SEPARATE,
        settings={"background": ("first", "none", "last")} | CORNERS_FIRST)  # fmt: skip
def torchvision(outputs: Outputs, head: Head) -> Detections:
    """As boxes, but label 0 stands for the background: Faster R-CNN, SSD, RetinaNet, FCOS of torchvision."""
    return _separate(outputs, head, head.background in (None, "first"))


def _separate(outputs: Outputs, head: Head, background_first: bool) -> Detections:
    # No model reports the background: where it comes before the labels, 0 is a wrong label as well.
    first = 1 if background_first else 0
    return _decided(outputs["boxes"], outputs["scores"], outputs["labels"], head, first_class=first)


def _decided(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    classes: NDArray[Any],
    head: Head,
    box_format: BoxFormat = "xyxy",
    box_units: BoxUnits = "pixels",
    first_class: int = 0,
) -> Detections:
    """The best of boxes (N, 4), scores and classes (N,).

    Where fewer objects than rows were found, tools fill up with a score of 0 and leave the rest of the row to chance:
    only the rows that count have to make sense.
    """
    scores = finite(scores)
    likely = np.flatnonzero(scores > head.least_threshold)
    class_ids = whole_numbers(classes[likely], "class", head.classes, first_class)
    chosen = candidates_of(scores[likely], class_ids, head)[: head.max_detections]
    rows = likely[chosen]
    return Detections(in_pixels(finite(boxes[rows]), head, box_format, box_units), scores[rows], class_ids[chosen])
