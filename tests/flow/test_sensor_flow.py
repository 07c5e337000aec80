"""Readings join windows, and a window is answered like a snapshot."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.messages import ModelSignature, TensorSpec
from gateway.testing import MemoryTriton
from gateway.testing.memory_models import Answer
from tests.flow.builders import jpeg, sensor_spec, signature, snapshot_json
from tests.harness import HELMET, Site, sees, site, until, write_model

_times = itertools.count(1_697_385_600)
TOPIC = "edge-ai/bu/plant/gw/sensors/t-1"
SENSOR = sensor_spec().model_dump(mode="json", exclude_unset=True)


def gives_zeros(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """An autoencoder that knows nothing but zeros."""
    return {"reconstruction": np.zeros_like(inputs["window"])}


def thermometer(*, triton: MemoryTriton | None = None, answer: Answer = gives_zeros) -> MemoryTriton:
    triton = triton or MemoryTriton()
    shape = (-1, 4, 1)
    for variant in ("thermometer-onnx", "thermometer-torch"):
        triton.add_model(
            ModelSignature(
                variant, "1", (TensorSpec("window", "FP32", shape),), (TensorSpec("reconstruction", "FP32", shape),), 8
            ),
            answer,
        )
    return triton


def reading(number: float) -> bytes:
    """A reading with a timestamp of its own."""
    return msgspec.json.encode({"sensor_id": "t-1", "timestamp": next(_times), "values": [number]})


def settled(place: Site) -> bool:
    return sum(place.outcomes().values()) == place.received


async def test_a_window_is_answered_when_it_is_full_and_then_at_each_stride(tmp_path: Path) -> None:
    write_model(tmp_path, **SENSOR)
    async with site(tmp_path, triton=thermometer()) as place:
        for number in (0, 0, 0, 2, 0, 0, 0):
            place.snapshot(reading(number), topic=TOPIC)
        await place.answered(2)
        await until(lambda: settled(place) and place.received == 7, "all outcomes")
        assert place.outcomes() == {"published": 2, "windowed": 5}
    first, second = place.results
    # The mean square of (0, 0, 0, 2) is 1, which is the threshold: as likely unusual as not.
    assert first["anomaly_score"] == second["anomaly_score"] == 0.5
    assert first["metadata"]["window"] == {"readings": 4, "channels": 1}
    assert "image" not in first["metadata"]
    assert first["predictions"] == []


async def test_an_anomaly_is_a_prediction_and_an_alert(tmp_path: Path) -> None:
    write_model(tmp_path, **SENSOR)
    async with site(tmp_path, triton=thermometer()) as place:
        for number in (0, 0, 0, 20):
            place.snapshot(reading(number), topic=TOPIC)
        await place.answered(1)
        await until(lambda: bool(place.of("ai_alert")), "the alert")
    assert [(item["class"], item["class_id"]) for item in place.results[0]["predictions"]] == [("anomaly", 1)]
    assert place.results[0]["metadata"]["alert_triggered"]
    start = place.of("ai_alert")[0]
    assert (start["event"], start["label"], start["device_id"]) == ("start", "anomaly", "t-1")
    assert [topic for topic, body, _ in place.seen if body["message_type"] == "ai_inference_result"] == [
        "edge-ai/bu/plant/gw/ai/inference/sensor"
    ]


async def test_plain_numbers_and_several_readings_in_one_message(tmp_path: Path) -> None:
    write_model(tmp_path, **SENSOR)
    async with site(tmp_path, triton=thermometer()) as place:
        place.snapshot(b"21.5", topic=TOPIC)
        place.snapshot(b'{"sensor_id": "t-1", "values": [0, 0, 0]}', topic=TOPIC)
        await place.answered(1)
    assert place.results[0]["device_id"] == "t-1"


async def test_the_wrong_number_of_values_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, **{**SENSOR, "sensor": {"window": 4, "channels": 2}})
    triton = MemoryTriton()
    shape = (-1, 4, 2)
    for variant in ("thermometer-onnx", "thermometer-torch"):
        triton.add_model(
            ModelSignature(variant, "1", (TensorSpec("window", "FP32", shape),), (TensorSpec("r", "FP32", shape),), 8),
            gives_zeros,
        )
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(reading(1), topic=TOPIC)
        await place.answered(1)
    assert place.errors[0]["error"]["code"] == "PAYLOAD_INVALID"
    assert "1 values, the model 'thermometer' takes 2" in place.errors[0]["error"]["message"]


async def test_pictures_and_readings_find_their_own_models(tmp_path: Path) -> None:
    write_model(tmp_path, **SENSOR)
    write_model(tmp_path, "detector")
    triton = thermometer()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(HELMET))
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(snapshot_json(jpeg()))
        for _ in range(4):
            place.snapshot(reading(0), topic=TOPIC)
        await place.answered(2)
    assert {result["model_name"] for result in place.results} == {"detector", "thermometer"}


async def test_both_variants_are_compared_on_one_window(tmp_path: Path) -> None:
    write_model(tmp_path, **{**SENSOR, "backend": "dual"})
    async with site(tmp_path, triton=thermometer()) as place:
        for _ in range(4):
            place.snapshot(reading(3), topic=TOPIC)
        await until(lambda: bool(place.of("dual_backend_comparison")), "the comparison")
    backends = place.of("dual_backend_comparison")[0]["backends"]
    assert backends["onnx"]["anomaly_score"] == backends["torch"]["anomaly_score"] > 0.5


async def test_a_sensor_may_say_the_same_again_and_again(tmp_path: Path) -> None:
    """Equal numbers without a time are readings of their own, also while one of them is under way."""
    write_model(tmp_path, **SENSOR)
    async with site(tmp_path, triton=thermometer()) as place:
        place.triton.hold("thermometer-onnx")
        for _ in range(8):
            place.snapshot(b"21.5", topic=TOPIC)
        await until(lambda: place.received == 8, "all readings")
        place.triton.release("thermometer-onnx")
        await place.answered(3)
        await until(lambda: settled(place), "all outcomes")
        assert place.outcomes() == {"published": 3, "windowed": 5}
    assert len({result["result_id"] for result in place.results}) == 3
