"""Transformers: a fixed number of queries that see different objects, so that nothing is suppressed."""

from __future__ import annotations

from dataclasses import replace

from gateway.layouts.base import BoxFormat, Detections, Floats, Head, Indices, Outputs, layout
from gateway.layouts.boxes import by_best_class, by_every_class, finite, in_pixels, without_background
from gateway.layouts.classes import activated

CENTRES: BoxFormat = "cxcywh"
BOXES = {"box_format": ("cxcywh", "xyxy", "yxyx"), "box_units": ("normalized", "pixels")}


@layout("detr", task="object-detection", outputs={"boxes": ("N", 4), "logits": ("N", "C+1")},
        settings={"activation": ("softmax", "sigmoid", "none"), "background": ("last", "first")} | BOXES)  # fmt: skip
def detr(outputs: Outputs, head: Head) -> Detections:
    """Boxes and logits, one logit for "no object": DETR, YOLOS and Table Transformer."""
    shares = activated(finite(outputs["logits"]), head.activation or "softmax")
    scores = without_background(shares, head.background or "last")
    return _best(outputs, head, *by_best_class(scores.T, head))


@layout("rt-detr", task="object-detection", outputs={"boxes": ("N", 4), "logits": ("N", "C")},
        settings={"activation": ("sigmoid", "softmax", "none")} | BOXES)  # fmt: skip
def rt_detr(outputs: Outputs, head: Head) -> Detections:
    """Boxes and logits without one for "no object": RT-DETR, D-FINE, RF-DETR, Deformable and Conditional DETR."""
    scores = activated(finite(outputs["logits"]), head.activation or "sigmoid")
    # A query may stand for several classes, but there are never more objects than queries.
    head = replace(head, max_detections=min(head.max_detections, len(scores)))
    return _best(outputs, head, *by_every_class(scores, head))


@layout("rtdetr-ultralytics", task="object-detection", outputs={"output": ("N", "4+C")},
        settings={"activation": ("none", "sigmoid", "softmax")} | BOXES)  # fmt: skip
def rtdetr_ultralytics(outputs: Outputs, head: Head) -> Detections:
    """Rows of centre x, y, width, height in fractions, then one score a class: RT-DETR of older Ultralytics."""
    rows = outputs["output"]
    scores = activated(finite(rows[:, 4:]), head.activation or "none")
    return _best({"boxes": rows[:, :4]}, head, *by_best_class(scores.T, head))


def _best(outputs: Outputs, head: Head, rows: Indices, class_ids: Indices, scores: Floats) -> Detections:
    best = slice(head.max_detections)
    found = in_pixels(finite(outputs["boxes"])[rows[best]], head, CENTRES, "normalized")
    return Detections(found, scores[best], class_ids[best])
