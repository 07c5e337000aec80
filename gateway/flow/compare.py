"""8: how far two variants agree on one snapshot."""

from __future__ import annotations

import numpy as np

from gateway.layouts.boxes import iou_matrix
from gateway.messages import Agreement, Comparison, Predicted, Prediction, VariantResult

VALUE_TOLERANCE = 1e-3


def compare(predicted: Predicted) -> Comparison | None:
    """Compare the variants of a dual answer, in the order of their names; None when only one was asked."""
    if not predicted.selection.compared:
        return None
    first, second = (predicted.results[name] for name in sorted(predicted.results))
    if first.error or second.error:
        return Comparison(first, second, agreement=None)
    return Comparison(first, second, agreement=agree(first, second, predicted.job.model.spec.inference.match_iou))


def agree(first: VariantResult, second: VariantResult, match_iou: float) -> Agreement:
    """Pair predictions one to one, best overlap first: those of the same class, then the rest, which are flips."""
    some, others = first.predictions, second.predictions
    pairs = _pair(some, others, match_iou)
    flips = sum(some[i].class_id != others[j].class_id for i, j, _ in pairs)
    ious = [iou for _, _, iou in pairs if iou is not None]
    deltas = [abs(some[i].confidence - others[j].confidence) for i, j, _ in pairs]
    if first.score is not None and second.score is not None:
        deltas.append(abs(first.score - second.score))
    return Agreement(
        matched=len(pairs) - flips,
        only_first=len(some) - len(pairs),
        only_second=len(others) - len(pairs),
        class_flips=flips,
        mean_iou=float(np.mean(ious)) if ious else None,
        max_confidence_delta=max(deltas) if deltas else None,
        same_values=_same_values(first.values or (), second.values or ()),
    )


def _same_values(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether two regressions say the same, but for the precision of single floats in another order of arithmetic."""
    return len(first) == len(second) and bool(np.allclose(first, second, rtol=VALUE_TOLERANCE, atol=VALUE_TOLERANCE))


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
