"""kill -9 of the gateway in each step of a rollout: the stable version serves again, the rollout goes on or ends."""

from __future__ import annotations

import random
import threading
from functools import partial
from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts.bench import Bench, wait
from tests.rollouts.drops import AT_ONCE, QUICK, Model

pytestmark = pytest.mark.triton

ENOUGH = 100_000
"""Samples that do not come: the step lasts until the gateway is killed."""
ROLLOUTS = 15
LASTING = {
    "loaded": QUICK,
    "golden": QUICK,
    "shadow": {**QUICK, "shadow": 100},
    "canary": {**QUICK, "hold": "3s"},
    "drained": {**AT_ONCE, "keep": "3s"},
}


def killed_at(bench: Bench, model: Model, step: str, version: int = 2) -> None:
    """Kill the gateway in that step, or as soon after it as can be seen; the cameras go on."""
    if step == "golden":
        model.write_golden(times=400)
    model.drop(version)
    wait(lambda: bench.is_at(model, version, step), f"{step} of version {version}")
    bench.kill_gateway()


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("loaded", marks=pytest.mark.long),
        pytest.param("golden", marks=pytest.mark.long),
        pytest.param("shadow", marks=pytest.mark.long),
        "canary",
        pytest.param("drained", marks=pytest.mark.long),
    ],
)
def test_killed_in_a_step(broker: EmbeddedBroker, tmp_path: Path, step: str) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout=LASTING[step])
        model.drop(1)
        bench.start()
        bench.watch()
        killed_at(bench, model, step)
        bench.restart_gateway()
        assert bench.report(model)["version"] == (2 if step == "drained" else 1)
        wait(lambda: bench.report(model)["rollout"]["ending"] == "promoted", "the rollout to go on")
        bench.more()
        bench.audit()
        wait(lambda: bench.loads_only(model, 2), "version 1 to leave Triton")
        assert all(seen[-1] == "2" for seen in bench.auditor.versions(model.name).values())


@pytest.mark.long
def test_killed_and_the_drop_taken_away(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """Nothing half-done stays loaded."""
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout={**QUICK, "shadow": ENOUGH})
        model.drop(1)
        bench.start()
        bench.watch()
        model.drop(2)
        bench.reaches(model, 2, "shadow")
        bench.kill_gateway()
        model.remove(2)
        bench.restart_gateway()
        wait(lambda: bench.report(model)["rollout"]["ending"] == "refused", "the rollout to end")
        wait(lambda: bench.loads_only(model, 1), "version 2 to leave Triton")
        bench.more()
        bench.audit()
        bench.changes_once(model, 1)


@pytest.mark.long
def test_killed_at_any_moment(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """Once in each of many rollouts, between two steps as well as in one."""
    moments = random.Random(4)
    with Bench(broker, tmp_path, DROP_QUIET_S="0.2") as bench:
        model = bench.model()
        model.write_logical(rollout={**QUICK, "hold": "500ms", "keep": "500ms", "max_slowdown": 100})
        model.drop(1)
        bench.start()
        bench.watch()
        for version in range(2, ROLLOUTS + 2):
            model.drop(version)
            wait(lambda version=version: bench.rollout(model).get("version") == version, "the rollout")  # type: ignore[misc]
            threading.Event().wait(moments.uniform(0.0, 5.0))
            bench.kill_gateway()
            bench.restart_gateway()
            wait(lambda version=version: bench.report(model)["version"] == version, f"version {version}")  # type: ignore[misc]
            wait(lambda version=version: bench.loads_only(model, version), f"version {version} alone")  # type: ignore[misc]
        bench.more()
        bench.audit()


@pytest.mark.long
def test_killed_again_and_again(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """A version in whose rollout the gateway dies each time is given up."""
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout={**QUICK, "shadow": ENOUGH})
        model.drop(1)
        bench.start()
        bench.watch()
        model.drop(2)
        for attempt in range(1, 4):
            # What the one before has written says shadow too, until this one has begun.
            wait(partial(bench.has_begun, model, attempt), f"attempt {attempt}")
            wait(lambda: bench.is_at(model, 2, "shadow"), "shadow")
            bench.kill_gateway()
            bench.restart_gateway()
        wait(lambda: bench.report(model)["rollout"]["ending"] == "refused", "the rollout to be given up")
        assert "gone away 3 times" in bench.report(model)["rollout"]["reason"]
        wait(lambda: bench.loads_only(model, 1), "version 2 to leave Triton")
        bench.more()
        bench.audit()
        bench.changes_once(model, 1)
