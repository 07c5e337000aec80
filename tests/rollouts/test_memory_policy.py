"""Models that nobody asks for make room, and come back when somebody does."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts import detectors
from tests.rollouts.bench import Bench, wait
from tests.rollouts.drops import AT_ONCE

pytestmark = pytest.mark.triton

BUDGET_MB = 1.5 * 2 * len(detectors.onnx_detector(1, slow=True)) / 1e6
"""Enough for one of the large detectors, which count twice their files, and not for two."""


def test_a_model_falls_asleep_and_wakes_up_for_a_snapshot(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path, MODEL_IDLE_UNLOAD_S="3") as bench:
        model = bench.model()
        model.write_logical(rollout=AT_ONCE)
        model.drop(1)
        bench.start()
        bench.watch()
        bench.more()
        bench.audit()
        wait(lambda: bench.report(model)["status"] == "asleep", "the model to fall asleep")
        wait(lambda: bench.loads_only(model), "Triton without it")
        assert bench.site.is_ready()
        bench.watch()
        assert bench.report(model)["status"] == "serving"
        bench.audit()


@pytest.mark.long
@pytest.mark.parametrize("policy", ["refuse", "evict"])
def test_a_budget(broker: EmbeddedBroker, tmp_path: Path, policy: str) -> None:
    with Bench(broker, tmp_path, MODEL_MEMORY_BUDGET_MB=f"{BUDGET_MB:.1f}", MODEL_MEMORY_POLICY=policy) as bench:
        first, second = bench.model("first"), bench.model("second")
        first.write_logical(rollout=AT_ONCE)
        first.drop(1, slow=True)
        bench.start()
        bench.watch("first", 10)
        second.write_logical(rollout=AT_ONCE, mqtt={"input_topics": ["nothing/#"]})
        second.drop(1, slow=True)
        wait(lambda: "budget" in str(bench.report(second)), "the refusal, for the first is in use")
        bench.audit()
        bench.changes_once(first, 1)
        if policy == "evict":
            wait(lambda: bench.report(second).get("status") == "serving", "the second one to take the place")
            assert bench.report(first)["status"] == "asleep"
            wait(lambda: bench.loads_only(first), "Triton without the first")
