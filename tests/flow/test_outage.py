"""The broker goes away and comes back: what was computed is not lost, and nothing is computed twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway import app
from gateway.adapters.spooling import SpooledBroker
from gateway.errors import BackendRejected
from gateway.flow import intake, outgoing
from gateway.messages import Prepared
from gateway.ports import WAITING_BYTES
from gateway.testing import MemoryBroker, MemoryTriton
from tests.flow.builders import jpeg, signature, snapshot_json
from tests.harness import NO_HELMET, TIMEOUT_S, Site, alive, sees, site, until, write_model

IMAGE = jpeg()


def away(place: Site) -> bool:
    return not place.gateway.health.report().ready


async def ask(http: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    """The status and the code of what a picture over HTTP gets."""
    async with http.post(url, data=IMAGE, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as response:
        return response.status, (await response.json()).get("error", {}).get("code", "")


def asked(place: Site) -> int:
    """Inferences so far; a snapshot needs one."""
    return int(place.metrics.value("inference_duration_seconds_count", model="detector", variant="onnx"))


def answered(place: Site) -> set[str]:
    return {result["result_id"] for result in place.results}


async def in_outage(place: Site, count: int, qos: int, **more: object) -> None:
    """Snapshots that arrive in the moment in which the broker goes away."""
    for number in range(count):
        place.snapshot(snapshot_json(IMAGE, device_id=f"camera-{number % 5}", **more), qos=qos)
    place.broker.stop()
    await until(lambda: away(place), "the outage")


@pytest.fixture(params=[False, True], ids=["memory", "spool"])
def waiting_place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Where answers wait: settings of a gateway."""
    return {"spool_dir": tmp_path / "spool"} if request.param else {}


@pytest.mark.parametrize("qos", [0, 1])
async def test_what_has_arrived_is_answered_in_its_time_and_sent_after_the_outage(
    tmp_path: Path, waiting_place: dict[str, Any], qos: int
) -> None:
    """Far more than places in flight, whose deadline ends before the outage does."""
    count = 60
    more: dict[str, Any] = {"queue_max_messages": 100, "snapshot_deadline_ms": 3000, **waiting_place}
    async with site(tmp_path / "models", **more) as place:
        await in_outage(place, count, qos)
        await until(lambda: asked(place) == count, "all inferences, with the broker away")
        if waiting_place:
            await until(lambda: place.metrics.value("spool_messages") == count, "all answers on disk")
        assert not place.results
        assert not place.outcomes()
        place.broker.start()
        await until(lambda: len(answered(place)) == count, f"all results, got {len(answered(place))}")
        await until(lambda: place.metrics.value("unacknowledged_messages") == 0)
        assert not place.errors
        assert asked(place) == count, "what the broker sent again was not inferred again"
        await until(lambda: sum(place.outcomes().values()) == place.received)
        assert set(place.outcomes()) == {"published"}
        await until(lambda: place.metrics.value("spool_messages") == 0, "the disk, which follows the acknowledgement")


async def test_a_broker_that_comes_and_goes_loses_nothing(tmp_path: Path, waiting_place: dict[str, Any]) -> None:
    """Short visits, each with snapshots of both qualities of service."""
    sent = 0
    more: dict[str, Any] = {"queue_max_messages": 1000, "snapshot_deadline_ms": 60_000, **waiting_place}
    async with site(tmp_path / "models", **more) as place:
        for visit in range(15):
            await until(lambda: not away(place), "the session")
            for number in range(12):
                place.snapshot(snapshot_json(IMAGE, device_id=f"camera-{visit % 7}"), qos=number % 2)
                sent += 1
            place.broker.stop()
            await until(lambda: away(place), "the outage")
            place.broker.start()
        await until(lambda: len(answered(place)) == sent, f"{sent} results, got {len(answered(place))}")
        await until(lambda: place.metrics.value("unacknowledged_messages") == 0)
        assert not place.errors
        await until(lambda: sum(place.outcomes().values()) == place.received)


