"""Two gateways on one model volume: one rolls out, the other follows, and takes over when the first one dies."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts.bench import Bench, wait
from tests.rollouts.drops import QUICK, Model

pytestmark = pytest.mark.triton

PER_SECOND = 25
"""Of each gateway."""
ROLLER = "edge_gateway_roller"


def two(stack: ExitStack, broker: EmbeddedBroker, folder: Path, *, one_triton: bool, hold: str) -> tuple[Bench, Bench]:
    """The one that runs the rollouts, and the other; version 1 serves at both."""
    roller = stack.enter_context(Bench(broker, folder / "first"))
    model = roller.model()
    model.write_logical(rollout={**QUICK, "hold": hold})
    model.drop(1)
    roller.start()
    other = Bench(
        broker,
        folder / "second",
        triton=roller.triton if one_triton else None,
        beside=roller,
        GATEWAY_ID="gw2",
    )
    stack.enter_context(other)
    other.start()
    for bench in (roller, other):
        bench.watch(per_second=PER_SECOND)
    assert (roller.site.metric(ROLLER), other.site.metric(ROLLER)) == (1, 0)
    return roller, other


def canary_cameras(bench: Bench, model: Model) -> set[str]:
    """The cameras that version 2 has answered last."""
    return {camera for camera, seen in bench.auditor.versions(model.name).items() if seen[-1] == "2"}


@pytest.mark.long
@pytest.mark.parametrize("one_triton", [True, False])
def test_one_rolls_out_and_the_other_follows(broker: EmbeddedBroker, tmp_path: Path, one_triton: bool) -> None:
    with ExitStack() as stack:
        roller, other = two(stack, broker, tmp_path, one_triton=one_triton, hold="4s")
        model = roller.model()
        model.drop(2)
        roller.reaches(model, 2, "canary")
        wait(lambda: canary_cameras(roller, model) == canary_cameras(other, model) != set(), "the same canary cameras")
        roller.is_promoted(model, 2)
        for bench in (roller, other):
            wait(lambda bench=bench: bench.report(model)["version"] == 2, "version 2")  # type: ignore[misc]
            wait(lambda bench=bench: len(canary_cameras(bench, model)) == 5, "answers of version 2")  # type: ignore[misc]
            bench.audit()
            bench.changes_once(model, 1, 2)
            wait(lambda bench=bench: bench.loads_only(model, 2), "version 2 alone")  # type: ignore[misc]
            assert bench.site.metric("edge_gateway_model_repairs_total") == 0
        assert (roller.site.metric(ROLLER), other.site.metric(ROLLER)) == (1, 0)


@pytest.mark.parametrize("one_triton", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_roller_is_killed_in_a_canary(broker: EmbeddedBroker, tmp_path: Path, one_triton: bool) -> None:
    with ExitStack() as stack:
        roller, other = two(stack, broker, tmp_path, one_triton=one_triton, hold="3s")
        model = roller.model()
        model.drop(2)
        roller.reaches(model, 2, "canary")
        roller.kill_gateway()
        wait(lambda: other.site.metric(ROLLER) == 1, "the other to take over")
        other.is_promoted(model, 2)
        other.more()
        other.audit()
        other.changes_once(model, 1, 2)
        roller.restart_gateway()
        wait(lambda: roller.report(model)["version"] == 2, "version 2 at the first one again")
        roller.audit()
        assert roller.site.metric(ROLLER) == 0
        wait(lambda: roller.loads_only(model, 2), "version 2 alone")
