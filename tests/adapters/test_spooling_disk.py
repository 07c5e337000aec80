"""A broker with a spool whose disk is full, broken or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.adapters.spool import spool_file
from gateway.adapters.spooling import with_spool
from gateway.errors import PublishRefused
from gateway.metrics import Metrics
from gateway.testing import MemoryBroker
from tests.adapters.full_disk import small_files
from tests.adapters.spooled import GRACE_S, MAX_BYTES, Place, answer, id_of, number_of, place, seen_so_far
from tests.broker_session import Running, until
from tests.flow.builders import settings


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


async def test_a_file_that_is_damaged_when_it_is_opened_again_strands_nobody(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    async with place(hub, tmp_path) as here:
        await here.session.connected()
        hub.stop()
        waiting = here.publish(*(answer(number) for number in range(5)))
        await here.on_disk(5)
        with small_files(4000):
            here.publish(answer(5, size=20_000))
            await until(lambda: here.events("failed") == 1 and not here.spool.is_open)
        here.spool.file.write_bytes(b"what a bad disk leaves" * 500)
        here.spool.file.with_name(here.spool.file.name + "-wal").unlink(missing_ok=True)
        hub.start()
        await until(lambda: all(task.done() for task in waiting))
        assert {type(task.exception()) for task in waiting} == {PublishRefused}
        assert number_of(await viewer.next()) == 5, "what was in memory is sent"
        assert here.events("damaged") == 1


def test_a_file_that_is_damaged_at_the_start_is_counted(hub: MemoryBroker, tmp_path: Path) -> None:
    spool_file(tmp_path, "gw").write_bytes(b"not a database at all" * 500)
    metrics = Metrics()
    with_spool(hub.client("gateway"), settings(gateway_id="gw"), tmp_path, metrics)
    assert metrics.value("spool_events_total", event="damaged") == 1


@pytest.mark.parametrize("killed", [False, True], ids=["room again", "killed"])
async def test_a_full_disk_holds_up_nobody_once_the_broker_is_back(
    hub: MemoryBroker, viewer: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Deleting needs room too: what cannot be deleted is not sent again by this process, only by one after a kill."""
    monkeypatch.setattr("gateway.adapters.spooling.RETRY_S", 0.05)
    count = 40
    here = Place(hub, tmp_path, GRACE_S, MAX_BYTES)
    await here.session.connected()
    hub.stop()
    here.publish(*(answer(number) for number in range(count)))
    await here.on_disk(count)
    with small_files(4000):
        hub.start()
        await here.done()
        messages = await viewer.take(count)
        await until(lambda: here.events("failed") >= 3)
        assert here.spool.count == count, "none could be deleted"
        if killed:
            await here.kill()
    if killed:
        here = Place(hub, tmp_path, GRACE_S, MAX_BYTES)
        again = await viewer.take(count)
        assert [id_of(message) for message in again] == [id_of(message) for message in messages]
    await here.on_disk(0)
    assert await seen_so_far(here, viewer) == [], "none comes twice"
    assert [number_of(message) for message in messages] == list(range(count))
    await here.close()


async def test_one_that_is_too_large_for_the_disk_lets_smaller_ones_pass(
    hub: MemoryBroker, viewer: Running, tmp_path: Path
) -> None:
    async with place(hub, tmp_path) as here:
        hub.stop()
        here.publish(answer(0, size=MAX_BYTES), *(answer(number) for number in range(1, 6)))
        await until(lambda: here.spool.count == 5 and here.broker.backlog < MAX_BYTES + 5000)
        assert here.broker.backlog > MAX_BYTES
        assert here.events("full") == 1
    hub.start()
    async with place(hub, tmp_path) as here:
        assert [number_of(message) for message in await viewer.take(5)] == [1, 2, 3, 4, 5]


async def test_a_stop_stores_the_smaller_ones_too(hub: MemoryBroker, viewer: Running, tmp_path: Path) -> None:
    async with place(hub, tmp_path, grace_s=60.0) as first:
        hub.stop()
        first.publish(answer(0, size=MAX_BYTES), answer(1))
        await until(lambda: first.broker.backlog > MAX_BYTES)
    hub.start()
    async with place(hub, tmp_path) as here:
        assert number_of(await viewer.next()) == 1
        await here.on_disk(0)
