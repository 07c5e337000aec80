"""How far the gateway's answer about a picture is from the tool's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_IOU, MOST_SCORE = 0.99, 0.005
CLASSIFIER_THRESHOLD = 0.01
"""What the pages' classifiers leave out."""

Box = Sequence[float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """The worst of all that was compared; `missing` are detections of the one that the other does not have."""

    compared: int = 0
    iou: float | None = None
    score: float = 0.0
    missing: int = 0

    @property
    def good(self) -> bool:
        """Whether this keeps what is promised; nothing compared keeps nothing."""
        close = self.score <= MOST_SCORE and (self.iou is None or self.iou >= LEAST_IOU)
        return bool(self.compared) and close and not self.missing

    def __add__(self, other: Agreement) -> Agreement:
        known = [iou for iou in (self.iou, other.iou) if iou is not None]
        return Agreement(
            self.compared + other.compared,
            min(known, default=None),
            max(self.score, other.score),
            self.missing + other.missing,
        )


def compare(
    answer: Mapping[str, Any], predictions: list[dict[str, Any]], size: tuple[int, int], threshold: float
) -> Agreement:
    """The tool's answer (see tests/exports) against the predictions of a result, for a picture of (width, height)."""
    if "boxes" in answer:
        return _detections(answer, predictions, size, threshold)
    return _classes(answer, predictions)


def _classes(answer: Mapping[str, Any], predictions: list[dict[str, Any]]) -> Agreement:
    scores = answer["scores"]
    wanted = dict(zip(answer.get("classes", range(len(scores))), scores, strict=True))
    found = {item["class_id"]: item["confidence"] for item in predictions}
    absent = {number: score for number, score in wanted.items() if number not in found}
    both = [abs(score - found[number]) for number, score in wanted.items() if number in found]
    missing = sum(score > CLASSIFIER_THRESHOLD + MOST_SCORE for score in absent.values())
    return Agreement(len(both), None, max(both, default=1.0), missing + len(found.keys() - wanted.keys()))


def _detections(
    answer: Mapping[str, Any], predictions: list[dict[str, Any]], size: tuple[int, int], threshold: float
) -> Agreement:
    """Each of the tool's detections with the one of its class that overlaps it most; both lists are used up.

    One that only one of them has counts where its score is not within the allowed difference of the threshold.
    """
    left = list(predictions)
    total = Agreement()
    lonely: list[float] = []
    rows = sorted(zip(answer["boxes"], answer["scores"], answer["classes"], strict=True), key=lambda row: -row[1])
    for box, score, class_id in rows:
        clipped = _clip(box, size)
        rivals = [item for item in left if item["class_id"] == class_id]
        best = max(rivals, key=lambda item: (_iou(clipped, item["bbox"]), item["confidence"]), default=None)
        if best is None or _iou(clipped, best["bbox"]) < 0.5:
            lonely.append(score)
            continue
        left.remove(best)
        total += Agreement(1, _iou(clipped, best["bbox"]), abs(score - best["confidence"]))
    lonely += [item["confidence"] for item in left]
    return total + Agreement(missing=sum(_counts(score, threshold) for score in lonely))


def _counts(score: float, threshold: float) -> bool:
    return abs(score - threshold) > MOST_SCORE


def _clip(box: Box, size: tuple[int, int]) -> list[float]:
    """The gateway's boxes end at the edge of the picture."""
    return [min(max(value, 0.0), float(limit)) for value, limit in zip(box, (*size, *size), strict=True)]


def _iou(a: Box, b: Box) -> float:
    inner = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - inner
    return inner / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def worst(parts: Iterable[Agreement]) -> Agreement:
    """All of them as one."""
    return sum(parts, Agreement())
