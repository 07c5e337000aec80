"""Readings through the real parts: the golden windows of the sample model are answered as its card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.site import RealSite, until

MODEL = Path(__file__).parents[2] / "model_repository" / "temperature-anomaly"
GOLDEN = json.loads((MODEL / "golden" / "expected.json").read_text())


@pytest.mark.triton
def test_the_golden_windows_and_an_alert_for_each_faulty_sensor(site: RealSite) -> None:
    for number, case in enumerate(GOLDEN, start=1):
        name = case["readings"].removesuffix(".json")
        readings = json.loads((MODEL / "golden" / case["readings"]).read_text())["readings"]
        for second, values in enumerate(readings):
            body = {"sensor_id": name, "timestamp": 1_697_385_600 + second, "values": values}
            site.send(json.dumps(body).encode(), site.sensor_topic(name))
        site.answered(number)
        result = site.results[-1]
        assert (result["device_id"], result["model_name"]) == (name, "temperature-anomaly")
        assert result["topic"].endswith("/ai/inference/sensor")
        seen = [(item["class"], item["class_id"]) for item in result["predictions"]]
        assert seen == [(item["class"], item["class_id"]) for item in case["predictions"]], name
        for item, expected in zip(result["predictions"], case["predictions"], strict=True):
            assert item["confidence"] == pytest.approx(expected["confidence"], abs=0.005)
    faulty = {case["readings"].removesuffix(".json") for case in GOLDEN if case["predictions"]}
    until(lambda: len(site.of("ai_alert")) == len(faulty), "the alerts")
    assert {alert["device_id"] for alert in site.of("ai_alert")} == faulty
    count = sum(len(json.loads((MODEL / "golden" / case["readings"]).read_text())["readings"]) for case in GOLDEN)
    assert site.metric("edge_gateway_snapshots_received_total") == count
    assert site.metric("edge_gateway_snapshots_total") == count
