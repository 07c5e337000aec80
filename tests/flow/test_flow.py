"""The whole way of a snapshot, on the in-memory broker and Triton."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pybase64
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.errors import BackendRejected, BackendUnavailable
from gateway.messages import MessageProperties
from gateway.testing import MemoryBroker, MemoryTriton
from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, png, signature, snapshot_json
from tests.harness import HELMET, NO_HELMET, sees, site, until, write_model

RAW_TOPIC = "azure-iot-operations/data/cam7/snapshot"


async def test_a_json_snapshot_becomes_a_result_in_the_documented_form(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(jpeg(128, 96), timestamp=1697385600, metadata={"location": "line-3"}))
        await place.answered(1)
    topic, body, properties = next(item for item in place.seen if item[1]["message_type"] == "ai_inference_result")
    assert topic == "edge-ai/bu/plant/gw/ai/inference/vision"
    assert properties.content_type == "application/json"
    assert body["timestamp"] == 1697385600
    assert body["device_id"] == "camera-01"
    assert (body["model_name"], body["model_version"], body["backend_used"]) == ("detector", "1", "onnx")
    # 128x96 lies in 64x64 at half size, 8 rows below the top: (22..42, 12..52) in the input.
    assert body["predictions"] == [
        {"class": "person_with_helmet", "class_id": 0, "confidence": 0.9, "bbox": [44.0, 8.0, 84.0, 88.0]}
    ]
    metadata = body["metadata"]
    assert metadata["image"] == {"width": 128, "height": 96}
    assert metadata["snapshot"] == {"location": "line-3"}
    assert metadata["selection"] == {"policy": "single", "reason": "default"}
    assert metadata["total_objects_detected"] == 1
    assert metadata["alert_triggered"] is False
    assert set(metadata["timings_ms"]) == {
        "queued", "preprocess", "infer", "triton_queue", "triton_compute", "postprocess", "total",
    }  # fmt: skip
    assert place.outcomes() == {"published": 1}


@pytest.mark.parametrize("image", [jpeg(), png()], ids=["jpeg", "png"])
async def test_raw_pictures_are_answered_for_the_device_of_their_topic(tmp_path: Path, image: bytes) -> None:
    async with site(tmp_path) as place:
        place.snapshot(image, RAW_TOPIC)
        await place.answered(1)
    assert place.results[0]["device_id"] == "cam7"


async def test_answers_carry_correlation_data_trace_context_and_cloud_event_attributes(tmp_path: Path) -> None:
    trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    asked = MessageProperties(correlation_data=b"42", user_properties=(trace, ("dataschema", "urn:x")))
    async with site(tmp_path) as place:
        place.snapshot(jpeg(), properties=asked)
        place.snapshot(b"no snapshot", properties=asked)
        await place.answered(2)
    for _, body, properties in place.seen:
        if "result_id" in body:
            user = dict(properties.user_properties)
            assert properties.correlation_data == b"42"
            assert user["traceparent"] == trace[1]
            assert (user["specversion"], user["type"]) == ("1.0", body["message_type"])
            assert user["id"].startswith(body["result_id"])
            assert user["source"] == "/bu/plant/gw"
            assert user["subject"] == body["device_id"]
            assert user["time"]
            assert "dataschema" not in user, "a data flow would drop the result on a mismatch"


async def test_alert_classes_trigger_the_alert(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.triton.add_model(signature("detector-onnx"), sees(NO_HELMET))
        await place.triton.load("detector-onnx")
        place.snapshot(jpeg())
        await place.answered(1)
    assert place.results[0]["metadata"]["alert_triggered"] is True


# --- variants ------------------------------------------------------------------------------------------


async def test_dual_publishes_the_primary_result_and_the_comparison(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.triton.add_model(signature("detector-torch"), sees(NO_HELMET))
        await place.triton.load("detector-torch")
        place.snapshot(snapshot_json(jpeg(), backend_preference="dual"))
        await until(lambda: bool(place.of("dual_backend_comparison")))
    comparison = place.of("dual_backend_comparison")[0]
    assert place.results[0]["result_id"] == comparison["result_id"]
    assert place.results[0]["backend_used"] == "onnx"
    assert set(comparison["backends"]) == {"onnx", "torch"}
    delta = comparison["performance_delta"]
    assert delta["predictions_match"] is False
    assert delta["agreement"]["class_flips"] == 1
    assert delta["faster_backend"] in ("onnx", "torch")
    assert delta["torch_faster_by_percent"] == pytest.approx(
        delta["faster_by_percent"] * (1 if delta["faster_backend"] == "torch" else -1)
    )


async def test_variants_are_asked_at_the_same_time_with_one_tensor(tmp_path: Path) -> None:
    async with site(tmp_path, enable_dual_backend=True) as place:
        place.triton.hold("detector-onnx")
        place.triton.hold("detector-torch")
        place.snapshot(jpeg())
        await place.triton.wait_until_held("detector-onnx")
        await place.triton.wait_until_held("detector-torch")
        first, second = place.triton.requests
        assert first.inputs["images"] is second.inputs["images"]
        place.triton.release("detector-onnx")
        place.triton.release("detector-torch")
        await place.answered(1)


async def test_one_variant_failing_does_not_fail_a_dual_snapshot(tmp_path: Path) -> None:
    async with site(tmp_path, enable_dual_backend=True) as place:
        place.triton.fail("detector-onnx", BackendRejected("out of memory"))
        place.snapshot(jpeg())
        await until(lambda: bool(place.of("dual_backend_comparison")))
    comparison = place.of("dual_backend_comparison")[0]
    assert comparison["backends"]["onnx"]["error"]["code"] == "BACKEND_REJECTED"
    assert comparison["backends"]["torch"]["predictions"]
    assert comparison["performance_delta"]["predictions_match"] is None
    assert place.results[0]["backend_used"] == "torch"
    assert place.outcomes() == {"published": 1}


async def test_the_other_variant_answers_when_the_first_fails_and_the_reason_says_so(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.triton.fail("detector-onnx", BackendUnavailable("gone"))
        place.snapshot(jpeg())
        await place.answered(1)
    assert place.results[0]["backend_used"] == "torch"
    assert place.results[0]["metadata"]["selection"] == {
        "policy": "fallback",
        "reason": "onnx failed: BACKEND_UNAVAILABLE",
    }
    assert place.metrics.value("fallbacks_total", model="detector", variant="torch") == 1


async def test_an_answer_in_place_of_a_variant_that_does_not_serve_is_counted_as_that(tmp_path: Path) -> None:
    triton = MemoryTriton()
    triton.add_model(signature("detector-torch"), sees(HELMET))
    async with site(tmp_path, triton=triton) as place:
        for payload in (snapshot_json(jpeg()), snapshot_json(jpeg(), backend_preference="torch")):
            place.snapshot(payload)
        await place.answered(2)
    assert [result["backend_used"] for result in place.results] == ["torch", "torch"]
    assert place.metrics.value("fallbacks_total", model="detector", variant="torch") == 1, "one of the two meant onnx"


@pytest.mark.parametrize("garbage", [np.full((1, 7, 10), np.nan, np.float32), np.zeros((1, 9, 10), np.float32)])
async def test_a_variant_that_answers_garbage_has_failed(tmp_path: Path, garbage: Any) -> None:
    async with site(tmp_path) as place:
        place.triton.add_model(signature("detector-onnx"), lambda _: {"output0": garbage})
        await place.triton.load("detector-onnx")
        place.snapshot(jpeg(seed=1))
        place.snapshot(snapshot_json(jpeg(seed=2), backend_preference="dual"))
        await place.answered(2)
    assert [body["backend_used"] for body in place.results] == ["torch", "torch"]
    assert place.results[0]["metadata"]["selection"]["reason"] == "onnx failed: BACKEND_INVALID_RESPONSE"


async def test_both_variants_failing_is_answered_with_the_first_ones_error(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.triton.fail("detector-onnx", BackendRejected("bad weights"))
        place.triton.fail("detector-torch", BackendUnavailable("gone"))
        place.snapshot(jpeg())
        await place.answered(1)
    assert place.errors[0]["error"]["code"] == "BACKEND_REJECTED"
    assert place.errors[0]["model_name"] == "detector"
    assert place.outcomes() == {"failed": 1}


async def test_messages_may_choose_the_variant(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(jpeg(), backend_preference="torch"))
        place.snapshot(snapshot_json(jpeg(), backend_preference="nope"))
        await place.answered(2)
    assert place.results[0]["backend_used"] == "torch"
    assert place.errors[0]["error"]["code"] == "VARIANT_UNKNOWN"


async def test_a_classifier(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "gate",
        model_type="image-classification",
        labels=["clear", "blocked"],
        variants={"onnx": "gate-onnx"},
        inference={"output": "classification", "alert_classes": ["blocked"]},
    )
    triton = MemoryTriton()
    triton.add_model(signature("gate-onnx", outputs=(-1, 2)), lambda _: {"output0": np.array([[0.0, 3.0]], np.float32)})
    async with site(tmp_path, triton=triton) as place:
        place.snapshot(jpeg())
        await place.answered(1)
    (prediction,) = place.results[0]["predictions"]
    assert prediction["class"] == "blocked"
    assert prediction["confidence"] == pytest.approx(0.952574, abs=1e-5)
    assert place.results[0]["metadata"]["alert_triggered"] is True


# --- what goes wrong -----------------------------------------------------------------------------------


async def test_errors_name_code_fix_and_input_but_never_the_payload(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.snapshot(b"hello, this is no snapshot", RAW_TOPIC)
        await place.answered(1)
    error = place.errors[0]
    assert error["error"]["code"] == "PAYLOAD_INVALID"
    assert error["error"]["fix"]
    assert error["error"]["retryable"] is False
    assert error["device_id"] == "cam7"
    assert error["input"]["topic"] == RAW_TOPIC
    assert error["input"]["bytes"] == 26
    assert len(error["input"]["sha256"]) == 64
    assert "hello" not in str(error)


async def test_nothing_of_a_payload_is_ever_logged(tmp_path: Path) -> None:
    secret = "a-face-in-a-picture"
    broken = jpeg()[:300] + secret.encode()
    with capture_logs() as logs:
        async with site(tmp_path, dead_letter_topic="dead/{device_id}") as place:
            answered = jpeg(seed=1) + secret.encode()
            payloads = [
                secret.encode(), broken, snapshot_json(broken), snapshot_json(jpeg(), metadata={"note": secret}),
                f'{{"image_data": "{secret}"}}'.encode(), f'{{"image_data": 1, "x": "{secret}"}}'.encode(), answered,
            ]  # fmt: skip
            for payload in payloads:
                place.snapshot(payload)
            place.triton.fail("detector-onnx", BackendRejected("no"))
            place.snapshot(snapshot_json(answered))
            await place.answered(len(payloads) + 1)
    assert any(entry["event"] == "No result for a snapshot" for entry in logs)
    told = str(logs)
    for payload in (secret.encode(), broken, answered):
        assert payload.decode("latin-1") not in told
        assert str(payload)[2:-1] not in told
        assert pybase64.b64encode_as_string(payload)[:60] not in told


async def test_a_hundred_thousand_keys_are_skipped_and_in_metadata_refused(tmp_path: Path) -> None:
    keys = {f"key-{number}": number for number in range(100_000)}
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(jpeg(), **keys))
        place.snapshot(snapshot_json(jpeg(), metadata=keys))
        await place.answered(2)
    assert place.results[0]["metadata"]["snapshot"] == {}
    assert "key-" not in str(place.results)
    assert [error["error"]["code"] for error in place.errors] == ["PAYLOAD_INVALID"]


async def test_a_device_becomes_a_label_of_the_bounded_metrics_of_cameras_alone(tmp_path: Path) -> None:
    async def series() -> set[str]:
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"http://127.0.0.1:{place.gateway.http_port}/metrics")).text
        names = {line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")}
        others = {name for name in names if not name.startswith("edge_gateway_camera_")}
        assert "stranger" not in str(others)
        return others

    async with site(tmp_path, rate_limit_per_device=1, repeat_window_s=60) as place:

        async def send(first: int) -> None:
            for number in range(first, first + 20):
                again = snapshot_json(jpeg(), device_id=f"stranger-{number}", timestamp=number)
                for payload in (again, again, snapshot_json(b"no picture", device_id=f"stranger-{number}")):
                    place.snapshot(payload, f"azure-iot-operations/data/stranger-{number}/snapshot")
            await until(lambda: sum(place.outcomes().values()) == 3 * (first + 20))

        await send(0)
        before = await series()
        await send(20)
        assert await series() == before


async def test_a_truncated_jpeg_names_its_device_and_the_next_snapshot_is_served(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(jpeg()[:-200], device_id="cam-cut"))
        place.snapshot(jpeg())
        await place.answered(2)
    assert (place.errors[0]["error"]["code"], place.errors[0]["device_id"]) == ("IMAGE_UNDECODABLE", "cam-cut")
    assert len(place.results) == 1


async def test_a_device_cannot_break_topics_or_properties_with_its_name(tmp_path: Path) -> None:
    write_model(tmp_path, mqtt={"output_topic_template": "edge-ai/x/{facility}/{device_id}/ai/{model_name}"})
    async with site(tmp_path) as place:
        for number, name in enumerate(("a\u0001b", "a\ufffeb", "a/b", "a\U0001fffeb", "a\ufeffb", "\u009f")):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id=name))
        await place.answered(6)
    topics = {topic for topic, body, _ in place.seen if "predictions" in body}
    assert topics == {f"edge-ai/x/plant/{name}/ai/detector" for name in ("a_b", "_")}
    subjects = {dict(p.user_properties)["subject"] for _, body, p in place.seen if "predictions" in body}
    assert all(subject.isprintable() for subject in subjects)


async def test_retained_messages_are_ignored(tmp_path: Path) -> None:
    broker = MemoryBroker()
    broker.publish(SNAPSHOT_TOPIC, jpeg(), retain=True)
    async with site(tmp_path, broker=broker) as place:
        place.snapshot(jpeg(seed=1))
        await place.answered(1)
        assert place.metrics.value("ignored_messages_total", reason="retained") == 1
    assert place.received == 1


async def test_a_refused_publish_of_a_result_is_told_on_the_error_topic(tmp_path: Path) -> None:
    broker = MemoryBroker()
    broker.deny("edge-ai/+/+/+/ai/inference/vision")
    async with site(tmp_path, broker=broker) as place:
        place.snapshot(jpeg())
        await place.answered(1)
    assert "refused the result" in place.errors[0]["error"]["message"]
    assert place.outcomes() == {"failed": 1}


async def test_a_snapshot_whose_time_runs_out_in_the_queue_is_answered_then_and_not_later(tmp_path: Path) -> None:
    async with site(tmp_path, max_in_flight=1) as place:
        place.triton.hold("detector-onnx")
        place.snapshot(snapshot_json(jpeg()))
        await place.triton.wait_until_held("detector-onnx")
        place.snapshot(snapshot_json(jpeg(), deadline_ms=20))
        await until(lambda: len(place.errors) == 1)
        assert not place.results, "the one before it is still under way"
        place.triton.release("detector-onnx")
        await place.answered(2)
    assert place.errors[0]["error"]["code"] == "DEADLINE_EXCEEDED"
    assert place.outcomes() == {"published": 1, "dropped_stale": 1}


async def test_a_snapshot_sent_again_while_it_waits_is_answered_once(tmp_path: Path) -> None:
    async with site(tmp_path, max_in_flight=1) as place:
        place.triton.hold("detector-onnx")
        for number in range(3):
            place.snapshot(jpeg(seed=number))
        await place.triton.wait_until_held("detector-onnx")
        await until(lambda: place.received == 3)
        place.broker.stop()
        place.broker.start()
        await until(lambda: place.received == 6, "the redelivery of all three")
        place.triton.release("detector-onnx")
        await place.answered(3)
        await until(lambda: place.metrics.value("unacknowledged_messages") == 0)
    assert len(place.results) == 3
    assert not place.errors
    assert place.outcomes() == {"published": 6}


async def test_a_refused_comparison_does_not_take_back_the_result(tmp_path: Path) -> None:
    broker = MemoryBroker()
    broker.deny("edge-ai/+/+/+/ai/inference/comparison")
    async with site(tmp_path, broker=broker, enable_dual_backend=True) as place:
        place.snapshot(jpeg())
        await place.answered(1)
        await until(lambda: place.outcomes() == {"published": 1})
    assert not place.errors


async def test_a_model_that_is_still_loading_holds_up_no_other(tmp_path: Path) -> None:
    triton = MemoryTriton()
    for name in ("detector", "late"):
        write_model(tmp_path, name)
    for variant in ("detector-onnx", "detector-torch", "late-onnx", "late-torch"):
        triton.add_model(signature(variant), sees(HELMET))
    async with site(tmp_path, triton=triton, max_in_flight=1) as place:
        for variant in ("late-onnx", "late-torch"):
            triton.refuse_load(variant, None)
            triton.lose(variant)
            triton.hold(variant)
        for number in range(3):
            place.snapshot(snapshot_json(jpeg(seed=number), model_name="late", deadline_ms=60_000))
        place.snapshot(snapshot_json(jpeg(), model_name="detector"))
        await until(lambda: any(body["model_name"] == "detector" for body in place.results))
        for variant in ("late-onnx", "late-torch"):
            triton.release(variant)
        await place.answered(4)


async def test_a_full_queue_drops_the_oldest_of_the_busiest_camera(tmp_path: Path) -> None:
    async with site(tmp_path, max_in_flight=1, queue_max_messages=2) as place:
        place.triton.hold("detector-onnx")
        place.snapshot(snapshot_json(jpeg(), device_id="in-flight"))
        await place.triton.wait_until_held("detector-onnx")
        for number in range(4):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id="busy", timestamp=number))
        await until(lambda: len(place.errors) == 2)
        place.triton.release("detector-onnx")
        await place.answered(5)
    assert [error["timestamp"] for error in place.errors] == [0, 1]
    assert {error["error"]["code"] for error in place.errors} == {"QUEUE_FULL"}
    assert place.outcomes() == {"published": 3, "dropped_full": 2}


async def test_a_picture_that_no_queue_takes_is_told_the_limit(tmp_path: Path) -> None:
    limit = 2**20
    async with site(tmp_path, queue_max_bytes=limit) as place:
        place.snapshot(jpeg() + bytes(limit))
        await place.answered(1)
    error = place.errors[0]["error"]
    size = len(jpeg()) + limit
    assert (error["code"], error["message"]) == (
        "QUEUE_FULL",
        f"the picture has {size} bytes, QUEUE_MAX_BYTES is {limit}",
    )
    assert f"QUEUE_MAX_BYTES to {size}" in error["fix"]
    assert place.outcomes() == {"dropped_full": 1}


async def test_a_variant_that_takes_too_long_is_given_up_for_the_other(tmp_path: Path) -> None:
    async with site(tmp_path, infer_timeout_ms=50) as place:
        place.triton.hold("detector-onnx")
        place.snapshot(jpeg())
        await place.answered(1)
    assert place.results[0]["backend_used"] == "torch"
    assert "DEADLINE_EXCEEDED" in place.results[0]["metadata"]["selection"]["reason"]


# --- start, outages, stop ------------------------------------------------------------------------------


async def test_status_is_retained_and_follows_readiness(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await until(lambda: [s["status"] for s in place.of("ai_status")][-1:] == ["ready"])
        place.triton.stop()
        await until(lambda: place.of("ai_status")[-1]["status"] == "not_ready")
        assert "Triton cannot be reached" in place.of("ai_status")[-1]["reasons"]
        place.triton.start()
        await until(lambda: place.of("ai_status")[-1]["status"] == "ready")
    late = place.broker.client("late", ["edge-ai/+/+/+/ai/status"])
    running = asyncio.create_task(late.run())
    last = await anext(late.messages())
    assert b'"offline"' in last.payload
    assert last.retain
    await late.close()
    await running


async def test_snapshots_wait_for_triton_and_are_answered_when_it_comes(tmp_path: Path) -> None:
    triton = MemoryTriton()
    triton.stop()
    async with site(tmp_path, triton=triton, wait=False) as place:
        place.snapshot(jpeg())
        await until(lambda: place.received == 1)
        assert not place.gateway.health.report().ready
        place.triton.start()
        await place.answered(1)
    assert place.outcomes() == {"published": 1}


async def test_a_snapshot_in_flight_outlives_a_restart_of_triton(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.triton.hold("detector-onnx")
        place.snapshot(jpeg())
        await place.triton.wait_until_held("detector-onnx")
        place.triton.stop()
        place.triton.release("detector-onnx")
        place.triton.start()
        await place.answered(1)
    assert place.outcomes() == {"published": 1}


async def test_without_triton_a_snapshot_is_answered_at_its_deadline(tmp_path: Path) -> None:
    triton = MemoryTriton()
    triton.stop()
    async with site(tmp_path, triton=triton, wait=False, snapshot_deadline_ms=50) as place:
        place.snapshot(jpeg())
        await place.answered(1)
    assert place.errors[0]["error"]["code"] == "MODEL_UNAVAILABLE"
    assert place.errors[0]["error"]["retryable"] is True


async def test_a_refused_model_is_answered_at_once_and_holds_up_no_other(tmp_path: Path) -> None:
    triton = MemoryTriton()
    for name in ("detector", "broken"):
        write_model(tmp_path, name)
        for variant in ("onnx", "torch"):
            triton.add_model(signature(f"{name}-{variant}"), sees(HELMET))
    for variant in ("broken-onnx", "broken-torch"):
        triton.refuse_load(variant, "corrupt file")
    async with site(tmp_path, triton=triton, wait=False, snapshot_deadline_ms=3_600_000, max_in_flight=1) as place:
        await until(lambda: "corrupt file" in str(place.gateway.health.report().reasons))
        place.snapshot(snapshot_json(jpeg(), model_name="broken"))
        place.snapshot(snapshot_json(jpeg(), model_name="detector"))
        await place.answered(2)
    assert place.errors[0]["error"]["code"] == "MODEL_UNAVAILABLE"
    assert "corrupt file" in place.errors[0]["error"]["message"]
    assert place.results[0]["model_name"] == "detector"


async def test_a_model_unloaded_behind_our_back_is_loaded_again(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        place.triton.lose("detector-onnx")
        await until(lambda: place.triton.loads.count("detector-onnx") == 2)


async def test_stop_finishes_what_was_accepted(tmp_path: Path) -> None:
    async with site(tmp_path, infer_concurrency=3) as place:
        place.triton.hold("detector-onnx")
        for number in range(3):
            place.snapshot(jpeg(seed=number))
        await place.triton.wait_until_held("detector-onnx", 3)
        place.gateway.stop()
        await until(lambda: place.gateway.health.stopping)
        place.triton.release("detector-onnx")
        assert await place.running == 0
    assert place.outcomes() == {"published": 3}


async def test_stop_does_not_wait_for_a_model_that_does_not_serve(tmp_path: Path) -> None:
    triton = MemoryTriton()
    triton.stop()
    async with site(tmp_path, triton=triton, wait=False, drain_timeout_s=600, snapshot_deadline_ms=600_000) as place:
        place.snapshot(jpeg())
        await until(lambda: place.received == 1)
        assert await place.stop() == 0
    assert place.outcomes() == {"abandoned": 1}


async def test_what_cannot_be_finished_is_left_to_the_broker_and_answered_after_the_restart(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with site(tmp_path, broker=broker, drain_timeout_s=0) as place:
        place.triton.hold("detector-onnx")
        place.snapshot(jpeg())
        await place.triton.wait_until_held("detector-onnx")
        assert await place.stop() == 0
        assert place.outcomes() == {"abandoned": 1}
        triton = place.triton
    triton.release("detector-onnx")
    triton.start()
    async with site(tmp_path, broker=broker, triton=triton) as place:
        await place.answered(1)
    assert place.outcomes() == {"published": 1}


async def test_a_broken_model_yaml_hides_no_other_model_but_the_gateway_is_not_ready(tmp_path: Path) -> None:
    async with site(tmp_path):
        pass
    write_model(tmp_path, "bad", inference={"output": "yolov8", "confidense_threshold": 1})
    async with site(tmp_path, wait=False) as place:
        (reason,) = [r for r in place.gateway.health.report().reasons if "bad" in r]
    assert "did you mean 'confidence_threshold'" in reason


async def test_a_model_that_does_not_fit_its_model_yaml_is_refused_with_both_shapes(tmp_path: Path) -> None:
    write_model(tmp_path, "detector", preprocessing={"resize": [32, 64]})
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(HELMET))
    async with site(tmp_path, triton=triton, wait=False) as place:
        await until(lambda: "resize says [32, 64]" in str(place.gateway.health.report().reasons))


KINDS: dict[str, Callable[[int], tuple[str, bytes]]] = {
    "json": lambda n: (SNAPSHOT_TOPIC, snapshot_json(jpeg(seed=n))),
    "raw": lambda n: (RAW_TOPIC, jpeg(seed=n)),
    "dual": lambda n: (SNAPSHOT_TOPIC, snapshot_json(jpeg(seed=n), backend_preference="dual")),
    "text": lambda n: (RAW_TOPIC, b"no snapshot %d" % n),
    "empty": lambda n: (
        f"azure-iot-operations/data/cam{n}/snapshot",
        b"",
    ),  # a message of its own, with an id of its own
    "cut": lambda n: (RAW_TOPIC, jpeg(seed=n)[:-300]),
    "unknown model": lambda n: (SNAPSHOT_TOPIC, snapshot_json(jpeg(seed=n), model_name="nope")),
    "impatient": lambda n: (SNAPSHOT_TOPIC, snapshot_json(jpeg(seed=n), deadline_ms=0.001)),
}
FAULTS = ("triton down", "triton up", "broker down", "broker up", "fail onnx", "heal onnx", "fail torch", "heal torch")
steps = st.lists(st.sampled_from([*KINDS, *KINDS, *FAULTS]), min_size=1, max_size=25)


def inject(place: Any, fault: str) -> None:
    match fault.split():
        case ["triton", "down"]:
            place.triton.stop()
        case ["triton", "up"]:
            place.triton.start()
        case ["broker", "down"]:
            place.broker.stop()
        case ["broker", "up"]:
            place.broker.start()
        case [what, variant]:
            place.triton.fail(f"detector-{variant}", BackendRejected("injected") if what == "fail" else None)


# Without shrinking: a failing example waits out its deadline each time it is tried.
@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(steps, st.integers(1, 4), st.integers(1, 6), st.randoms(use_true_random=False))
def test_received_is_the_sum_of_outcomes_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, plan: list[str], in_flight: int, queue: int, rng: random.Random
) -> None:
    """Promise 1: faults and bad input in any order; each message gets one outcome, and one answer or more."""

    async def run() -> None:
        folder = tmp_path_factory.mktemp("models")
        async with site(folder, max_in_flight=in_flight, queue_max_messages=queue, snapshot_deadline_ms=2000) as place:
            sent = 0
            for number, step in enumerate(plan):
                if step in KINDS:
                    place.snapshot(KINDS[step](number)[1], KINDS[step](number)[0])
                    sent += 1
                else:
                    inject(place, step)
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
            for fault in ("triton up", "broker up", "heal onnx", "heal torch"):
                inject(place, fault)
            await until(lambda: place.gateway.health.report().ready)
            await until(lambda: sum(place.outcomes().values()) == place.received, f"{place.outcomes()}")
            await until(lambda: place.metrics.value("unacknowledged_messages") == 0)
            await until(lambda: len({b["result_id"] for b in place.results + place.errors}) == sent)
            assert place.received >= sent
            if not any(step.startswith("broker") for step in plan):  # an outage can lose an acknowledgement
                assert not {b["result_id"] for b in place.results} & {b["result_id"] for b in place.errors}
            assert await place.stop() == 0
        assert sum(place.outcomes().values()) == place.received
        assert "abandoned" not in place.outcomes()

    asyncio.run(run())


async def test_a_defect_fails_one_snapshot_and_not_the_gateway(tmp_path: Path) -> None:
    def defect(_inputs: object) -> dict[str, Any]:
        raise RuntimeError("a defect")

    async with site(tmp_path) as place:
        place.triton.add_model(signature("detector-onnx"), defect)
        await place.triton.load("detector-onnx")
        place.snapshot(snapshot_json(jpeg(), backend_preference="onnx"))
        place.snapshot(snapshot_json(jpeg(), backend_preference="torch"))
        await place.answered(2)
        assert not place.running.done()
    assert place.errors[0]["error"]["code"] == "INTERNAL_ERROR"
    assert len(place.results) == 1
