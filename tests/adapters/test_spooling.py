"""A broker with a spool: what becomes of answers while it is away, and how they come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.adapters.spool import Spool, SpoolFailed
from gateway.adapters.spooling import SpooledBroker
from gateway.errors import BrokerUnavailable, PublishRefused
from gateway.messages import Message, Publication
from gateway.metrics import Metrics
from gateway.testing import MemoryBroker
from tests.broker_session import DEADLINE_S, Running, running, until

GRACE_S = 0.05
MAX_BYTES = 2**20


def answer(number: int, kind: str = "ai_inference_result", topic: str = "out", size: int = 0) -> Publication:
    body = json.dumps({"message_type": kind, "n": number, "_": "x" * size}).encode()
    return Publication(topic, body, user_properties=(("type", kind), ("id", f"{number}-{kind}")))


class Place:
    """A gateway's session with a spool, and a viewer on its topic."""

    def __init__(self, hub: MemoryBroker, folder: Path, grace_s: float, max_bytes: int) -> None:
        self.hub = hub
        self.metrics = Metrics()
        self.spool = Spool(folder, "gw", max_bytes)
        with suppress(SpoolFailed):
            self.spool.open()
        self.broker = SpooledBroker(hub.client("gateway"), self.spool, self.metrics, grace_s)
        self.session = Running(self.broker)
        self._publishing: list[asyncio.Task[None]] = []

    def publish(self, *publications: Publication) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.broker.publish(each)) for each in publications]
        self._publishing += tasks
        return tasks

    async def on_disk(self, count: int) -> None:
        await until(lambda: self.metrics.value("spool_messages") == count and self.broker.backlog == 0)

    def events(self, event: str) -> float:
        return self.metrics.value("spool_events_total", event=event)

    async def done(self) -> None:
        """Wait for all that was published; raises what a publisher would see."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*self._publishing)

    async def kill(self) -> None:
        """As kill -9: nobody stores anything any more, and the lock goes with the process."""
        await self.session.crash()
        for task in self._publishing:
            task.cancel()
        await self.spool.close()

    async def close(self) -> None:
        await self.session.close()
        await asyncio.gather(*self._publishing, return_exceptions=True)


@asynccontextmanager
async def place(
    hub: MemoryBroker, folder: Path, *, grace_s: float = GRACE_S, max_bytes: int = MAX_BYTES
) -> AsyncIterator[Place]:
    it = Place(hub, folder, grace_s, max_bytes)
    try:
        yield it
    finally:
        await it.close()


@pytest.fixture
async def hub() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def viewer(hub: MemoryBroker) -> AsyncIterator[Running]:
    async with running(hub.client("viewer", ["out"])) as session:
        yield session


def number_of(message: Message) -> int:
    return int(json.loads(message.payload)["n"])


def resent(message: Message) -> bool:
    """Told the same way to readers of both versions of MQTT."""
    in_body = json.loads(message.payload).get("resent", False)
    assert (("resent", "true") in message.properties.user_properties) == in_body
    return bool(in_body)


async def test_answers_wait_on_disk_and_come_back_in_order_marked_and_acknowledged(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    async with place(hub, tmp_path) as here:
        await here.session.connected()
        hub.stop()
        waiting = here.publish(*(answer(number) for number in range(20)))
        await here.on_disk(20)
        assert here.broker.backlog == 0, "their memory is free"
        assert not any(task.done() for task in waiting), "and whoever publishes still waits"
        hub.start()
        await here.done()
        messages = await viewer.take(20)
        assert [number_of(message) for message in messages] == list(range(20))
        assert all(resent(message) for message in messages)
        assert dict(messages[0].properties.user_properties)["id"] == "0-ai_inference_result"
        await here.on_disk(0)
        assert (here.events("stored"), here.events("resent")) == (20, 20)


async def test_a_blip_costs_no_disk(hub: MemoryBroker, viewer: Running, tmp_path: Path) -> None:
    async with place(hub, tmp_path, grace_s=30.0) as here:
        await here.session.connected()
        hub.stop()
        here.publish(answer(1), answer(2))
        await asyncio.sleep(0.2)  # the blip
        assert here.broker.backlog > 0
        hub.start()
        await here.done()
        assert [(number_of(message), resent(message)) for message in await viewer.take(2)] == [(1, False), (2, False)]
        assert here.events("stored") == 0


async def test_only_answers_are_stored(hub: MemoryBroker, viewer: Running, tmp_path: Path) -> None:
    """A status or a summary is true at its time only."""
    kinds = ("ai_inference_result", "dual_backend_comparison", "ai_inference_error", "ai_alert", "ai_metrics")
    async with place(hub, tmp_path) as here:
        hub.stop()
        here.publish(*(answer(number, kind) for number, kind in enumerate(kinds)), Publication("out", b'{"n": 9}'))
        await here.on_disk(4)
        hub.start()
        await here.done()
        assert {number_of(message) for message in await viewer.take(6) if not resent(message)} == {4, 9}


async def test_what_is_fresh_goes_first(
    hub: MemoryBroker, viewer: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.adapters.spooling.GAP_S", 60.0)
    async with place(hub, tmp_path) as here:
        hub.stop()
        here.publish(*(answer(number) for number in range(60)))
        await here.on_disk(60)
        hub.latency_s = 0.8
        hub.start()
        await here.session.connected()
        (*_, last) = here.publish(*(answer(1000 + number) for number in range(5)))
        first = await viewer.take(5)
        hub.latency_s = 0.0
        await until(last.done)
        assert here.events("resent") < 30, "no old one was begun while a fresh one was on its way"
        await here.done()
        numbers = [number_of(message) for message in (*first, *await viewer.take(60))]
        assert [number for number in numbers if number < 1000] == list(range(60)), "oldest first"


async def test_a_busy_gateway_sends_what_is_on_disk_all_the_same(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    async with place(hub, tmp_path) as here:
        hub.stop()
        here.publish(*(answer(number) for number in range(3)))
        await here.on_disk(3)
        hub.latency_s = 60.0
        hub.start()
        await here.session.connected()
        (fresh,) = here.publish(answer(1000))
        assert number_of(await viewer.next()) == 1000
        hub.latency_s = 0.0
        await until(lambda: here.events("resent") >= 2)
        assert not fresh.done()


async def test_a_killed_gateway_leaves_its_answers_to_the_next(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    first = Place(hub, tmp_path, GRACE_S, MAX_BYTES)
    await first.session.connected()
    hub.stop()
    first.publish(*(answer(number) for number in range(5)))
    await first.on_disk(5)
    await first.kill()
    hub.start()
    async with place(hub, tmp_path) as here:
        assert here.metrics.value("spool_messages") == 5
        messages = await viewer.take(5)
        assert [number_of(message) for message in messages] == list(range(5))
        assert all(resent(message) for message in messages)
        await here.on_disk(0)


async def test_a_crash_while_resending_sends_at_most_one_twice(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    count = 60
    first = Place(hub, tmp_path, GRACE_S, MAX_BYTES)
    await first.session.connected()
    hub.stop()
    first.publish(*(answer(number) for number in range(count)))
    await first.on_disk(count)
    hub.start()
    await until(lambda: first.events("resent") >= 10)
    await first.kill()
    async with place(hub, tmp_path) as here:
        await here.on_disk(0)
        numbers = await seen_so_far(here, viewer)
    assert set(numbers) == set(range(count))
    assert len(numbers) <= count + 1


async def seen_so_far(here: Place, viewer: Running) -> list[int]:
    """The numbers of all that the viewer got; a marker is the end."""
    await asyncio.gather(*here.publish(Publication("out", b'{"n": -1}')))
    found = []
    while (number := number_of(await viewer.next())) != -1:
        found.append(number)
    return found


async def test_an_answer_that_is_made_anew_takes_the_place_of_the_one_of_an_earlier_run(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    """The broker sends the snapshots of a killed gateway again: each is answered once for all that."""
    first = Place(hub, tmp_path, GRACE_S, MAX_BYTES)
    hub.stop()
    first.publish(*(answer(number) for number in range(3)))
    await first.on_disk(3)
    await first.kill()
    async with place(hub, tmp_path) as here:
        here.publish(answer(2), answer(1))
        hub.start()
        await here.done()
        await here.on_disk(0)
        assert sorted(await seen_so_far(here, viewer)) == [0, 1, 2]


async def test_a_stop_while_the_broker_is_away_stores_what_is_in_memory(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    async with place(hub, tmp_path, grace_s=60.0) as first:
        hub.stop()
        waiting = first.publish(answer(1), answer(2))
        await asyncio.sleep(0)
        waiting[0].cancel()  # nobody waits for it any more, and it is an answer all the same
    assert isinstance(waiting[1].exception(), BrokerUnavailable)
    hub.start()
    async with place(hub, tmp_path) as here:
        assert [number_of(message) for message in await viewer.take(2)] == [1, 2]
        await here.on_disk(0)


async def test_an_answer_that_the_broker_refuses_is_not_sent_for_ever(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    hub.deny("secret")
    async with place(hub, tmp_path) as here:
        hub.stop()
        refused, other = here.publish(answer(1, topic="secret"), answer(2))
        await here.on_disk(2)
        with capture_logs() as logs:
            hub.start()
            await until(lambda: refused.done() and other.done())
        assert isinstance(refused.exception(), PublishRefused)
        assert number_of(await viewer.next()) == 2
        await here.on_disk(0)
        (said,) = (entry for entry in logs if entry["log_level"] == "error")
        assert said["topic"] == "secret"
        assert "payload" not in said


async def test_beyond_its_bound_answers_wait_in_memory(hub: MemoryBroker, viewer: Running, tmp_path: Path) -> None:
    count = 60
    async with place(hub, tmp_path) as here:
        hub.stop()
        with capture_logs() as logs:
            here.publish(*(answer(number, size=20_000) for number in range(count)))
            await until(lambda: here.events("full") > 0)
        assert 0 < here.spool.count < count
        assert here.broker.backlog > 0
        assert here.spool.bytes <= MAX_BYTES
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [
            "The spool is full; answers wait in memory, and snapshots behind them"
        ]
        hub.start()
        await here.done()
        assert {number_of(message) for message in await viewer.take(count)} == set(range(count))


async def test_without_a_working_disk_answers_wait_in_memory_and_the_disk_is_tried_again(
    hub: MemoryBroker, viewer: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.adapters.spooling.RETRY_S", 0.05)
    (tmp_path / "spool").write_text("a file where the folder should be")
    async with place(hub, tmp_path / "spool") as here:
        await here.session.connected()
        here.publish(answer(1))
        message = await viewer.next()
        assert number_of(message) == 1, "a broken disk holds up no fresh answer"
        viewer.broker.acknowledge(message)
        hub.stop()
        with capture_logs() as logs:
            here.publish(answer(2))
            await until(lambda: here.events("failed") >= 4)
        assert len([entry for entry in logs if entry["log_level"] == "error"]) <= 1, "said once"
        assert here.broker.backlog > 0
        (tmp_path / "spool").unlink()
        await here.on_disk(1)
        hub.start()
        assert number_of(await viewer.next()) == 2


async def test_answers_that_a_damaged_file_loses_are_told_to_whoever_waits(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    """Or a ticket would stay open, and hold back every later acknowledgement."""
    async with place(hub, tmp_path) as here:
        hub.stop()
        waiting = here.publish(*(answer(number, size=5000) for number in range(100)))
        await here.on_disk(100)
        with here.spool.file.open("r+b") as file:
            size = here.spool.file.stat().st_size
            file.seek(4096)
            file.write(b"\xa5" * (size - 4096))
        hub.start()
        await until(lambda: all(task.done() for task in waiting))
        assert {type(task.exception()) for task in waiting} <= {PublishRefused, type(None)}
        assert PublishRefused in {type(task.exception()) for task in waiting}
        (fresh,) = here.publish(answer(1000))
        await until(fresh.done)
        assert fresh.exception() is None


async def test_a_session_that_is_taken_over_still_ends_the_gateway(hub: MemoryBroker, tmp_path: Path) -> None:
    async with place(hub, tmp_path) as here:
        await here.session.connected()
        async with running(hub.client("gateway")):
            with pytest.raises(BrokerUnavailable, match="client id 'gateway'"):
                async with asyncio.timeout(DEADLINE_S):
                    await here.session.task
