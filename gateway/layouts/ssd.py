"""Detectors with decoded boxes in one tensor and a score for every class in another, left to us to suppress."""

from __future__ import annotations

from gateway.layouts.base import BoxFormat, BoxUnits, Detections, Floats, Head, Outputs, layout
from gateway.layouts.boxes import by_every_class, finite, in_pixels, suppressed, without_background
from gateway.layouts.classes import activated

ACTIVATION = ("none", "softmax", "sigmoid")


@layout("ssd", task="object-detection", outputs={"boxes": ("N", 4), "scores": ("N", "C+1")},
        settings={"activation": ACTIVATION, "background": ("first", "last"),
                  "box_format": ("xyxy", "yxyx", "cxcywh"), "box_units": ("normalized", "pixels")})  # fmt: skip
def ssd(outputs: Outputs, head: Head) -> Detections:
    """Boxes in fractions; scores, one for the background: SSD of pytorch-ssd, jetson-inference, TensorFlow."""
    scores = activated(finite(outputs["scores"]), head.activation or "none")
    scores = without_background(scores, head.background or "first")
    return _of_every_class(outputs, scores, head, "xyxy", "normalized")


@layout("yolo-nas", task="object-detection", outputs={"boxes": ("N", 4), "scores": ("N", "C")},
        settings={"activation": ACTIVATION, "box_format": ("xyxy", "yxyx", "cxcywh"),
                  "box_units": ("pixels", "normalized")})  # fmt: skip
def yolo_nas(outputs: Outputs, head: Head) -> Detections:
    """Boxes in pixels and scores without one for the background: YOLO-NAS, and RetinaNet or EfficientDet before NMS."""
    scores = activated(finite(outputs["scores"]), head.activation or "none")
    return _of_every_class(outputs, scores, head, "xyxy", "pixels")


def _of_every_class(
    outputs: Outputs, scores: Floats, head: Head, box_format: BoxFormat, box_units: BoxUnits
) -> Detections:
    boxes = finite(outputs["boxes"])
    chosen, class_ids, scores = by_every_class(scores, head)
    return suppressed(in_pixels(boxes[chosen], head, box_format, box_units), scores, class_ids, head)[0]
