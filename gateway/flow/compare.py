"""8: how far two variants agree on one snapshot."""

from __future__ import annotations

import numpy as np

from gateway.flow.detections import iou_matrix
from gateway.messages import Agreement, Comparison, Predicted, Prediction


def compare(predicted: Predicted) -> Comparison | None:
    """Compare the variants of a dual answer, in the order of their names; None when only one was asked."""
    if not predicted.selection.compared:
        return None
    first, second = (predicted.results[name] for name in sorted(predicted.results))
    if first.error or second.error:
        return Comparison(first, second, agreement=None)
    match_iou = predicted.job.model.spec.inference.match_iou
    return Comparison(first, second, agreement=agree(first.predictions, second.predictions, match_iou))


def agree(first: tuple[Prediction, ...], second: tuple[Prediction, ...], match_iou: float) -> Agreement:
    """Pair predictions one to one, best overlap first: those of the same class, then the rest, which are flips."""
    pairs = _pair(first, second, match_iou)
    flips = sum(first[i].class_id != second[j].class_id for i, j, _ in pairs)
    ious = [iou for _, _, iou in pairs if iou is not None]
    deltas = [abs(first[i].confidence - second[j].confidence) for i, j, _ in pairs]
    return Agreement(
        matched=len(pairs) - flips,
        only_first=len(first) - len(pairs),
        only_second=len(second) - len(pairs),
        class_flips=flips,
        mean_iou=float(np.mean(ious)) if ious else None,
        max_confidence_delta=max(deltas) if deltas else None,
    )


def _pair(
    first: tuple[Prediction, ...], second: tuple[Prediction, ...], match_iou: float
) -> list[tuple[int, int, float | None]]:
    if not first or not second:
        return []
    if first[0].bbox is None or second[0].bbox is None:  # classes without a place pair by rank
        return [(i, i, None) for i in range(min(len(first), len(second)))]
    overlap = iou_matrix(np.array([p.bbox for p in first]), np.array([p.bbox for p in second]))
    same = np.array([[p.class_id == q.class_id for q in second] for p in first])
    pairs: list[tuple[int, int, float | None]] = []
    free_first, free_second = set(range(len(first))), set(range(len(second)))
    for allowed in (same, ~same):
        for flat in np.argsort(-overlap, axis=None, kind="stable"):
            i, j = divmod(int(flat), len(second))
            if overlap[i, j] >= match_iou and allowed[i, j] and i in free_first and j in free_second:
                pairs.append((i, j, float(overlap[i, j])))
                free_first.discard(i)
                free_second.discard(j)
    return pairs
