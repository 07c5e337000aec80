"""Rollouts in a row: the gateway's memory does not grow, and Triton keeps nothing of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts.bench import Bench, wait
from tests.rollouts.drops import AT_ONCE

pytestmark = pytest.mark.triton

SETTLED = 3
"""Rollouts after which nothing is done for the first time any more."""
GROWTH_MB = 20.0


@pytest.mark.long
@pytest.mark.parametrize("count", [4, 100])
def test_in_a_row(broker: EmbeddedBroker, tmp_path: Path, count: int) -> None:
    with Bench(broker, tmp_path, DROP_QUIET_S="0.2") as bench:
        model = bench.model()
        model.write_logical(rollout=AT_ONCE)
        model.drop(1)
        bench.start()
        bench.watch()
        before = 0.0
        for version in range(2, count + 2):
            model.drop(version)
            bench.is_promoted(model, version)
            model.remove(version - 1)
            if version == SETTLED:
                before = bench.site.memory_mb()
        grown = bench.site.memory_mb() - before
        bench.audit()
        bench.changes_once(model, *range(1, count + 2))
        wait(lambda: bench.loads_only(model, count + 1), "the last version alone")
        print(f"{count} rollouts: {grown:+.1f} MB")
        assert grown <= GROWTH_MB
        assert bench.site.metric("edge_gateway_rollouts_total") == count + 1
