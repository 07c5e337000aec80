"""7: tensors become predictions in pixels of the original picture."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse, SnapshotError
from gateway.flow.detections import decode_classification, decode_yolov8
from gateway.flow.preprocess import boxes_to_picture
from gateway.messages import Answer, Answered, Geometry, Predicted, Prediction, VariantResult
from gateway.models.catalog import ServedModel


def postprocess(answered: Answered) -> Predicted:
    """Decode every answer; one that cannot be decoded becomes that variant's error."""
    started = time.monotonic()
    model = answered.job.model
    results = {name: _decode(answer, model, answered.geometry) for name, answer in answered.answers.items()}
    return Predicted(
        job=answered.job,
        geometry=answered.geometry,
        selection=answered.selection,
        results=results,
        queued_ms=answered.queued_ms,
        preprocess_ms=answered.preprocess_ms,
        postprocess_ms=(time.monotonic() - started) * 1000,
    )


def _decode(answer: Answer, model: ServedModel, geometry: Geometry) -> VariantResult:
    predictions: tuple[Prediction, ...] = ()
    error = answer.error
    if error is None:
        try:
            predictions = decode_output(answer.outputs[0], model, geometry)
        except SnapshotError as failure:
            error = failure
    return VariantResult(
        variant=answer.variant,
        model_version=answer.model_version,
        infer_ms=answer.infer_ms,
        predictions=predictions,
        error=error,
    )


def decode_output(output: NDArray[Any], model: ServedModel, geometry: Geometry) -> tuple[Prediction, ...]:
    """Predictions from one output with its batch axis of one, best first; raises BackendInvalidResponse."""
    if output.ndim < 2 or output.shape[0] != 1:
        raise BackendInvalidResponse(f"the output has shape {list(output.shape)}, not a batch of one")
    if model.spec.inference.output == "classification":
        return _classes(output[0], model)
    return _detections(output[0], model, geometry)


def _detections(output: NDArray[Any], model: ServedModel, geometry: Geometry) -> tuple[Prediction, ...]:
    spec = model.spec.inference
    if output.ndim != 2 or output.shape[0] != 4 + len(model.labels):
        raise BackendInvalidResponse(
            f"a yolov8 output for {len(model.labels)} labels has the shape [1, {4 + len(model.labels)}, N], "
            f"this one has {[1, *output.shape]}"
        )
    boxes, scores, classes = decode_yolov8(
        output,
        confidence_threshold=spec.confidence_threshold,
        iou_threshold=spec.iou_threshold,
        max_detections=spec.max_detections,
    )
    boxes = boxes_to_picture(boxes, geometry)
    return tuple(
        Prediction(
            class_name=model.labels[class_id],
            class_id=class_id,
            confidence=score,
            bbox=(box[0], box[1], box[2], box[3]),
        )
        for box, score, class_id in zip(boxes.tolist(), scores.tolist(), classes.tolist(), strict=True)
    )


def _classes(output: NDArray[Any], model: ServedModel) -> tuple[Prediction, ...]:
    spec = model.spec.inference
    logits = np.ravel(output)
    if logits.size != len(model.labels):
        raise BackendInvalidResponse(f"the output has {logits.size} classes, labels name {len(model.labels)}")
    ids, scores = decode_classification(
        logits, activation=spec.activation, top_k=spec.top_k, threshold=spec.confidence_threshold
    )
    return tuple(
        Prediction(class_name=model.labels[class_id], class_id=class_id, confidence=score)
        for class_id, score in zip(ids.tolist(), scores.tolist(), strict=True)
    )
