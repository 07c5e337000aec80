"""A whole gateway that is sent ten times as many snapshots as it can answer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from gateway.testing import MemoryTriton
from tests.flow.builders import jpeg, signature, snapshot_json
from tests.harness import HELMET, sees, site

SECONDS = 1.5
IN_FLIGHT = 4
LATENCY_S = 0.1
PICTURE = jpeg()
RATES = {
    **{f"fast-{number}": 20.0 for number in range(20)},
    **{f"slow-{number}": 1 / SECONDS for number in range(20)},
    "urgent": 4.0,
}


async def test_under_ten_times_the_load_slow_and_urgent_cameras_are_answered_and_every_snapshot_has_its_outcome(
    tmp_path: Path,
) -> None:
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(HELMET), latency_s=LATENCY_S)
    due = sorted(
        ((n + index / len(RATES)) / rate, device)
        for index, (device, rate) in enumerate(RATES.items())
        for n in range(round(SECONDS * rate))
    )
    async with site(tmp_path, triton=triton, max_in_flight=IN_FLIGHT) as place:
        started = time.monotonic()
        for at, device in due:
            await asyncio.sleep(max(0.0, started + at - time.monotonic()))
            priority = 10 if device == "urgent" else 0
            place.snapshot(snapshot_json(PICTURE, device_id=device, priority=priority))
        await place.answered(len(due))
    assert {error["error"]["code"] for error in place.errors} == {"QUEUE_FULL"}
    assert {error["device_id"].split("-")[0] for error in place.errors} == {"fast"}
    assert place.outcomes() == {"published": len(place.results), "dropped_full": len(place.errors)}
    assert place.received == len(due)
    urgent = [body for body in place.results if body["device_id"] == "urgent"]
    others = [body for body in place.results if body["device_id"].startswith("fast")]
    assert worst_wait(urgent) < worst_wait(others)


def worst_wait(results: list[dict[str, dict[str, dict[str, float]]]]) -> float:
    return max(body["metadata"]["timings_ms"]["queued"] for body in results)
