"""An orderly stop of one of several gateways that share their cameras."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import leaving
from gateway.testing import MemoryBroker, MemoryTriton
from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, settings, signature, snapshot_json
from tests.harness import HELMET, TIMEOUT_S, sees, site, until, write_model

SHARED = (f"$share/gateways/{SNAPSHOT_TOPIC}",)
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
    names: dict[str, Any] = {"gateway_id": name, "aio_mqtt_client_id": name}
    write_model(repository)
    return site(repository, broker=broker, triton=own, mqtt_input_topics=SHARED, **names, **more)


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


async def test_by_default_its_share_is_kept_for_it(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with replica(tmp_path, broker, "first", triton()) as first:
        assert await first.stop() == 0
        assert broker.members(SHARED[0]) == {"first"}


def test_leaving_a_group_needs_one() -> None:
    with pytest.raises(ValidationError, match="MQTT_LEAVE_GROUP needs a topic"):
        settings(mqtt_leave_group=True)
