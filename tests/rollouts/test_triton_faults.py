"""Triton killed in the middle of a rollout, and somebody else who loads and unloads there."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts.bench import Bench, wait
from tests.rollouts.drops import QUICK

pytestmark = pytest.mark.triton


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("loaded", marks=pytest.mark.long),
        pytest.param("shadow", marks=pytest.mark.long),
        "canary",
    ],
)
def test_killed_in_a_step(broker: EmbeddedBroker, tmp_path: Path, step: str) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout={**QUICK, "shadow": 100 if step == "shadow" else 20, "hold": "2s"})
        model.drop(1)
        bench.start()
        bench.watch()
        model.drop(2)
        bench.reaches(model, 2, step)
        bench.triton.kill()
        wait(lambda: not bench.site.is_ready(), "unreadiness")
        bench.triton.start()
        bench.is_promoted(model, 2)
        bench.more()
        bench.audit()
        wait(lambda: bench.loads_only(model, 2), "exactly version 2")


def test_what_somebody_else_does_there_is_put_right(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout={**QUICK, "shadow": 100_000})
        model.drop(1)
        bench.start()
        bench.watch()
        triton_model = model.triton_model("onnx")
        repairs = "edge_gateway_model_repairs_total"

        bench.view.unload(triton_model)
        wait(lambda: bench.site.metric(repairs) == 1, "the repair to be counted", 30)
        wait(lambda: bench.loads_only(model, 1), "version 1 again")

        model.drop(2)
        bench.reaches(model, 2, "shadow")
        (model.triton_folder("onnx") / "config.pbtxt").touch()
        bench.view.load(triton_model)  # without the override: the highest version alone
        wait(lambda: bench.site.metric(repairs) == 2, "the repair to be counted", 30)
        wait(lambda: bench.loads_only(model, 1, 2), "both versions again")

        model.remove(2)
        bench.is_refused(model, 2)
        model.drop(3)
        bench.reaches(model, 3, "shadow")
        assert bench.command(model, "rollback").status_code == 202
        wait(lambda: bench.loads_only(model, 1), "version 1 alone")
        bench.view.load_versions(triton_model, bench.view.config(triton_model), 1, 3)
        assert not bench.loads_only(model, 1)
        wait(lambda: bench.loads_only(model, 1), "version 1 alone again")
        assert "that nobody wants are unloaded" in bench.log()
        bench.more()
        bench.audit()
        bench.changes_once(model, 1)
