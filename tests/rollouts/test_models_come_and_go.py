"""A model that was not there at the start comes into service, and one that is removed leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pybase64
import pytest

from gateway.local.broker import EmbeddedBroker
from tests.e2e.site import Client
from tests.rollouts import detectors
from tests.rollouts.bench import CAMERAS, Bench, wait
from tests.rollouts.drops import AT_ONCE

pytestmark = pytest.mark.triton


def test_a_new_model_and_its_removal(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        detector, newcomer = bench.model(), bench.model("newcomer")
        detector.write_logical(rollout=AT_ONCE)
        detector.drop(1)
        bench.start()
        bench.watch()
        newcomer.write_logical(rollout=AT_ONCE, mqtt={"input_topics": ["nothing/#"]})
        newcomer.drop(1)
        bench.is_promoted(newcomer, 1)
        bench.watch("newcomer")
        wait(lambda: len(bench.auditor.versions("newcomer")) == CAMERAS, "answers of the new model to all cameras")
        bench.audit()
        bench.changes_once(newcomer, 1)

        bench.watch()
        newcomer.remove_all()
        topic = f"edge-ai/{bench.site.unit}/plant/gw/ai/models/newcomer"
        wait(
            lambda: any(each.endswith("/ai/models/newcomer") for each in bench.auditor.cleared),
            f"{topic} to be cleared",
        )
        assert bench.auditor.reports[-1]["status"] == "removed"
        wait(lambda: bench.loads_only(newcomer), "Triton without it")
        assert bench.site.get("/api/models/newcomer").status_code == 404
        bench.audit()

        camera = Client(broker.port)
        picture = pybase64.b64encode_as_string(detectors.picture(200, 0, 0))
        body = {"device_id": "late", "timestamp": 1_697_385_600, "image_data": picture, "model_name": "newcomer"}
        camera.publish(bench.site.topic, json.dumps(body).encode())
        wait(lambda: bool(bench.auditor.errors), "the error")
        assert bench.auditor.errors[0]["error"]["code"] == "MODEL_UNKNOWN"
        camera.close()
