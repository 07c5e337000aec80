"""Turns the detector's output into boxes, in plain numpy: for validation during training and for the golden files."""

from dataclasses import dataclass

import numpy as np
import recipe
from dataset import Letterbox
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Detection:
    """One predicted or true object; `bbox` is x1, y1, x2, y2. The truth has confidence 1."""

    class_id: int
    confidence: float
    bbox: tuple[float, float, float, float]


def detections(
    output: Array,
    box: Letterbox,
    size: tuple[int, int],
    confidence: float = recipe.CONFIDENCE_THRESHOLD,
    iou: float = recipe.IOU_THRESHOLD,
) -> list[Detection]:
    """Decodes one image's (4 + classes, anchors) output into boxes in pixels of the original picture."""
    scores = output[4:].max(axis=0)
    keep = scores > confidence
    classes, scores, cxcywh = output[4:, keep].argmax(axis=0), scores[keep], output[:4, keep].T
    corners = np.concatenate([cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], axis=1)
    chosen = suppress(corners, scores, classes, iou)[: recipe.MAX_DETECTIONS]
    offset = np.array([box.left, box.top] * 2, np.float32)
    limit = np.array(size * 2, np.float32)
    pixels = np.clip((corners[chosen] - offset) / box.scale, 0, limit)
    return [
        Detection(int(classes[i]), float(scores[i]), (float(x1), float(y1), float(x2), float(y2)))
        for i, (x1, y1, x2, y2) in zip(chosen, pixels, strict=True)
    ]


def suppress(boxes: Array, scores: Array, classes: NDArray[np.int64], iou: float) -> list[int]:
    """Class-aware non-maximum suppression; the indices that stay, best first."""
    order = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        overlap = shared / (areas[best] + areas[rest] - shared + 1e-9)
        order = rest[(overlap <= iou) | (classes[rest] != classes[best])]
    return kept
