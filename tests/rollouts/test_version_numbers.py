"""A version number stands for one set of weights, once Triton has had them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts.bench import Bench, wait
from tests.rollouts.drops import AT_ONCE

pytestmark = pytest.mark.triton


@pytest.mark.long
def test_other_weights_under_a_number_that_was_used(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout=AT_ONCE)
        model.drop(1)
        bench.start()
        bench.watch()

        # of the stable version
        stable = model.file("onnx", 1)
        good = stable.read_bytes()
        stable.write_bytes(model.content("onnx", 9))
        wait(lambda: "other weights" in str(bench.report(model)["refused"]), "the refusal")
        refusal = bench.report(model)["refused"][0]
        assert refusal["version"] == 1
        assert "2/" in refusal["fix"]
        assert any("other weights" in reason for reason in bench.site.get("/ready").json()["degraded"])
        stable.write_bytes(good)
        wait(lambda: "other weights" not in str(bench.site.get("/ready").json()["degraded"]), "the complaint to end")

        # of a version that Triton has had and that was refused
        model.drop(2, swapped=["onnx"])
        bench.is_refused(model, 2, "expected", step="golden")
        model.drop(2)
        bench.is_refused(model, 2, "tried with other weights", "version 3", step="verified")

        # of a version that was refused before Triton had it
        model.write("onnx", 3, b"half of it")
        bench.is_refused(model, 3, step="verified")
        model.drop(3)
        bench.is_promoted(model, 3)
        bench.more()
        bench.audit()
        bench.changes_once(model, 1, 3)
