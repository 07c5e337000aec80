"""What hangs takes nothing from others: not from other models, nor from the other variant, nor from other cameras."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.flow import order
from gateway.messages import Publication
from gateway.testing import MemoryTriton
from tests.flow.builders import jpeg, settings, signature, snapshot_json
from tests.harness import HELMET, Site, sees, site, until, write_model

HANGS_MS = 600_000.0
"""Longer than any test: nobody is helped by a time-out."""
NO_TIME_OUT: dict[str, Any] = {
    "infer_timeout_ms": HANGS_MS,
    "snapshot_deadline_ms": HANGS_MS,
    "queue_max_messages": 1000,
    "drain_timeout_s": 2.0,
}
PICTURE = jpeg()


def models(folder: Path, *names: str, latency_s: float = 0.0, side: int = 64) -> MemoryTriton:
    """A Triton with these models, each in two variants, whose model.yaml is written."""
    triton = MemoryTriton()
    for name in names:
        write_model(folder, name, preprocessing={"resize": [side, side]})
        for variant in ("onnx", "torch"):
            given = signature(f"{name}-{variant}", (-1, 3, side, side))
            triton.add_model(given, sees(HELMET), latency_s=latency_s)
    return triton


def send(place: Site, model: str, device: str = "camera-01", picture: bytes = PICTURE, **more: object) -> None:
    place.snapshot(snapshot_json(picture, model_name=model, device_id=device, **more))


def results_of(place: Site, model: str, variant: str | None = None) -> int:
    of_model = [body for body in place.results if body["model_name"] == model]
    return sum(variant in (None, body["backend_used"]) for body in of_model)


async def settle(value: Callable[[], int]) -> int:
    """The value when it has not changed for a while."""
    while (before := value()) >= 0:
        await asyncio.sleep(0.1)
        if value() == before:
            break
    return before


# --- no head-of-line blocking ----------------------------------------------------------------------


async def test_a_hung_variant_holds_up_neither_another_model_nor_the_other_variant(tmp_path: Path) -> None:
    triton = models(tmp_path, "a", "b")
    async with site(tmp_path, triton=triton, infer_concurrency=64, **NO_TIME_OUT) as place:
        triton.hold("a-onnx")
        for number in range(60):
            send(place, "a", f"camera-{number}", backend_preference="onnx")
        await until(lambda: place.received == 60)
        await triton.wait_until_held("a-onnx")
        for number in range(20):
            send(place, "b", f"camera-{number}")
            send(place, "a", f"camera-{number}", backend_preference="torch")
        await until(lambda: results_of(place, "b") == 20, "the other model")
        await until(lambda: results_of(place, "a", "torch") == 20, "the other variant")
        held = triton.held_requests("a-onnx")
        assert 2 <= held <= 6, "it has not even taken all places before the others were asked"
        assert place.metrics.value("inference_in_flight", model="a", variant="onnx") == held
        triton.release("a-onnx")
        await place.answered(100)
    assert place.outcomes() == {"published": 100}


async def test_two_hung_models_leave_places_to_the_third(tmp_path: Path) -> None:
    triton = models(tmp_path, "a", "b", "c")
    async with site(tmp_path, triton=triton, infer_concurrency=64, **NO_TIME_OUT) as place:
        for name in ("a", "b"):
            triton.hold(f"{name}-onnx")
            for number in range(20):
                send(place, name, f"camera-{number}")
        await until(lambda: place.received == 40)
        await triton.wait_until_held("b-onnx")
        for number in range(20):
            send(place, "c", f"camera-{number}")
        await until(lambda: results_of(place, "c") == 20, "the third model")
        for name in ("a", "b"):
            triton.release(f"{name}-onnx")
        await place.answered(60)


async def test_in_dual_mode_the_one_that_hangs_takes_no_place_from_the_other(tmp_path: Path) -> None:
    triton = models(tmp_path, "a")
    async with site(tmp_path, triton=triton, infer_concurrency=2, **NO_TIME_OUT) as place:
        triton.hold("a-torch")
        for number in range(4):
            send(place, "a", f"camera-{number}", backend_preference="dual")
        await triton.wait_until_held("a-torch", 2)
        for number in range(10):
            send(place, "a", f"camera-{number}", backend_preference="onnx")
        await until(lambda: results_of(place, "a", "onnx") == 10, "those that do not ask for both")
        assert triton.held_requests("a-torch") == 2
        triton.release("a-torch")
        await place.answered(14)
    assert place.outcomes() == {"published": 14}


async def test_a_model_with_many_cameras_leaves_one_with_a_single_camera_what_it_needs(tmp_path: Path) -> None:
    triton = models(tmp_path, "crowded", "quiet", latency_s=0.02)
    async with site(tmp_path, triton=triton, infer_concurrency=64, queue_max_messages=1000) as place:
        waits: list[float] = []
        for number in range(20):
            for camera in range(20):
                send(place, "crowded", f"camera-{(camera + 20 * number) % 100}")
            send(place, "quiet")
            started = time.monotonic()
            await until(lambda: results_of(place, "quiet") == len(waits) + 1, "the quiet model")
            waits.append(time.monotonic() - started)
        assert sorted(waits)[len(waits) // 2] < 0.15, waits
        assert results_of(place, "crowded") > 2 * results_of(place, "quiet"), "and has the rest of the places"


async def test_waiting_for_the_brokers_acknowledgement_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path, max_in_flight=1) as place:
        publish, going = place.session.publish, asyncio.Event()

        async def slow(publication: Publication) -> None:
            if b'"ai_inference_result"' in publication.payload:
                await going.wait()
            await publish(publication)

        monkeypatch.setattr(place.session, "publish", slow)
        for number in range(5):
            place.snapshot(snapshot_json(PICTURE, device_id=f"camera-{number}"))
        await until(lambda: len(place.triton.requests) == 5, "all of them to be asked")
        assert not place.results
        going.set()
        await place.answered(5)
        await until(lambda: place.outcomes() == {"published": 5})


# --- the limit -------------------------------------------------------------------------------------


async def test_a_fixed_number_holds_and_another_one_at_once_when_it_is_changed(tmp_path: Path) -> None:
    triton = models(tmp_path, "a")
    async with site(tmp_path, triton=triton, infer_concurrency=3, **NO_TIME_OUT) as place:
        triton.hold("a-onnx")
        for number in range(10):
            send(place, "a", f"camera-{number}")
        await triton.wait_until_held("a-onnx", 3)
        assert await settle(lambda: triton.held_requests("a-onnx")) == 3
        assert place.metrics.value("inference_concurrency_limit", model="a", variant="onnx") == 3
        place.gateway.live.replace(settings(model_repository=tmp_path, infer_concurrency=5, **NO_TIME_OUT))
        send(place, "a", "camera-10")
        await triton.wait_until_held("a-onnx", 5)
        assert await settle(lambda: triton.held_requests("a-onnx")) == 5
        triton.release("a-onnx")
        await place.answered(11)


async def test_no_more_are_asked_than_have_room_for_their_tensors(tmp_path: Path) -> None:
    triton, side = models(tmp_path, "a", side=256), 256
    bytes_of_one = 3 * side * side * 4
    places: dict[str, Any] = {"infer_concurrency": 64, "max_in_flight": 64, "shared_memory_max_bytes": 5 * bytes_of_one}
    async with site(tmp_path, triton=triton, **places, **NO_TIME_OUT) as place:
        held = lambda: sum(triton.held_requests(f"a-{variant}") for variant in ("onnx", "torch"))  # noqa: E731
        triton.hold("a-onnx")
        triton.hold("a-torch")
        for number in range(20):
            send(place, "a", f"camera-{number}", backend_preference="onnx")
        await triton.wait_until_held("a-onnx", 4)
        assert await settle(held) == 4, "the other variant finds room too"
        for number in range(20):
            send(place, "a", f"camera-{number}", backend_preference="torch")
        await triton.wait_until_held("a-torch", 1)
        assert await settle(held) == 5
        triton.release("a-onnx")
        triton.release("a-torch")
        await place.answered(40)


async def test_after_a_time_out_less_is_asked_and_when_it_answers_again_all_is_as_before(tmp_path: Path) -> None:
    triton = models(tmp_path, "a", latency_s=0.005)
    times: dict[str, Any] = {"infer_timeout_ms": 200, "breaker_failures": 1000, "breaker_open_s": 0.1}
    async with site(tmp_path, triton=triton, default_backend="onnx", **times) as place:

        def limit() -> float:
            return place.metrics.value("inference_concurrency_limit", model="a", variant="onnx")

        assert limit() == 2
        triton.hold("a-onnx")
        send(place, "a", "camera-1")
        send(place, "a", "camera-2")
        await until(lambda: limit() == 1, "a smaller limit")
        triton.release("a-onnx")
        sent = 2
        while limit() < 2:
            sent += 1
            send(place, "a", f"camera-{sent}")
            await place.answered(sent)
        assert place.metrics.value("inference_in_flight", model="a", variant="onnx") == 0
    assert place.outcomes() == {"published": sent}


# --- the order of one camera ------------------------------------------------------------------------


async def test_a_picture_that_takes_long_to_decode_is_not_overtaken_by_the_next_of_its_camera(tmp_path: Path) -> None:
    large, small = jpeg(2400, 1800), jpeg(32, 32)
    async with site(tmp_path, infer_concurrency=8, decoder_threads=4) as place:
        for number in range(6):
            send(place, "detector", "camera-1", small if number % 2 else large, timestamp=1_700_000_000 + number)
        await place.answered(6)
    assert [body["timestamp"] for body in place.results] == [1_700_000_000 + number for number in range(6)]


async def test_a_frame_whose_variant_hangs_is_overtaken_after_a_moment(tmp_path: Path) -> None:
    async with site(tmp_path, infer_concurrency=8, **NO_TIME_OUT) as place:
        place.triton.hold("detector-onnx")
        send(place, "detector", timestamp=1_700_000_001)
        await place.triton.wait_until_held("detector-onnx")
        control = place.triton._control("detector-onnx")
        control.held = False
        send(place, "detector", timestamp=1_700_000_002)
        started = time.monotonic()
        await place.answered(1)
        assert time.monotonic() - started >= 0.9 * order.LONGEST_WAIT_S
        assert place.results[0]["timestamp"] == 1_700_000_002
        place.triton.release("detector-onnx")
        await place.answered(2)
