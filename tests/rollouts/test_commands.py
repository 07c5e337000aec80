"""promote, rollback, load and unload by HTTP, while cameras send."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts.bench import CAMERAS, Bench, wait
from tests.rollouts.drops import AT_ONCE, QUICK, Model

pytestmark = pytest.mark.triton


def answered_by(bench: Bench, model: Model, version: int) -> bool:
    """Whether all cameras were last answered by this version."""
    seen = bench.auditor.versions(model.name)
    return len(seen) == CAMERAS and all(each[-1] == str(version) for each in seen.values())


def loads_of(bench: Bench) -> int:
    """How often the gateway has said that a Triton model serves, as it does after each load."""
    return bench.log().count('"event": "A model serves"')


@pytest.mark.long
def test_rollback_promote_unload_and_load(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical(rollout={**AT_ONCE, "keep": "1h"})
        model.drop(1)
        bench.start()
        bench.watch()

        # Back to the version before, which is still loaded.
        model.drop(2)
        wait(lambda: bench.is_at(model, 2, "drained"), "version 2 to serve")
        wait(lambda: answered_by(bench, model, 2), "answers of version 2")
        loads, began = loads_of(bench), time.monotonic()
        assert bench.command(model, "rollback").status_code == 202
        wait(lambda: answered_by(bench, model, 1), "answers of version 1")
        print(f"rolled back within {time.monotonic() - began:.2f} s")
        assert loads_of(bench) == loads
        wait(lambda: bench.loads_only(model, 1), "version 2 to leave Triton")
        bench.more()
        bench.changes_once(model, 1, 2, 1)
        report = bench.report(model)
        assert (report["version"], report["rollout"]["ending"]) == (1, "rolled_back")

        # A canary is cut short.
        model.write_logical(rollout={**QUICK, "hold": "1h"})
        model.drop(3)
        bench.reaches(model, 3, "canary")
        assert bench.command(model, "promote").status_code == 202
        bench.is_promoted(model, 3)
        wait(lambda: answered_by(bench, model, 3), "answers of version 3")

        # Back to the version before, which has to be loaded first.
        wait(lambda: bench.loads_only(model, 3), "version 1 to leave Triton")
        assert bench.command(model, "rollback").status_code == 202
        wait(lambda: answered_by(bench, model, 1), "answers of version 1")
        wait(lambda: bench.loads_only(model, 1), "version 3 to leave Triton")
        bench.audit()

        # Out of service and back.
        assert bench.command(model, "unload").status_code == 202
        wait(lambda: bench.loads_only(model), "Triton without the model")
        assert bench.report(model)["status"] == "unloaded"
        bench.kill_gateway()
        bench.restart_gateway()
        assert bench.report(model)["status"] == "unloaded"
        assert bench.loads_only(model)
        assert bench.command(model, "load").status_code == 202
        wait(lambda: bench.report(model)["status"] == "serving", "the model to serve again")
        bench.watch()
        bench.audit()
