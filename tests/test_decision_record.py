"""What the founding decision record prints works as it is printed: its YAML, its environment, its messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from gateway.config_reading import load_settings
from gateway.config_warnings import settings_warnings
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.spec import read_spec
from gateway.testing import MemoryTriton
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import site

MODEL = """\
# Example: resources/model_configs/industrial-safety.yaml
name: "industrial-safety-detector"
backend: "candle" # candle | onnx | dual
model_path: "/models/industrial-safety.safetensors"
model_type: "image-classification"
preprocessing:
  resize: [224, 224]
  normalize: true
  mean: [0.485, 0.456, 0.406]
  std: [0.229, 0.224, 0.225]
inference:
  confidence_threshold: 0.7
  batch_size: 1
  gpu_enabled: true
mqtt:
  input_topics:
    - "edge-ai/+/+/camera/snapshots"
  output_topic_template: "edge-ai/{business_unit}/{facility}/ai/inference/vision"
"""

ENVIRONMENT = {
    "DEFAULT_BACKEND": "candle",
    "ENABLE_DUAL_BACKEND": "false",
    "AIO_BROKER_HOSTNAME": "aio-mq-dmqtt-frontend",
    "AIO_BROKER_TCP_PORT": "1883",
    "MQTT_INPUT_TOPICS": "edge-ai/+/+/camera/snapshots",
    "RUST_LOG": "info,ai_edge_inference=debug",
    "GPU_ENABLED": "true",
}

SNAPSHOT = {
    "device_id": "camera-01",
    "timestamp": 1697385600,
    "metadata": {"location": "assembly-line-3", "resolution": "1920x1080"},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model_configs" / "industrial-safety.yaml"
    path.parent.mkdir()
    path.write_text(MODEL)
    return path


def triton() -> MemoryTriton:
    server = MemoryTriton()
    for variant in ("industrial-safety-onnx", "industrial-safety-torch"):
        server.add_model(
            ModelSignature(
                variant,
                "1",
                (TensorSpec("input", "FP32", (-1, 3, 224, 224)),),
                (TensorSpec("logits", "FP32", (-1, 2)),),
                max_batch_size=8,
                on_gpu=False,
            ),
            lambda _: {"logits": np.array([[0.0, 5.0]], np.float32)},
        )
    return server


def test_candle_is_mapped_and_said_so(model: Path) -> None:
    with capture_logs() as logs:
        spec = read_spec(model)
    assert spec.backend == "torch"
    assert spec.variants == {"onnx": "industrial-safety-onnx", "torch": "industrial-safety-torch"}
    assert len(logs) == 1
    assert logs[0]["event"].startswith("Backend 'candle'")
    assert logs[0]["event"].endswith("mapped to the variant 'torch'")
    assert "variants: {candle:" in logs[0]["fix"]


def test_candle_that_is_mapped_stays_candle(model: Path) -> None:
    model.write_text(MODEL + "variants: {candle: safety-native, onnx: safety-onnx}\n")
    with capture_logs() as logs:
        assert read_spec(model).backend == "candle"
    assert logs == []


def test_the_environment_as_printed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**ENVIRONMENT, "MODEL_CONFIG_PATH": str(model)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with capture_logs():
        settings = load_settings()
    assert settings.default_backend == "candle"
    assert settings.gpu_enabled is True
    assert settings.mqtt_input_topics == ("edge-ai/+/+/camera/snapshots",)
    rust, candle = settings_warnings(settings, environment)
    assert rust == "RUST_LOG is not read; LOG_LEVEL=info"
    assert candle.startswith("DEFAULT_BACKEND=candle: models without a variant of that name answer with 'torch'")


async def test_the_messages_as_printed(tmp_path: Path, model: Path) -> None:
    environment: dict[str, Any] = {
        "model_config_path": model,
        "mqtt_input_topics": ENVIRONMENT["MQTT_INPUT_TOPICS"],
        "default_backend": "candle",
    }
    async with site(tmp_path / "models", triton=triton(), **environment) as place:
        place.snapshot(snapshot_json(jpeg(), **SNAPSHOT), topic="edge-ai/acme/plant-1/camera/snapshots")
        await place.answered(1)
        report = place.gateway.health.report()
    topics = [topic for topic, body, _ in place.seen if body["message_type"] == "ai_inference_result"]
    assert topics == ["edge-ai/acme/plant-1/ai/inference/vision"]
    result = place.results[0]
    assert (result["device_id"], result["timestamp"]) == ("camera-01", 1697385600)
    assert (result["model_name"], result["backend_used"]) == ("industrial-safety-detector", "torch")
    assert result["predictions"][0]["class"] == "class_1"
    assert result["metadata"]["snapshot"] == SNAPSHOT["metadata"]
    assert report.ready
    assert [text for text in report.degraded if "runs on the CPU" in text] == list(report.degraded)
    assert len(report.degraded) == 2
