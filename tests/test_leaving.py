"""An orderly stop of one of several gateways that share their cameras."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import leaving
from gateway.testing import MemoryBroker, MemoryTriton
from gateway.workers.acknowledgements import Acknowledgements
from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, settings, signature, snapshot_json
from tests.harness import HELMET, TIMEOUT_S, sees, site, until, write_model
from tests.worker_site import worker_site

SHARED = (f"$share/gateways/{SNAPSHOT_TOPIC}",)
OWN_TOPIC = "edge-ai/bu/plant/own/camera/snapshots"
VARIANTS = ("detector-onnx", "detector-torch")
JPEG = jpeg()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's own times, only shorter."""
    monkeypatch.setattr(leaving, "QUIET_S", 0.1)


def triton() -> MemoryTriton:
    place = MemoryTriton()
    for name in VARIANTS:
        place.add_model(signature(name), sees(HELMET))
    return place


def replica(repository: Path, broker: MemoryBroker, name: str, own: MemoryTriton, **more: Any) -> Any:
    """One of several gateways on a broker."""
    names: dict[str, Any] = {"gateway_id": name, "aio_mqtt_client_id": name, "mqtt_input_topics": SHARED}
    write_model(repository)
    return site(repository, broker=broker, triton=own, **{**names, **more})


async def test_the_others_take_over_while_what_is_here_is_finished(tmp_path: Path) -> None:
    broker, slow = MemoryBroker(), triton()
    async with (
        replica(tmp_path / "first", broker, "first", slow, mqtt_leave_group=True) as first,
        replica(tmp_path / "second", broker, "second", triton()) as second,
    ):
        for name in VARIANTS:
            slow.hold(name)
        for _ in range(4):
            first.snapshot(snapshot_json(JPEG))
        await until(lambda: (first.received, second.received) == (2, 2), "their shares")
        stopping = asyncio.create_task(first.stop())
        await until(lambda: not first.gateway.health.report().ready, "unreadiness")
        await until(lambda: "first" not in broker.members(SHARED[0]), "the end of its membership")
        for _ in range(4):
            first.snapshot(snapshot_json(JPEG))
        await second.answered(2 + 4)
        assert first.received == 2
        for name in VARIANTS:
            slow.release(name)
        async with asyncio.timeout(TIMEOUT_S):
            assert await stopping == 0
        await second.answered(8)
        assert len({body["result_id"] for body in second.results}) == 8


async def test_what_cannot_be_finished_stays_with_the_broker(tmp_path: Path) -> None:
    broker, slow = MemoryBroker(), triton()
    async with replica(tmp_path, broker, "first", slow, mqtt_leave_group=True, drain_timeout_s=0.4) as first:
        for name in VARIANTS:
            slow.hold(name)
        first.snapshot(snapshot_json(JPEG))
        await until(lambda: first.received == 1, "the snapshot")
        assert await first.stop() == 0
    async with replica(tmp_path, broker, "first", triton()) as again:
        await again.answered(1)
        assert len(again.results) == 1


async def test_topics_without_a_group_go_on_and_hold_nothing_up(tmp_path: Path) -> None:
    broker = MemoryBroker()
    broker.latency_s = 0.05  # so that something is always under way
    topics = {"mqtt_input_topics": (*SHARED, OWN_TOPIC), "mqtt_leave_group": True, "drain_timeout_s": 600}
    async with replica(tmp_path, broker, "first", triton(), **topics) as first:

        async def send() -> None:
            while True:
                first.snapshot(snapshot_json(JPEG), OWN_TOPIC)
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(send())
        await first.answered(1)
        before = first.received
        async with asyncio.timeout(TIMEOUT_S):
            assert await first.stop() == 0
        sending.cancel()
        assert first.received > before


async def test_it_goes_on_while_the_broker_has_no_room_to_send(tmp_path: Path) -> None:
    broker = MemoryBroker()
    member = broker.client("first", SHARED, receive_maximum=1)
    acks, taken = Acknowledgements(member), 0

    async def work() -> None:
        nonlocal taken
        async for message in member.messages():
            number = acks.open(message, 0)
            await asyncio.sleep(2 * leaving.QUIET_S)
            acks.settle(number)
            taken += 1

    tasks = [asyncio.create_task(each) for each in (member.run(), work())]
    await until(lambda: member.connected, "the session")
    for _ in range(3):
        broker.publish(SNAPSHOT_TOPIC, b"")
    await leaving.leave_groups(member, acks.finished, TIMEOUT_S)
    assert taken == 3
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_stop_while_the_broker_is_away_waits_for_it_within_its_limit(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with replica(tmp_path, broker, "first", triton(), mqtt_leave_group=True) as first:
        broker.stop()
        await until(lambda: not first.gateway.health.report().ready, "the end of the session")
        stopping = asyncio.create_task(first.stop())
        await until(lambda: first.gateway.health.stopping, "the stop")
        broker.start()
        async with asyncio.timeout(TIMEOUT_S):
            assert await stopping == 0
        assert broker.members(SHARED[0]) == set()


async def test_workers_have_until_the_deadline_of_the_front(tmp_path: Path) -> None:
    slow = triton()
    async with worker_site(tmp_path, triton=lambda: slow, drain_timeout_s=600) as place:
        for name in VARIANTS:
            slow.hold(name)
        place.snapshot(snapshot_json(JPEG))
        await until(lambda: any(map(slow.held_requests, VARIANTS)), "the snapshot")
        place.relay.stop(time.monotonic() + 0.2)
        await place.relay.scrape()
        async with asyncio.timeout(TIMEOUT_S):
            for worker in place.workers.values():
                await worker.stop()
        assert not place.of("ai_inference_error")  # as there is at the end of the snapshot's own time


async def test_by_default_its_share_is_kept_for_it(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with replica(tmp_path, broker, "first", triton()) as first:
        assert await first.stop() == 0
        assert broker.members(SHARED[0]) == {"first"}


def test_leaving_a_group_needs_one() -> None:
    with pytest.raises(ValidationError, match="MQTT_LEAVE_GROUP needs a topic"):
        settings(mqtt_leave_group=True)
