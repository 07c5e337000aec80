"""docs/messages.md shows what the gateway really publishes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import BackendRejected
from gateway.messages import ModelSignature, TensorSpec
from gateway.testing import MemoryTriton
from tests.flow.builders import jpeg, sensor_spec, signature
from tests.harness import NO_HELMET, Site, sees, site, until, write_model

PAGE = (Path(__file__).parent.parent / "docs" / "messages.md").read_text()
EXAMPLES: dict[str, dict[str, Any]] = {
    name: json.loads(text)
    for name, text in re.findall(r"<!-- example: (.+?) -->\n```json\n(.+?)\n```", PAGE, re.DOTALL)
}
MODEL = "industrial-safety"


def shape_of(value: Any, path: str = "") -> set[str]:
    """Every key as a path; a list counts by its first item, for its items are alike."""
    if isinstance(value, dict):
        return {found for key, item in value.items() for found in {f"{path}.{key}", *shape_of(item, f"{path}.{key}")}}
    return shape_of(value[0], f"{path}[]") if isinstance(value, list) and value else set()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    """A gateway with the model of the examples, whose two variants see one person without a helmet."""
    write_model(tmp_path, MODEL)
    triton = MemoryTriton()
    for variant in ("onnx", "torch"):
        triton.add_model(signature(f"{MODEL}-{variant}"), sees(NO_HELMET))
    async with site(tmp_path, triton=triton) as running:
        yield running


def send_example(place: Site) -> None:
    place.snapshot(json.dumps(EXAMPLES["snapshot"]).encode())


def test_every_example_is_marked() -> None:
    assert PAGE.count("```json") == len(EXAMPLES)


async def test_the_snapshot_is_answered_as_shown(place: Site) -> None:
    send_example(place)
    await until(lambda: bool(place.of("dual_backend_comparison") and place.results), "result and comparison")
    (result,), (comparison,) = place.results, place.of("dual_backend_comparison")
    assert shape_of(result) == shape_of(EXAMPLES["result"])
    assert shape_of(comparison) == shape_of(EXAMPLES["comparison"])
    for key in ("message_type", "timestamp", "device_id", "model_name", "model_version", "backend_used"):
        assert result[key] == EXAMPLES["result"][key]
    for key in ("selection", "alert_triggered", "snapshot", "total_objects_detected"):
        assert result["metadata"][key] == EXAMPLES["result"]["metadata"][key]
    assert len(result["result_id"]) == len(EXAMPLES["result"]["result_id"])
    assert result["result_id"] == comparison["result_id"]


async def test_a_failed_variant_is_compared_as_shown(place: Site) -> None:
    place.triton.fail(f"{MODEL}-torch", BackendRejected("out of memory"))
    send_example(place)
    await until(lambda: bool(place.of("dual_backend_comparison")), "the comparison")
    (comparison,) = place.of("dual_backend_comparison")
    example = EXAMPLES["comparison with one failed variant"]
    assert shape_of(comparison) == shape_of(example)
    assert comparison["performance_delta"] == example["performance_delta"]
    for key in ("error", "model_version", "memory_usage_mb"):
        assert comparison["backends"]["torch"][key] == example["backends"]["torch"][key]


async def test_an_alert_looks_as_shown_at_its_start_and_at_its_end(place: Site) -> None:
    send_example(place)
    await place.answered(1)
    await until(lambda: bool(place.of("ai_alert")), "the start of the alert")
    await place.stop()
    await until(lambda: len(place.of("ai_alert")) == 2, "its end")
    for alert, name in zip(place.of("ai_alert"), ("alert at its start", "alert at its end"), strict=True):
        example = EXAMPLES[name]
        assert list(alert) == list(example)
        for key in ("event", "device_id", "source", "model_name", "label", "class_name", "severity"):
            assert alert[key] == example[key]
        assert {key for key in alert if alert[key] is None} == {key for key in example if example[key] is None}
    assert len({alert["alert_id"] for alert in place.of("ai_alert")}) == 1


async def test_a_reading_is_answered_as_shown(tmp_path: Path) -> None:
    write_model(tmp_path, **sensor_spec().model_dump(mode="json", exclude_unset=True))
    shape, triton = (-1, 4, 1), MemoryTriton()
    for variant in ("thermometer-onnx", "thermometer-torch"):
        tensors = (TensorSpec("window", "FP32", shape),), (TensorSpec("reconstruction", "FP32", shape),)
        triton.add_model(
            ModelSignature(variant, "1", *tensors, max_batch_size=8),
            lambda inputs: {"reconstruction": np.zeros_like(inputs["window"])},
        )
    reading = EXAMPLES["reading"]
    async with site(tmp_path, triton=triton) as place:
        for earlier in range(3):
            early = {**reading, "timestamp": reading["timestamp"] - 3 + earlier, "values": [0.0]}
            place.snapshot(json.dumps(early).encode(), "edge-ai/bu/plant/gw/sensors/t-1")
        place.snapshot(json.dumps(reading).encode(), "edge-ai/bu/plant/gw/sensors/t-1")
        await place.answered(1)
    (result,), example = place.results, EXAMPLES["result on readings"]
    assert shape_of(result) == shape_of(example)
    for key in ("timestamp", "device_id", "model_name", "predictions", "anomaly_score"):
        assert result[key] == example[key]
    assert result["metadata"]["window"] == example["metadata"]["window"]


@pytest.mark.parametrize("form", ["polygons", "rle"])
async def test_an_outline_looks_as_shown(tmp_path: Path, form: str) -> None:
    """A segmentation that finds one forklift, whose mask fills its box."""
    masks = {"polygons": "polygon", "rle": "rle"}[form]
    write_model(tmp_path, model_type="instance-segmentation", inference={"output": "yolov8-seg", "masks": masks})
    rows = np.zeros((1, 39, 10), np.float32)
    rows[0, :4, 0], rows[0, 6, 0], rows[0, 7, 0] = (32, 32, 32, 24), 0.87, 1
    outputs = (TensorSpec("output0", "FP32", (-1, 39, 10)), TensorSpec("output1", "FP32", (-1, 32, 16, 16)))
    answer = {"output0": rows, "output1": np.ones((1, 32, 16, 16), np.float32)}
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        inputs = (TensorSpec("images", "FP32", (-1, 3, 64, 64)),)
        triton.add_model(ModelSignature(variant, "1", inputs, outputs, max_batch_size=8), lambda _inputs: answer)
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg(64, 48))
        await place.answered(1)
    (prediction,), example = place.results[0]["predictions"], EXAMPLES[f"prediction with {form}"]
    assert prediction == example


async def test_an_error_looks_as_shown(place: Site) -> None:
    example = EXAMPLES["error"]
    place.snapshot(b"", example["input"]["topic"])
    await place.answered(1)
    (error,) = place.errors
    volatile = {"timestamp", "result_id"}
    assert {k: v for k, v in error.items() if k not in volatile} == {
        k: v for k, v in example.items() if k not in volatile
    }
    assert volatile <= set(error)


async def test_status_looks_as_shown_in_life_and_at_the_end(place: Site) -> None:
    await until(lambda: any(body["status"] == "ready" for body in place.of("ai_status")), "the status ready")
    (ready,) = (body for body in place.of("ai_status") if body["status"] == "ready")
    assert shape_of(ready) == shape_of(EXAMPLES["status"])
    assert ready["models"] == EXAMPLES["status"]["models"]
    await place.stop()
    await until(lambda: place.of("ai_status")[-1]["status"] == "offline", "the status offline")
    assert shape_of(place.of("ai_status")[-1]) == shape_of(EXAMPLES["offline status"])
    assert place.of("ai_status")[-1]["reason"] == EXAMPLES["offline status"]["reason"]


async def test_the_summary_looks_as_shown(place: Site) -> None:
    send_example(place)
    await place.answered(1)
    status = place.gateway._status
    publication = status._summary(await status._values())  # every 30 s, too long to wait for
    summary = json.loads(publication.payload)
    assert shape_of(summary) == shape_of(EXAMPLES["summary"])
    assert sum(EXAMPLES["summary"]["snapshots"].values()) == EXAMPLES["summary"]["snapshots_received"]


def test_the_topics_are_the_default_ones() -> None:
    from gateway.config import Settings

    shown = set(re.findall(r"^\| (?:in|out).*? \| `(.+?)` \|", PAGE, re.MULTILINE))
    names = [name for name in Settings.model_fields if name.endswith("_topic")]
    defaults = {Settings.model_fields[name].default for name in names} - {None}
    assert shown == defaults | set(Settings.model_fields["mqtt_input_topics"].default)
