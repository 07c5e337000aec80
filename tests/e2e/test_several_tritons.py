"""A gateway with several Tritons in memory: one that goes loses no snapshot, and everybody hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from structlog.testing import capture_logs

from gateway.testing import MemoryTriton
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import Site, site, until

A, B = "gpu-0:8001", "gpu-1:8001"


async def asked(place: Site, path: str) -> Any:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.gateway.http_port}", trust_env=False) as client:
        return (await client.get(path)).json()


def detections(server: MemoryTriton) -> int:
    return sum(not each.warm_up for each in server.requests)


async def test_one_of_two_dies_and_comes_back(tmp_path: Path) -> None:
    tritons = {A: MemoryTriton(), B: MemoryTriton()}
    async with site(tmp_path, pool_of=tritons, infer_concurrency=8) as place:
        status = await asked(place, "/api/status")
        assert status["triton_endpoints"] == {A: True, B: True}
        for number in range(8):
            place.snapshot(snapshot_json(jpeg(), device_id=f"cam-{number}"))
        await place.answered(8)
        assert detections(tritons[A]) == detections(tritons[B]) == 4

        for server in tritons.values():
            server.hold("detector-onnx")
        for number in range(4):
            place.snapshot(snapshot_json(jpeg(), device_id=f"cam-{number}"))
        await until(lambda: all(each.held_requests("detector-onnx") for each in tritons.values()), "requests at both")
        tritons[B].stop()
        tritons[A].release("detector-onnx")
        await place.answered(12)
        place.snapshot(snapshot_json(jpeg(), device_id="cam-9"))
        await until(
            lambda: any(B in text for text in place.gateway.health.report().degraded), "the endpoint that is away"
        )
        await place.answered(13)

        report = place.gateway.health.report()
        assert report.ready
        assert [text for text in report.degraded if text.startswith(f"Triton at {B} is away: ")]
        assert (await asked(place, "/api/status"))["triton_endpoints"] == {A: True, B: False}
        health = (await asked(place, "/api/health"))["triton"]
        assert [(each["address"], each["up"]) for each in health["endpoints"]] == [(A, True), (B, False)]

        tritons[B].release("detector-onnx")
        tritons[B].start()
        await until(lambda: not place.gateway.health.report().degraded, "all endpoints in service")
        assert sorted(set(tritons[B].loads)) == ["detector-onnx", "detector-torch"]
        before = detections(tritons[B])
        for number in range(8):
            place.snapshot(snapshot_json(jpeg(), device_id=f"cam-{number}"))
        await place.answered(21)
        assert detections(tritons[B]) > before
        assert not place.errors
        assert place.outcomes() == {"published": 21}
        assert place.metrics.value("model_repairs_total", model="detector", what="lost") == 0


async def test_all_go_and_come_back(tmp_path: Path) -> None:
    tritons = {A: MemoryTriton(), B: MemoryTriton()}
    async with site(tmp_path, pool_of=tritons) as place:
        with capture_logs() as logs:
            for server in tritons.values():
                server.stop()
            await until(lambda: not place.gateway.health.report().ready, "not ready")
            place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
            for server in tritons.values():
                server.start()
            await place.answered(1)
        assert place.outcomes() == {"published": 1}
        assert [line for line in logs if line["event"] == "Waiting for Triton"]


async def test_one_that_is_not_there_at_the_start_is_not_waited_for(tmp_path: Path) -> None:
    tritons = {A: MemoryTriton(), B: MemoryTriton()}
    tritons[A].stop()
    async with site(tmp_path, pool_of=tritons) as place:
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        await place.answered(1)
        assert detections(tritons[B]) == 1
        tritons[A].start()
        await until(lambda: set(tritons[A].loads) == {"detector-onnx", "detector-torch"}, "what the other one serves")
        await until(lambda: not place.gateway.health.report().degraded, "all endpoints in service")


async def test_a_business_unit_has_a_triton_of_its_own(tmp_path: Path) -> None:
    tritons = {A: MemoryTriton(), B: MemoryTriton()}
    placement = (f"model=detector-*,tenant=north -> {A}", f"model=* -> {B}")
    async with site(tmp_path, pool_of=tritons, triton_placement=placement) as place:
        for number in range(3):
            place.snapshot(
                snapshot_json(jpeg(), device_id=f"cam-{number}"), topic="edge-ai/north/hall/gw/camera/snapshots"
            )
            place.snapshot(
                snapshot_json(jpeg(), device_id=f"cam-{number}"), topic="edge-ai/south/hall/gw/camera/snapshots"
            )
        await place.answered(6)
        assert {each.tenant for each in tritons[A].requests if not each.warm_up} == {"north"}
        assert {each.tenant for each in tritons[B].requests if not each.warm_up} == {"south"}


async def test_the_only_triton_of_a_model_goes_away(tmp_path: Path) -> None:
    tritons = {A: MemoryTriton(), B: MemoryTriton()}
    placement = (f"model=detector-onnx -> {B}", f"model=detector-torch -> {A}")
    async with site(tmp_path, pool_of=tritons, triton_placement=placement) as place:
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        await place.answered(1)
        assert place.gateway.health.report().ready
        tritons[B].stop()
        await until(lambda: not place.gateway.health.report().ready, "not ready")
        assert "detector" in str(place.gateway.health.report())
        assert (await asked(place, "/api/health"))["triton"]["ready"]
        tritons[B].start()
        await until(lambda: place.gateway.health.report().ready, "ready again")
        place.snapshot(snapshot_json(jpeg(), device_id="cam-2"))
        await place.answered(2)
        assert not place.errors
