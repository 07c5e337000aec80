"""The console shows what was delivered: neither what a broker has refused nor what still waits for it."""

from __future__ import annotations

from pathlib import Path

from tests.admin.test_console import console, disagreeing
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import until


async def test_what_the_broker_refuses_was_not_published(tmp_path: Path) -> None:
    async with console(tmp_path, triton=disagreeing(), enable_dual_backend=True) as (place, http):
        place.broker.deny("edge-ai/+/+/+/ai/inference/#")
        for number in range(3):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id="cam-1"))
        await until(lambda: place.outcomes() == {"failed": 3}, "three failures")
        camera = (await http.get("/api/camera?id=cam-1")).json()
        compared = (await http.get("/api/compare")).json()
    assert (camera["published"], camera["failed"], camera["dropped"]) == (0, 3, 0)
    assert [set(entry) for entry in camera["history"]] == [{"camera", "at", "picture", "error"}] * 3
    assert compared["models"] == []


async def test_what_waits_for_the_broker_is_shown_with_its_picture_once_it_is_there(tmp_path: Path) -> None:
    triton = disagreeing()
    async with console(tmp_path, triton=triton) as (place, http):
        await http.get("/api/frame?result=none")
        triton.hold("detector-onnx")
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"), qos=0)
        await triton.wait_until_held("detector-onnx")
        place.broker.stop()
        triton.release("detector-onnx")
        await until(lambda: place.session.backlog > 0, "the result that waits")
        assert (await http.get("/api/cameras")).json()["cameras"] == []
        place.broker.start()
        await until(lambda: place.outcomes() == {"published": 1}, "the result")
        (camera,) = (await http.get("/api/cameras")).json()["cameras"]
        frame = (await http.get("/api/frame?id=cam-1")).json()
    assert (camera["published"], camera["entry"]["picture"]) == (1, True)
    assert frame["entry"] == camera["entry"]


async def test_of_cameras_that_are_counted_together_no_numbers_of_their_own_are_shown(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        place.snapshot(snapshot_json(jpeg(), device_id="x" * 200))
        await place.answered(1)
        await until(lambda: place.outcomes() == {"published": 1}, "the result")
        (camera,) = (await http.get("/api/cameras")).json()["cameras"]
    assert (camera["published"], camera["failed"], camera["dropped"]) == (None, None, None)
    assert camera["entry"]["result"] == place.results[0]
