"""9: the messages that go out, in the form that docs/messages.md fixes."""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from gateway.errors import SnapshotError
from gateway.messages import (
    JSON_TYPE,
    Comparison,
    Origin,
    Outline,
    Place,
    Predicted,
    Prediction,
    Publication,
    ReplyTopics,
    Rle,
    VariantResult,
    Window,
)
from gateway.models.catalog import VariantFigures
from gateway.topics import safe_text

_NO_FIGURES = VariantFigures()


def result_publication(predicted: Predicted) -> Publication:
    """The answer of the primary variant."""
    job, origin, primary = predicted.job, predicted.job.snapshot.origin, predicted.primary
    figures = job.model.figures.get(primary.variant, _NO_FIGURES)
    alerts = set(job.model.spec.inference.alert_classes)
    body = {
        "message_type": "ai_inference_result",
        "result_id": origin.result_id,
        "timestamp": origin.timestamp,
        "device_id": origin.device_id,
        "model_name": job.model.spec.name,
        "model_version": primary.model_version,
        "backend_used": primary.variant,
        "inference_time_ms": _ms(primary.infer_ms),
        "predictions": [_prediction(item) for item in primary.predictions],
        **_whole(primary),
        "metadata": {
            "preprocessing_time_ms": _ms(predicted.preprocess_ms),
            "total_objects_detected": len(primary.predictions),
            "alert_triggered": any(item.class_name in alerts for item in primary.predictions),
            **_what_was_asked(predicted),
            "selection": {"policy": predicted.selection.policy, "reason": predicted.selection.reason},
            "timings_ms": {
                "queued": _ms(predicted.queued_ms),
                "preprocess": _ms(predicted.preprocess_ms),
                "infer": _ms(primary.infer_ms),
                "triton_queue": _ms(figures.queue_ms),
                "triton_compute": _ms(figures.compute_ms),
                "postprocess": _ms(predicted.postprocess_ms),
                "total": _ms((time.monotonic() - origin.received_at) * 1000),
            },
            "snapshot": job.snapshot.metadata,
        },
    }
    return _publication(job.topics.result, body, origin)


def comparison_publication(predicted: Predicted, comparison: Comparison) -> Publication:
    """Both variants side by side; a variant that failed carries `error` in place of predictions."""
    job, origin = predicted.job, predicted.job.snapshot.origin
    both = (comparison.first, comparison.second)
    body = {
        "message_type": "dual_backend_comparison",
        "result_id": origin.result_id,
        "timestamp": origin.timestamp,
        "device_id": origin.device_id,
        "model_name": job.model.spec.name,
        "backends": {item.variant: _backend(item, job.model.figures.get(item.variant, _NO_FIGURES)) for item in both},
        "performance_delta": _performance_delta(comparison),
    }
    return _publication(job.topics.comparison, body, origin)


def _backend(result: VariantResult, figures: VariantFigures) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "inference_time_ms": _ms(result.infer_ms),
        "predictions": [_prediction(item) for item in result.predictions],
        **_whole(result),
        "memory_usage_mb": None if figures.memory_mb is None else round(figures.memory_mb),
        "model_version": result.model_version,
    }
    if result.error is not None:
        entry["error"] = _error(result.error)
    return entry


def _what_was_asked(predicted: Predicted) -> dict[str, Any]:
    """The size of the picture, or of the window of readings."""
    snapshot = predicted.job.snapshot
    if isinstance(snapshot, Window):
        readings, channels = snapshot.readings.shape
        return {"window": {"readings": readings, "channels": channels}}
    width, height = predicted.picture or (0, 0)
    return {"image": {"width": width, "height": height}}


def _whole(result: VariantResult) -> dict[str, Any]:
    """What a model says of the whole, beside single predictions."""
    entry: dict[str, Any] = {}
    if result.score is not None:
        entry["anomaly_score"] = round(result.score, 6)
    if result.values is not None:
        entry["values"] = list(result.values)
    return entry