async def test_beyond_the_bound_snapshots_wait_in_the_queue_until_their_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 60
    monkeypatch.setattr(outgoing, "MAX_BACKLOG_BYTES", 20_000)
    async with site(tmp_path, snapshot_deadline_ms=2000, max_in_flight=2) as place:
        await in_outage(place, count, qos=1)
        await until(lambda: place.received == count and not place.metrics.value("queue_messages"), "the deadline")
        assert place.session.backlog < 100_000, "memory is bounded"
        assert place.metrics.value("outbox_bytes") > 0, "and what is held is shown"
        place.broker.start()
        # One that was too late and comes again, since its acknowledgement came too late as well, may be in both.
        await until(lambda: len(set(answered(place)) | {error["result_id"] for error in place.errors}) == count)
    assert {error["error"]["code"] for error in place.errors} == {"DEADLINE_EXCEEDED"}
    assert 0 < len(answered(place)) < count - 5


async def test_who_asks_in_an_outage_is_told_in_time_though_another_has_to_go_for_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an error message finds room to wait in; the one of the snapshot that had to go is sent all the same."""
    monkeypatch.setattr(intake, "ANSWERS_WAITING", 1)
    monkeypatch.setattr(intake, "ASK_MARGIN_S", 0.1)
    monkeypatch.setattr(outgoing, "MAX_BACKLOG_BYTES", 0)
    more: dict[str, Any] = {"snapshot_deadline_ms": 600, "max_in_flight": 1, "queue_max_messages": 2}
    async with site(tmp_path, **more) as place, aiohttp.ClientSession() as http:
        place.triton.hold("detector-onnx")
        for number in range(3):
            place.snapshot(jpeg(seed=number))
        await place.triton.wait_until_held("detector-onnx")
        garbage = app.REFUSAL_WORKERS + 2
        for number in range(garbage):
            place.snapshot(b"garbage %d" % number)
        place.broker.stop()
        await until(lambda: place.received == 3 + garbage, "all that came")
        url = f"http://127.0.0.1:{place.gateway.http_port}/v1/infer"
        for _ in range(2):
            assert await ask(http, url) == (504, "DEADLINE_EXCEEDED")
        place.triton.release("detector-onnx")
        place.broker.start()
        await until(lambda: place.metrics.value("unacknowledged_messages") == 0, "the end of all")
    assert "QUEUE_FULL" in {error["error"]["code"] for error in place.errors}


async def test_a_stop_in_an_outage_leaves_answers_and_alert_ends_to_the_next_start(tmp_path: Path) -> None:
    """Nothing of QoS 0 comes again, so what the disk has is all that there is."""
    broker, triton = MemoryBroker(), MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(NO_HELMET))
    write_model(tmp_path / "models")
    spool: dict[str, Any] = {"spool_dir": tmp_path / "spool", "drain_timeout_s": 60}
    async with site(tmp_path / "models", broker=broker, triton=triton, **spool) as place:
        place.snapshot(snapshot_json(IMAGE, device_id="camera-0"), qos=0)
        await until(lambda: bool(place.of("ai_alert")), "the start of an alert")
        await in_outage(place, 5, qos=0)
        await until(lambda: asked(place) == 6)
        started = time.monotonic()
        assert await place.stop() == 0
        assert time.monotonic() - started < 15, "it does not wait for the broker"
    broker.start()
    triton.start()
    async with site(tmp_path / "models", broker=broker, triton=triton, **spool) as place:
        await until(lambda: len(answered(place)) == 5 and len(place.of("ai_alert")) == 9, f"all, got {place.seen}")
        await until(lambda: place.metrics.value("spool_messages") == 0, "an empty disk")
    assert all(result["resent"] for result in place.results)
    ends = [alert for alert in place.of("ai_alert") if alert["event"] == "end" and "resent" in alert]
    assert {alert["device_id"] for alert in ends} == {f"camera-{number}" for number in range(5)}


async def test_errors_that_wait_keep_nothing_of_their_pictures(tmp_path: Path) -> None:
    def refuse(inputs: object) -> Any:
        raise BackendRejected("CUDA error")

    count, triton = 30, MemoryTriton()
    for name in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(name), refuse)
    async with site(tmp_path, triton=triton, snapshot_deadline_ms=60_000) as place:
        before = alive(Prepared)
        await in_outage(place, count, qos=1)
        await until(lambda: place.session.backlog >= count * WAITING_BYTES, "all errors")
        await until(lambda: alive(Prepared) <= before, "the end of each snapshot")
        place.broker.start()
        await until(lambda: len({error["result_id"] for error in place.errors}) == count)


async def test_a_disk_that_hangs_does_not_hold_up_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BROKER_CLOSE_LIMIT_S", 0.2)
    there_again = threading.Event()
    async with site(tmp_path / "models", spool_dir=tmp_path / "spool", drain_timeout_s=1) as place:
        assert isinstance(place.session, SpooledBroker)
        place.session._spool._thread.submit(there_again.wait)  # as a call of a network disk that is away
        await in_outage(place, 3, qos=1)
        try:
            assert await place.stop() == 0
            assert place.gateway.stuck, "so that nothing waits for the thread"
        finally:
            there_again.set()


async def test_a_stop_waits_for_answers_under_way_while_the_broker_is_there(tmp_path: Path) -> None:
    """On disk they are no work for anybody, and their snapshots are not acknowledged yet."""
    async with site(tmp_path / "models", spool_dir=tmp_path / "spool") as place:
        await in_outage(place, 5, qos=1)
        await until(lambda: place.metrics.value("spool_messages") == 5, "all answers on disk")
        place.broker.latency_s = 0.05
        place.broker.start()
        await until(lambda: not away(place), "the session")
        assert await place.stop() == 0
        assert len(answered(place)) == 5
        assert set(place.outcomes()) == {"published"}


async def test_errors_wait_on_disk_too(tmp_path: Path) -> None:
    async with site(tmp_path / "models", spool_dir=tmp_path / "spool") as place:
        for number in range(10):
            place.snapshot(b"\xff\xd8\xff broken" + bytes([number]), qos=0)
        place.broker.stop()
        await until(lambda: place.metrics.value("spool_messages") == 10, "all errors on disk")
        place.broker.start()
        await until(lambda: len(place.errors) == 10)
        await until(lambda: place.outcomes() == {"rejected": 10})
    assert all(error["resent"] for error in place.errors)


async def test_the_end_of_an_alert_survives_a_long_outage(tmp_path: Path, waiting_place: dict[str, Any]) -> None:
    """Known before: a full outbox refused it, and the event stayed open for ever with those who read alerts."""
    triton = MemoryTriton()
    triton.add_model(signature("detector-onnx"), sees(NO_HELMET))
    triton.add_model(signature("detector-torch"), sees(NO_HELMET))
    write_model(tmp_path / "models", alerts={"hold_off_s": 0.2})
    async with site(tmp_path / "models", triton=triton, **waiting_place) as place:
        for number in range(20):
            place.snapshot(snapshot_json(IMAGE, device_id=f"camera-{number}"))
        await until(lambda: len(place.of("ai_alert")) == 20, "the starts")
        place.broker.stop()
        waiting = (lambda: place.metrics.value("spool_messages")) if waiting_place else (lambda: place.session.backlog)
        await until(lambda: waiting() >= (20 if waiting_place else 20 * WAITING_BYTES), "ends that are to be said")
        place.broker.start()
        await until(lambda: len({a["alert_id"] for a in place.of("ai_alert") if a["event"] == "end"}) == 20, "the ends")
        await until(lambda: place.metrics.value("alerts_total", model="detector", event="end") == 20)
