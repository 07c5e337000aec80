"""A good new version comes into service without a snapshot noticing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts.bench import Bench, steps_of, wait
from tests.rollouts.drops import AT_ONCE

pytestmark = pytest.mark.triton


def test_a_new_version_of_both_variants_takes_over(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model("detector", "onnx", "torch")
        model.write_logical()
        model.drop(1)
        bench.start()
        wait(lambda: bench.loads_only(model, 1), "version 1 in Triton")
        bench.watch()
        model.drop(2)
        bench.is_promoted(model, 2)
        bench.more()
        bench.audit()
        bench.changes_once(model, 1, 2)
        wait(lambda: bench.loads_only(model, 2), "version 1 to leave Triton")
        steps = list(steps_of(bench, model))
        for step in ("verified", "loaded", "golden", "shadow", "canary", "promoted"):
            assert step in steps
        said = {each["step"]: each["note"] for each in bench.report(model)["rollout"]["steps"]}
        assert said["golden"] == "2 examples"
        assert said["drained"] == "version 1 is unloaded"
        assert bench.site.metric("edge_gateway_rollouts_total") == 2, "the first version and this one"


@pytest.mark.long
def test_a_version_with_another_config_takes_over(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """Versions of one Triton model share config.pbtxt, so Triton loads the stable one anew as well."""
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout=AT_ONCE)
        model.drop(1)
        bench.start()
        bench.watch()
        text = (model.triton_folder("onnx") / "config.pbtxt").read_text()
        model.write(
            "onnx", 2, model.content("onnx", 2), f"{text}dynamic_batching {{ max_queue_delay_microseconds: 100 }}"
        )
        bench.is_promoted(model, 2)
        bench.more()
        bench.audit()
        bench.changes_once(model, 1, 2)
        wait(lambda: bench.loads_only(model, 2), "version 1 to leave Triton")
        assert "dynamic_batching" in bench.view.config(model.triton_model("onnx"))
