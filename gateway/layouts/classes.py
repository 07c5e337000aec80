"""Classifiers of pictures, and what turns their numbers into confidences."""

from __future__ import annotations

import numpy as np

from gateway.errors import BackendInvalidResponse
from gateway.layouts.base import Classes, Floats, Head, Outputs, layout
from gateway.layouts.boxes import best_first, finite

TOLERANCE = 1e-3
"""How far rounding in half precision may carry a confidence beyond 0 or 1."""


ACTIVATION = {"activation": ("softmax", "sigmoid", "none")}


@layout("classification-1x1", task="image-classification", outputs={"output": ("C", 1, 1)}, settings=ACTIVATION)
@layout("classification", task="image-classification", outputs={"output": ("C",)}, settings=ACTIVATION)
def classification(outputs: Outputs, head: Head) -> Classes:
    """One number a class: logits (activation softmax or sigmoid) or probabilities (none); any classifier."""
    return most_likely(finite(outputs["output"]).ravel(), head)


def most_likely(values: Floats, head: Head) -> Classes:
    """The best `top_k` of the classes above their thresholds, from one number a class (C,).

    With sigmoid several classes can be true at once. Raises BackendInvalidResponse for no numbers, and for numbers that
    are no confidences although the activation is none.
    """
    if not values.size:
        raise BackendInvalidResponse("the output has no classes")
    activation = head.activation or "softmax"
    scores = activated(values, activation)
    if activation == "none":  # else they lie in 0..1 by construction
        scores = shares_of_one(scores, "inference.activation: softmax or sigmoid")
    likely = np.flatnonzero(scores > head.threshold_of(np.arange(scores.size)))
    class_ids = likely[best_first(scores[likely], head.top_k)]
    return Classes(class_ids, scores[class_ids])


def activated(values: Floats, activation: str) -> Floats:
    """Confidences from numbers, over the last axis."""
    if activation == "softmax":
        powers = np.exp(values.astype(np.float64) - values.max(axis=-1, keepdims=True))
        shares: Floats = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
        return shares
    if activation == "sigmoid":
        likely: Floats = 0.5 * (1.0 + np.tanh(0.5 * values))  # 1 / (1 + exp(-x)), which would overflow
        return likely
    return values


def shares_of_one(values: Floats, remedy: str) -> Floats:
    """The values, which must lie in 0..1 but for rounding; raises BackendInvalidResponse with the key that helps."""
    lowest, highest = float(values.min(initial=0.0)), float(values.max(initial=1.0))
    if lowest < -TOLERANCE or highest > 1 + TOLERANCE:
        off = highest if highest - 1 > -lowest else lowest
        raise BackendInvalidResponse(
            f"the output has {off:.6g} where a confidence from 0 to 1 belongs", fix=f"Set {remedy} in model.yaml"
        )
    return values.clip(0.0, 1.0)
