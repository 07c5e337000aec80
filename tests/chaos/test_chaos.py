"""The short form of `make chaos`: every part dies once, the disk is full once, a connection breaks once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local.debian import find_program
from tests.chaos.bench import run
from tests.chaos.report import table, write
from tests.chaos.schedule import plan

SEED, SECONDS = 5, 36.0
KINDS = ("gateway.kill", "triton.kill", "mosquitto.kill", "broker-link.cut", "disk.full-offline", "variant.kill")


@pytest.mark.triton
@pytest.mark.mosquitto
def test_faults_lose_nothing(tmp_path: Path) -> None:
    if find_program("mosquitto") is None:
        pytest.skip("there is no Mosquitto here")
    report = run(
        tmp_path / "site",
        plan(SEED, SECONDS, len(KINDS), KINDS),
        seed=SEED,
        seconds=SECONDS,
        cameras=10,
        per_second=40.0,
        say=print,
        variants=("onnx", "python"),  # which loads in half the time of torch
    )
    print(table(report))
    write(report, tmp_path / "report", tmp_path / "site" / "gateway.log")
    assert report.broken == []
    assert report.verdict.snapshots > 0.9 * SECONDS * 40.0
    assert len(report.faults) == len(KINDS)
