"""Models on plain numbers: a window of readings in, a reconstruction, classes or values out."""

from __future__ import annotations

import numpy as np

from gateway.errors import BackendInvalidResponse
from gateway.layouts.anomaly import REMEDY
from gateway.layouts.base import AnomalyMap, Classes, Head, Outputs, Values, layout
from gateway.layouts.boxes import finite
from gateway.layouts.classes import ACTIVATION, most_likely


@layout("reconstruction-flat", task="sensor-anomaly", outputs={"reconstruction": ("values",)})
@layout("reconstruction", task="sensor-anomaly", outputs={"reconstruction": ("window", "channels")})
def reconstruction(outputs: Outputs, head: Head) -> AnomalyMap:
    """The window as an autoencoder gives it back; what it cannot give back is unusual: error / (error + threshold)."""
    answer = finite(outputs["reconstruction"])
    question = head.question
    if question is None or (answer.ndim > 1 and answer.shape != question.shape) or answer.size != question.size:
        asked = "pictures" if question is None else list(question.shape)
        raise BackendInvalidResponse(
            f"a reconstruction has the shape of the question, {asked}, this one has {list(answer.shape)}"
        )
    if head.anomaly_threshold is None:  # an error has no upper end, so there is no usual one
        raise BackendInvalidResponse("a reconstruction error is no confidence by itself", fix=f"Set {REMEDY}")
    difference = question.ravel().astype(np.float64) - answer.ravel()
    error = float(np.mean(difference * difference))
    return AnomalyMap(error / (error + head.anomaly_threshold))


@layout("sensor-classification", task="sensor-classification", outputs={"output": ("C",)}, settings=ACTIVATION)
def sensor_classification(outputs: Outputs, head: Head) -> Classes:
    """One number a class for a window of readings, as in the layout classification."""
    return most_likely(finite(outputs["output"]).ravel(), head)


@layout("values", task="sensor-regression", outputs={"output": ("values",)})
def values(outputs: Outputs, head: Head) -> Values:
    """Plain numbers as they come, such as a forecast or the remaining life of a bearing."""
    return Values(finite(outputs["output"]).ravel())
