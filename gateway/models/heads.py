"""What a layout is told of its model: model.yaml and the loaded model put together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.layouts import Head
from gateway.models.catalog import ServedModel, ServedVariant
from gateway.models.inference_spec import InferenceSpec
from gateway.models.input_plan import InputPlan

DECODED = 300
"""Detections that are kept for zones and sizes to choose from, before `max_detections` cuts."""
NEVER = 2.0
"""A threshold that no confidence reaches, for classes that are not to be reported."""


def head_of(model: ServedModel, variant: ServedVariant, question: NDArray[Any] | None = None) -> Head:
    """The head of one variant; `question` is what a model on plain numbers was asked, without the batch axis."""
    spec, plan = model.spec.inference, variant.plan
    height, width = (plan.height, plan.width) if isinstance(plan, InputPlan) else (0, 0)
    return Head(
        classes=variant.classes,
        height=height,
        width=width,
        thresholds=thresholds(spec, model.labels),
        iou_threshold=spec.iou_threshold,
        max_detections=max(DECODED, spec.max_detections),
        activation=spec.activation,
        top_k=spec.top_k,
        box_format=spec.box_format,
        box_units=spec.box_units,
        background=spec.background,
        anomaly_threshold=spec.anomaly_threshold,
        question=question,
    )


def thresholds(spec: InferenceSpec, labels: tuple[str, ...]) -> float | NDArray[np.float32]:
    """The least confidence: one number, or one for each label where they differ."""
    if not (spec.class_thresholds or spec.classes):
        return spec.confidence_threshold
    wanted = set(spec.classes or labels)
    least = [spec.class_thresholds.get(label, spec.confidence_threshold) for label in labels]
    return np.array([t if label in wanted else NEVER for t, label in zip(least, labels, strict=True)], np.float32)