def _performance_delta(comparison: Comparison) -> dict[str, Any]:
    """Times and agreement; percentages are of the slower variant's time, and negative when it is the other way."""
    first, second, agreement = comparison.first, comparison.second, comparison.agreement
    # As in the decision record: how much faster the variant is that stands beside `onnx`.
    beside = first if second.variant == "onnx" else second
    if agreement is None:
        return {
            "time_difference_ms": None,
            "faster_backend": None,
            "faster_by_percent": None,
            f"{beside.variant}_faster_by_percent": None,
            "predictions_match": None,
            "agreement": None,
        }
    faster, slower = sorted((first, second), key=lambda result: result.infer_ms)
    percent = 100 * (1 - faster.infer_ms / slower.infer_ms) if slower.infer_ms else 0.0
    return {
        "time_difference_ms": _ms(slower.infer_ms - faster.infer_ms),
        "faster_backend": faster.variant,
        "faster_by_percent": round(percent, 1),
        f"{beside.variant}_faster_by_percent": round(percent if faster is beside else -percent, 1),
        "predictions_match": agreement.match,
        "agreement": {
            "matched": agreement.matched,
            f"only_{first.variant}": agreement.only_first,
            f"only_{second.variant}": agreement.only_second,
            "class_flips": agreement.class_flips,
            "mean_iou": _round(agreement.mean_iou, 4),
            "max_confidence_delta": _round(agreement.max_confidence_delta, 6),
        },
    }


def error_publication(topics: ReplyTopics, origin: Origin, error: SnapshotError) -> Publication:
    """Why a snapshot has no result; never the payload, only its size and digest."""
    body = {
        "message_type": "ai_inference_error",
        "result_id": origin.result_id,
        "timestamp": origin.timestamp,
        "device_id": origin.device_id,
        "model_name": origin.model_name,
        "error": _error(error),
        "input": {"topic": origin.topic, "bytes": origin.payload_bytes, "sha256": origin.payload_sha256},
    }
    return _publication(topics.error, body, origin)


def _error(error: SnapshotError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "fix": error.fix, "retryable": error.retryable}


def _prediction(item: Prediction) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "class": item.class_name,
        "class_id": item.class_id,
        "confidence": round(item.confidence, 6),
    }
    if item.bbox is not None:
        entry["bbox"] = [round(value, 2) for value in item.bbox]
    if isinstance(item.mask, Outline):
        entry["polygons"] = [[[round(x, 1), round(y, 1)] for x, y in polygon] for polygon in item.mask.polygons]
    elif isinstance(item.mask, Rle):
        entry["rle"] = {"size": [item.mask.height, item.mask.width], "counts": item.mask.counts}
    return entry


def _publication(topic: str, body: dict[str, Any], origin: Origin) -> Publication:
    return Publication(
        topic=topic,
        payload=msgspec.json.encode(body),
        content_type=JSON_TYPE,
        correlation_data=origin.correlation_data,
        user_properties=user_properties(body["message_type"], origin, origin.result_id),
    )


def user_properties(message_type: str, origin: Origin, about: str) -> tuple[tuple[str, str], ...]:
    """The attributes of CloudEvents 1.0 in binary mode and the trace context; `about` tells events of one type apart.

    A repeated answer is the same event, with the same id.
    """
    own = {
        "specversion": "1.0",
        "type": message_type,
        "source": _source(origin.place),
        "id": f"{about}-{message_type}",
        "subject": safe_text(origin.device_id),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    carried = [(name, safe_text(value)) for name, value in origin.attributes if name not in own]
    return (*own.items(), *carried, *origin.trace)


@functools.lru_cache(maxsize=256)
def _source(place: Place) -> str:
    return f"/{quote(place.business_unit)}/{quote(place.facility)}/{quote(place.gateway_id)}"


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
