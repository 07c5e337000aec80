"""A broker with a spool: what becomes of answers while it is away, and how they come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.errors import BrokerUnavailable, PublishRefused
from gateway.messages import Publication
from gateway.testing import MemoryBroker
from tests.adapters.spooled import GRACE_S, MAX_BYTES, Place, answer, number_of, place, resent, seen_so_far
from tests.broker_session import DEADLINE_S, Running, running, until


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


async def test_a_session_that_is_taken_over_still_ends_the_gateway(hub: MemoryBroker, tmp_path: Path) -> None:
    async with place(hub, tmp_path) as here:
        await here.session.connected()
        async with running(hub.client("gateway")):
            with pytest.raises(BrokerUnavailable, match="client id 'gateway'"):
                async with asyncio.timeout(DEADLINE_S):
                    await here.session.task
