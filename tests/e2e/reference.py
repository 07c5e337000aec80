"""YOLOv8 post-processing by a public implementation: OpenCV's class-aware suppression on the decoded head."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.messages import Geometry
from gateway.models.inference_spec import InferenceSpec


def decode_with_opencv(
    output: NDArray[Any], spec: InferenceSpec, geometry: Geometry
) -> list[tuple[int, float, list[float]]]:
    """(class id, confidence, [x1, y1, x2, y2] in picture pixels), best first, of one head (4 + classes, anchors)."""
    rows = output.T
    classes = rows[:, 4:].argmax(axis=1)
    scores = rows[:, 4:].max(axis=1)
    corners = np.column_stack([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]])
    kept = cv2.dnn.NMSBoxesBatched(
        corners.tolist(), scores.tolist(), classes.tolist(), spec.confidence_threshold, spec.iou_threshold
    )
    found = []
    for index in sorted(np.ravel(kept), key=lambda i: -scores[i])[: spec.max_detections]:
        x, y, w, h = corners[index]
        box = np.array([x, y, x + w, y + h])
        box = (box - np.array([geometry.offset_x, geometry.offset_y] * 2)) / ([geometry.scale_x, geometry.scale_y] * 2)
        box = box.clip(0, [geometry.width, geometry.height] * 2)
        found.append((int(classes[index]), float(scores[index]), box.tolist()))
    return found
