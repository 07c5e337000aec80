"""Small pictures, messages and models for the tests of the flow."""

from __future__ import annotations

import io
import itertools
import time
from typing import Any

import msgspec
import numpy as np
import pybase64
from numpy.typing import NDArray
from PIL import Image

from gateway.config import Settings
from gateway.flow.agreements import Verdict
from gateway.flow.observer import Answer
from gateway.layouts.binding import BoundOutput
from gateway.messages import (
    Job,
    Message,
    MessageProperties,
    ModelSignature,
    Origin,
    Place,
    Publication,
    ReplyTopics,
    Snapshot,
    TensorSpec,
)
from gateway.models.catalog import Catalog, ServedModel, ServedVariant, State
from gateway.models.input_plan import InputPlan
from gateway.models.spec import ModelSpec

LABELS = ("person_with_helmet", "person_without_helmet", "forklift")
SNAPSHOT_TOPIC = "edge-ai/bu/plant/gw/camera/snapshots"
PLACE = {"business_unit": "default", "facility": "default", "gateway_id": "test"}
_numbers = itertools.count()


def settings(**more: Any) -> Settings:
    """Settings for one test, independent of the environment's defaults where it matters."""
    return Settings(**{"gateway_id": "test", "http_host": "127.0.0.1", "http_port": 0, **more})


def jpeg(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    """A JPEG of noise; each seed is another picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def png(width: int = 64, height: int = 48) -> bytes:
    """A grey PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 90, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def snapshot_json(image: bytes, **more: Any) -> bytes:
    """A snapshot in JSON, each with a timestamp of its own."""
    body = {"device_id": "camera-01", "timestamp": 1_697_385_600 + next(_numbers), "metadata": {}, **more}
    return msgspec.json.encode({"image_data": pybase64.b64encode_as_string(image), **body})


def message(payload: bytes, topic: str = SNAPSHOT_TOPIC, **more: Any) -> Message:
    """A message as a broker would deliver it."""
    return Message(topic=topic, payload=payload, received_at=time.monotonic(), qos=1, **more)


def spec(name: str = "detector", **more: Any) -> ModelSpec:
    """A detector of 64x64 with two variants, or what `more` makes of it."""
    return ModelSpec.model_validate(
        {
            "name": name,
            "model_type": "object-detection",
            "variants": {"onnx": f"{name}-onnx", "torch": f"{name}-torch"},
            "labels": LABELS,
            "preprocessing": {"resize": [64, 64]},
            "inference": {"output": "yolov8", "confidence_threshold": 0.5, "alert_classes": ["person_without_helmet"]},
            **more,
        }
    )


def sensor_spec(name: str = "thermometer", **more: Any) -> ModelSpec:
    """A model on windows of four temperatures."""
    return ModelSpec.model_validate(
        {
            "name": name,
            "model_type": "sensor-anomaly",
            "labels": ["normal", "anomaly"],
            "variants": {"onnx": f"{name}-onnx", "torch": f"{name}-torch"},
            "sensor": {"window": 4, "stride": 2},
            "inference": {"anomaly_threshold": 1.0, "alert_classes": ["anomaly"]},
            **more,
        }
    )


def signature(
    model: str,
    inputs: tuple[int, ...] = (-1, 3, 64, 64),
    outputs: tuple[int, ...] = (-1, 7, 10),
    version: str = "1",
) -> ModelSignature:
    """What Triton says of a detector of 64x64 with 10 anchors."""
    return ModelSignature(
        name=model,
        version=version,
        inputs=(TensorSpec("images", "FP32", inputs),),
        outputs=(TensorSpec("output0", "FP32", outputs),),
        max_batch_size=8,
    )


def head(*detections: tuple[float, float, float, float, int, float]) -> NDArray[np.float32]:
    """A yolov8 output (1, 7, 10) with these (cx, cy, w, h, class, score)."""
    output = np.zeros((1, 7, 10), dtype=np.float32)
    for anchor, (cx, cy, w, h, class_id, score) in enumerate(detections):
        output[0, :4, anchor] = cx, cy, w, h
        output[0, 4 + class_id, anchor] = score
    return output


def served(model: ModelSpec | None = None, **states: State) -> ServedModel:
    """A model with both variants ready, unless `states` says otherwise."""
    model = model or spec()
    variants = {
        name: ServedVariant(
            name,
            triton,
            states.get(name, State.READY),
            "",
            version="1",
            plan=InputPlan("images", 64, 64),
            outputs={"output": BoundOutput("output0", batch_axis=True)},
            classes=3,
        )
        for name, triton in model.variants.items()
    }
    assert isinstance(model.labels, tuple)
    return ServedModel(model, model.labels, variants)


def catalog(*models: ServedModel) -> Catalog:
    """A catalogue of these models."""
    return Catalog({model.spec.name: model for model in models})


def origin(**more: Any) -> Origin:
    """Where a snapshot came from."""
    given: dict[str, Any] = {
        "result_id": f"{next(_numbers):032x}",
        "device_id": "camera-01",
        "timestamp": 1_697_385_600,
        "topic": SNAPSHOT_TOPIC,
        "payload_bytes": 3,
        "payload_sha256": "00",
        "received_at": time.monotonic(),
        "place": Place(**PLACE),
    }
    return Origin(**{**given, **more})


def answer_to(about: Origin, payload: bytes, verdict: Verdict | None = None, compared: bytes = b"{}") -> Answer:
    """An answer as observers are told of it; with a verdict there is a comparison too."""
    comparison = None if verdict is None else Publication("compared", compared)
    topics = ReplyTopics("result", "compared", "alert")
    return Answer(about, topics, "onnx", Publication("result", payload), comparison, (), (), verdict)


def job(
    device: str = "camera-01",
    image: bytes = b"x",
    priority: int = 0,
    model: ServedModel | None = None,
    preference: str | None = None,
) -> Job:
    """A job as the queue holds it."""
    snapshot = Snapshot(origin=origin(device_id=device), image=image, priority=priority, backend_preference=preference)
    return Job(snapshot, model or served(), time.monotonic() + 60, ReplyTopics("r", "c", "e"))


def user_properties(**pairs: str) -> MessageProperties:
    """MQTT 5 user properties."""
    return MessageProperties(user_properties=tuple(pairs.items()))
