"""Figures of merit, as pure functions over lists of truths and predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from decode import Detection


@dataclass(frozen=True)
class ClassFigures:
    """How well one class is found; recall and precision count everything above the threshold that was applied."""

    average_precision: float
    recall: float
    precision: float
    objects: int


@dataclass(frozen=True)
class DetectionFigures:
    """The mean over the classes and each class by itself."""

    map50: float
    classes: dict[str, ClassFigures]


def detection_figures(
    truths: Sequence[Sequence[Detection]],
    predictions: Sequence[Sequence[Detection]],
    labels: Sequence[str],
    iou: float = 0.5,
) -> DetectionFigures:
    """Average precision at one IoU (area under the whole precision-recall curve), per class and in the mean.

    Predictions are matched over all pictures in falling confidence, each to that free truth of its class which it
    overlaps most.
    """
    classes = {label: _class_figures(truths, predictions, i, iou) for i, label in enumerate(labels)}
    present = [figures.average_precision for figures in classes.values() if figures.objects]
    return DetectionFigures(float(np.mean(present)) if present else 0.0, classes)


def accuracy(truths: Sequence[int], predictions: Sequence[int]) -> float:
    """The share of pictures whose class was named."""
    return float(np.mean(np.asarray(truths) == np.asarray(predictions)))


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _class_figures(
    truths: Sequence[Sequence[Detection]], predictions: Sequence[Sequence[Detection]], class_id: int, iou: float
) -> ClassFigures:
    wanted = [[truth for truth in picture if truth.class_id == class_id] for picture in truths]
    total = sum(map(len, wanted))
    found = sorted(
        ((p.confidence, i, p) for i, picture in enumerate(predictions) for p in picture if p.class_id == class_id),
        key=lambda entry: -entry[0],
    )
    taken: set[tuple[int, int]] = set()
    hits = np.zeros(len(found))
    for rank, (_, i, prediction) in enumerate(found):
        free = [(overlap(prediction.bbox, t.bbox), j) for j, t in enumerate(wanted[i]) if (i, j) not in taken]
        best, j = max(free, default=(0.0, -1))
        if best >= iou:
            taken.add((i, j))
            hits[rank] = 1.0
    if not total or not found:
        return ClassFigures(0.0, 0.0, 0.0, total)
    true = np.cumsum(hits)
    recall, precision = true / total, true / np.arange(1, len(found) + 1)
    # The envelope: precision at a recall is the best one that any larger recall still reaches.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    area = float(np.sum(np.diff(np.concatenate([[0.0], recall])) * envelope))
    return ClassFigures(area, float(recall[-1]), float(precision[-1]), total)
