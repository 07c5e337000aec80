"""The main job on real parts: a camera's JPEG in, results and comparisons out."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.flow.preprocess import prepare_picture
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.models.input_plan import InputPlan
from gateway.models.spec import read_spec
from gateway.terminal.send import json_snapshot
from tests.e2e.reference import decode_with_opencv
from tests.e2e.site import REPOSITORY, RealSite, until

GOLDEN = REPOSITORY / "industrial-safety" / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def golden_images() -> list[tuple[Path, list[dict[str, Any]]]]:
    return [(GOLDEN / item["image"], item["predictions"]) for item in EXPECTED]


def test_golden_images_give_the_expected_predictions(site: RealSite) -> None:
    for path, _ in golden_images():
        site.send(path.read_bytes(), site.raw_topic(path.stem))
    site.answered(len(EXPECTED))
    for path, expected in golden_images():
        (result,) = [r for r in site.results if r["device_id"] == path.stem]
        assert [p["class"] for p in result["predictions"]] == [p["class"] for p in expected]
        for seen, wanted in zip(result["predictions"], expected, strict=True):
            assert seen["bbox"] == pytest.approx(wanted["bbox"], abs=1.0)
            assert seen["confidence"] == pytest.approx(wanted["confidence"], abs=0.01)


def test_a_photo_by_mosquitto_pub_yields_a_result_in_its_own_pixels(site: RealSite) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        pytest.skip("mosquitto_pub is not installed")
    path, expected = golden_images()[0]
    arguments = ["-h", site.broker.host, "-p", str(site.broker.port), "-q", "1"]
    subprocess.run([program, *arguments, "-t", site.raw_topic("cam7"), "-f", str(path)], check=True, timeout=30)
    site.answered(1)
    (result,) = site.results
    assert result["device_id"] == "cam7"
    assert result["metadata"]["image"] == {"width": 1920, "height": 1080}
    assert len(result["predictions"]) == len(expected)
    for prediction in result["predictions"]:
        x1, y1, x2, y2 = prediction["bbox"]
        assert 0 <= x1 < x2 <= 1920
        assert 0 <= y1 < y2 <= 1080
    assert max(p["bbox"][2] for p in result["predictions"]) > 448, "not in pixels of the model's input"


def test_both_variants_agree_on_the_test_scenes(site: RealSite) -> None:
    scenes = 24
    for number in range(scenes):
        image = frame(TEST_SEEDS[number], 0)
        site.send(json_snapshot(image, f"camera-{number}", backend_preference="dual"))
    until(lambda: len(site.of("dual_backend_comparison")) == scenes, "the comparisons")
    deltas = [item["performance_delta"] for item in site.of("dual_backend_comparison")]
    assert [delta["predictions_match"] for delta in deltas] == [True] * scenes
    assert all((delta["agreement"]["max_confidence_delta"] or 0) <= 1e-3 for delta in deltas)
    assert all(set(item["backends"]) == {"onnx", "torch"} for item in site.of("dual_backend_comparison"))


@pytest.mark.parametrize("variant", ["onnx", "torch"])
def test_detection_equals_the_models_output_decoded_by_opencv(site: RealSite, variant: str) -> None:
    spec = read_spec(REPOSITORY / "industrial-safety" / "model.yaml")
    client = grpc.InferenceServerClient(site.triton.grpc_url)
    name = spec.variants[variant]
    meta = client.get_model_metadata(name)
    compared = 0
    for number in range(6):
        image = frame(TEST_SEEDS[100 + number], 0)
        site.send(json_snapshot(image, f"camera-{number}", backend_preference=variant))
        site.answered(number + 1)
        plan = InputPlan(meta.inputs[0].name, 256, 448)
        prepared = prepare_picture(image, spec.preprocessing, [plan], 10**8)[plan]
        (tensor,), (geometry,) = prepared.tensors.values(), prepared.geometries
        given = grpc.InferInput(meta.inputs[0].name, list(tensor.shape), "FP32")
        given.set_data_from_numpy(tensor)
        output = client.infer(name, [given]).as_numpy(meta.outputs[0].name)
        reference = decode_with_opencv(output[0], spec.inference, geometry)
        (result,) = [r for r in site.results if r["device_id"] == f"camera-{number}"]
        assert [p["class_id"] for p in result["predictions"]] == [item[0] for item in reference]
        for seen, (_, confidence, box) in zip(result["predictions"], reference, strict=True):
            assert seen["confidence"] == pytest.approx(confidence, abs=1e-4)
            assert seen["bbox"] == pytest.approx(box, abs=0.05)
            compared += 1
    assert compared > 6
    client.close()


def test_the_classifier_answers_when_a_message_asks_for_it(site: RealSite) -> None:
    site.send(json_snapshot(frame(TEST_SEEDS[0], 0), "gate", model_name="walkway", backend_preference="dual"))
    until(lambda: bool(site.of("dual_backend_comparison")), "the comparison")
    (result,) = site.results
    assert result["model_name"] == "walkway"
    (prediction,) = result["predictions"]
    assert prediction["class"] in ("walkway_clear", "walkway_blocked")
    assert "bbox" not in prediction
    assert site.of("dual_backend_comparison")[0]["performance_delta"]["predictions_match"] is True


def test_correlation_data_comes_back_and_memory_is_reported(site: RealSite) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.CorrelationData = b"ticket-1"
    image = frame(TEST_SEEDS[1], 0)
    memory: list[Any] = []

    def asked() -> bool:
        site.send(json_snapshot(image, "cam", backend_preference="dual"), properties=properties)
        until(lambda: len(site.of("dual_backend_comparison")) > len(memory), "a comparison")
        memory.append([e["memory_usage_mb"] for e in site.of("dual_backend_comparison")[-1]["backends"].values()])
        return all(isinstance(value, int) and value > 10 for value in memory[-1])

    until(asked, "Triton's report of the memory of both variants")
    timings = site.results[-1]["metadata"]["timings_ms"]
    assert timings["triton_compute"] > 0
    assert np.isfinite(timings["total"])


def test_default_backend_by_environment(site: RealSite) -> None:
    site.process.stop(10.0)
    site.start(DEFAULT_BACKEND="torch")
    site.wait_ready()
    site.send(frame(TEST_SEEDS[2], 0), site.raw_topic("cam"))
    site.answered(1)
    assert site.results[0]["backend_used"] == "torch"
