"""Drops that take their time to arrive, and drops of which a part is left out on purpose."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts.bench import Bench, wait
from tests.rollouts.drops import AT_ONCE

pytestmark = pytest.mark.triton

LARGE_BYTES = 60_000_000
PIECES = 20


def test_a_slow_copy_is_never_loaded_by_halves(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout=AT_ONCE)
        model.drop(1)
        bench.start()
        bench.watch()
        weights = np.random.default_rng(0).random(LARGE_BYTES // 4, np.float32)
        content = model.content("onnx", 2, ballast=weights)
        path = model.file("onnx", 2)
        path.parent.mkdir()
        pause = threading.Event()
        with path.open("wb", buffering=0) as file:
            for piece in np.array_split(np.frombuffer(content, np.uint8), PIECES):
                file.write(piece.tobytes())
                assert bench.rollout(model)["version"] == 1
                pause.wait(0.25)  # a copy over a slow line
        bench.is_promoted(model, 2)
        log = bench.log()
        assert log.count("A rollout begins") == 2, "one a version"
        bench.more()
        bench.audit()
        bench.changes_once(model, 1, 2)


@pytest.mark.long
def test_a_version_of_one_variant_is_served_by_that_one(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model("detector", "onnx", "torch")
        model.write_logical(rollout=AT_ONCE)
        model.drop(1)
        bench.start()
        wait(lambda: bench.loads_only(model, 1), "both variants")
        bench.watch()
        model.drop(2, "torch")
        bench.is_promoted(model, 2)
        bench.more()
        bench.audit()
        bench.changes_once(model, 1, 2)
        variants = bench.report(model)["variants"]
        assert variants["onnx"]["state"] == "absent"
        assert "version 2" in variants["onnx"]["reason"]
        assert (variants["torch"]["state"], variants["torch"]["version"]) == ("ready", "2")
        assert any("onnx" in text for text in bench.site.get("/ready").json()["degraded"])
        wait(lambda: bench.loads_only(model, variants=["onnx"]), "the variant that is left out to leave Triton")
        assert bench.auditor.answers[-1]["backend_used"] == "torch"


@pytest.mark.long
def test_a_copy_that_stalls_is_taken_up_when_it_goes_on(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout=AT_ONCE)
        model.drop(1)
        bench.start()
        bench.watch()
        content = model.content("onnx", 2)
        path = model.write("onnx", 2, content[:-100])
        bench.is_refused(model, 2, step="verified")
        with path.open("ab") as file:
            file.write(content[-100:])
        bench.is_promoted(model, 2)
        bench.more()
        bench.audit()
        bench.changes_once(model, 1, 2)
