"""Models that say how unusual a picture is, and where: anomalib's exports and their like."""

from __future__ import annotations

import numpy as np

from gateway.errors import BackendInvalidResponse
from gateway.layouts.base import AnomalyMap, Floats, Head, Outputs, layout
from gateway.layouts.boxes import finite
from gateway.layouts.classes import shares_of_one

REMEDY = "inference.anomaly_threshold to the score at which the confidence shall be 0.5"


@layout("anomaly-map-2d", task="anomaly-detection", outputs={"anomaly_map": ("height", "width")})
@layout("anomaly-map", task="anomaly-detection", outputs={"anomaly_map": (1, "height", "width")})
def anomaly_map(outputs: Outputs, head: Head) -> AnomalyMap:
    """One score a pixel, the highest is that of the picture: PaDiM, PatchCore, EfficientAD, autoencoders."""
    heat = _heat(outputs, head)
    return AnomalyMap(float(heat.max()), heat)


@layout(
    "anomaly-map-score",
    task="anomaly-detection",
    outputs={"anomaly_map": (1, "height", "width"), "pred_score": (1,)},
)
def anomaly_map_score(outputs: Outputs, head: Head) -> AnomalyMap:
    """One score a pixel and one for the picture, as anomalib exports them (anomaly_map, pred_score)."""
    return AnomalyMap(_score(outputs["pred_score"], head), _heat(outputs, head))


@layout("anomaly-score", task="anomaly-detection", outputs={"pred_score": (1,)})
def anomaly_score(outputs: Outputs, head: Head) -> AnomalyMap:
    """One score for the picture, without a place."""
    return AnomalyMap(_score(outputs["pred_score"], head))


@layout("sensor-score", task="sensor-anomaly", outputs={"score": (1,)})
def sensor_score(outputs: Outputs, head: Head) -> AnomalyMap:
    """One anomaly score for a window of readings."""
    return AnomalyMap(_score(outputs["score"], head))


def confidences(scores: Floats, head: Head) -> Floats:
    """0..1 from anomaly scores: unchanged, or with an anomaly threshold t as score / (score + t), which is 0.5 at t.

    Scores below 0 count as 0. Raises BackendInvalidResponse without a threshold for scores outside of 0..1.
    """
    if head.anomaly_threshold is None:
        return shares_of_one(scores, REMEDY)
    above = scores.clip(0).astype(np.float64)
    shares: Floats = (above / (above + head.anomaly_threshold)).astype(np.float32)
    return shares


def _score(output: Floats, head: Head) -> float:
    return float(confidences(finite(output), head)[0])


def _heat(outputs: Outputs, head: Head) -> Floats:
    heat = finite(outputs["anomaly_map"])
    if not heat.size:
        raise BackendInvalidResponse("the anomaly map has no pixels")
    return confidences(heat.reshape(heat.shape[-2:]), head)
