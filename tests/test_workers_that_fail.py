"""Workers that hang, cannot be started again, or fall behind: the others go on, and memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.live import Live
from gateway.messages import Publication
from gateway.metrics import Metrics
from gateway.service_manager import ServiceManager
from gateway.testing import MemoryBroker
from gateway.workers import front as front_module
from gateway.workers import processes as processes_module
from gateway.workers import relay as relay_module
from gateway.workers.aggregation import Merged
from gateway.workers.frames import BUFFER_BYTES, Channel, Publish, ToFront, WorkerState
from gateway.workers.front import Front
from gateway.workers.processes import Workers
from gateway.workers.relay import WINDOW_BYTES, Relay, Seat
from gateway.workers.relayed_broker import RelayedBroker
from gateway.workers.socket_folder import PREFIX, private_folder
from gateway.workers.standing import Standing
from gateway.workers.surface import Surface
from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, message, settings, snapshot_json
from tests.harness import until
from tests.worker_site import worker_site

READY = WorkerState(True, True, (), (), {}, None, 20.0, "info", "json")
WORKER = """
import asyncio, socket, sys
from gateway.messages import Publication
from gateway.workers.frames import WorkerState
from gateway.workers.relayed_broker import RelayedBroker

async def alive(broker):
    while True:
        broker.channel.send(WorkerState(True, True, (), (), {}, None, 20.0, "info", "json"))
        await asyncio.sleep(0.05)

async def main():
    broker = RelayedBroker()
    await broker.channel.open(socket.socket(fileno=int(sys.argv[1])))
    task = asyncio.create_task(alive(broker))
    async for message in broker.messages():
        await broker.publish(Publication("seen", message.payload[:40]))
        broker.acknowledge(message)

asyncio.run(main())
"""
"""A worker that says of each message that it has seen it."""
BIG = b" " * 800_000


@dataclass
class Processes:
    """The relay, real processes in its seats, and what they have seen."""

    broker: MemoryBroker
    relay: Relay
    workers: Workers
    commands: dict[int, list[str]]
    seen: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    keeping: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    async def start(self, index: int) -> None:
        self.keeping[index] = asyncio.create_task(self.workers.keep(index))

    async def ready(self, index: int) -> None:
        await until(lambda: self.relay.seats[index].channel is not None, f"worker {index + 1}")

    def send(self, number: int, camera: str) -> None:
        self.broker.publish(SNAPSHOT_TOPIC, f'{{"device_id": "{camera}", "n": {number}}}'.encode() + BIG)

    def seen_of(self, camera: str) -> int:
        return len({each for each in self.seen if f'"{camera}"'.encode() in each})


@contextlib.asynccontextmanager
async def processes() -> AsyncIterator[Processes]:
    config, broker = settings(workers=2), MemoryBroker()
    session, viewer = broker.client("gateway", [SNAPSHOT_TOPIC]), broker.client("viewer", ["seen"])

    def ask_again(why: str) -> None:
        place.asked.append(why)
        session.lose()

    def command(index: int, channel: int) -> Sequence[str]:
        return place.commands.get(index) or [sys.executable, "-c", WORKER, str(channel)]

    async def view() -> None:
        async for each in viewer.messages():
            viewer.acknowledge(each)
            place.seen.append(each.payload)

    relay = Relay(Live(config), session, 2, (), ask_again, lambda: None)
    place = Processes(broker, relay, Workers(relay, command, lambda: None), {})
    work = (viewer.run(), view(), session.run(), relay.run(), relay.tell_sessions(), relay.watch_seats())
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield place
    finally:
        place.workers.stop()
        place.workers.signal(signal.SIGKILL)
        await asyncio.gather(*place.keeping.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_worker_that_hangs_does_not_stop_the_others_and_nothing_is_lost(
    comes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "SILENT_S", 0.3)
    monkeypatch.setattr(relay_module, "HUNG_S", 60.0 if comes_back else 1.5)
    async with processes() as place:
        for index in range(2):
            await place.start(index)
            await place.ready(index)
        for camera in ("one", "two"):
            place.send(0, camera)
        await until(lambda: len(place.seen) == 2, "one message each")
        first = place.relay.owner(message(snapshot_json(b"", device_id="one")))
        stopped = place.workers._processes[first]
        stopped.send_signal(signal.SIGSTOP)
        for number in range(1, 25):  # twice what fits into the window of one
            for camera in ("one", "two"):
                place.send(number, camera)
        await until(lambda: place.seen_of("two") == 25, "all messages of the other camera")
        assert place.seen_of("one") == 1, "its worker hangs"
        if comes_back:
            stopped.send_signal(signal.SIGCONT)
        await until(lambda: place.seen_of("one") == 25, "the messages of the one that hung")
        said = "was silent" if comes_back else "has started again"
        assert place.asked == [f"worker {first + 1} {said}"]
        assert (stopped.poll() is None) == comes_back


DEAF = """
import asyncio, signal, socket, sys
from gateway.workers.frames import Samples, WorkerState
from gateway.workers.relayed_broker import RelayedBroker

async def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    broker = RelayedBroker(lambda: broker.channel.send(Samples([])))
    await broker.channel.open(socket.socket(fileno=int(sys.argv[1])))
    while True:
        broker.channel.send(WorkerState(True, True, (), (), {}, None, 2.0, "info", "json"))
        await asyncio.sleep(0.05)

asyncio.run(main())
"""
"""A worker that finishes nothing, not even itself."""


async def test_leaving_the_groups_and_the_drain_of_the_workers_have_one_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "MARGIN_S", 0.0)
    shared = f"$share/gateways/{SNAPSHOT_TOPIC}"
    config = settings(workers=1, drain_timeout_s=2.0, mqtt_leave_group=True, mqtt_input_topics=[shared])
    live, broker, metrics = Live(config), MemoryBroker(), Metrics()
    session = broker.client("gateway", [shared])
    relay = Relay(live, session, 1, (), lambda _why: None, lambda: None)
    workers = Workers(relay, lambda _index, channel: [sys.executable, "-c", DEAF, str(channel)], lambda: None)
    standing = Standing(relay.seats, session)
    front = Front(live, session, relay, workers, standing, metrics)
    surface = Surface(("127.0.0.1", 0), relay.seats, [tmp_path / "0"], standing, metrics, front.merged, config)
    running = asyncio.create_task(front.run(surface, ServiceManager()))
    await until(lambda: session.connected, "the session")
    broker.publish(SNAPSHOT_TOPIC, b"")
    await until(lambda: not relay.finished(time.monotonic()), "the snapshot")
    started = time.monotonic()
    front.stop()
    assert await running == 1  # the worker was killed
    assert time.monotonic() - started < 2.8
    assert broker.members(shared) == set()


async def test_a_front_that_stood_still_itself_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "HUNG_S", 0.5)
    async with processes() as place:
        await place.start(0)
        await place.ready(0)
        before = place.workers._processes[0]
        time.sleep(1.0)  # noqa: ASYNC251 - the loop stands still, which is the point
        place.send(1, "one")
        await until(lambda: place.seen_of("one") == 1, "its message to be seen")
        assert place.workers._processes[0] is before
        assert before.poll() is None


async def test_a_configuration_that_is_broken_later_does_not_end_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes_module, "LONGEST_PAUSE_S", 0.1)
    async with processes() as place:
        standing = Standing(place.relay.seats, place.broker.client("other"))
        await place.start(0)
        await place.ready(0)
        place.commands[1] = ["sh", "-c", "exit 2"]
        await place.start(1)
        away = "worker 2 of 2 cannot start: its configuration is wrong, see the log"
        await until(lambda: away in standing.report().reasons, "the worker to be away for it")
        assert not place.keeping[1].done()
        del place.commands[1]  # somebody mends the file
        await place.ready(1)
    assert place.workers.exit_code == 0


async def test_a_configuration_that_was_never_right_ends_the_gateway() -> None:
    async with processes() as place:
        place.commands[0] = ["sh", "-c", "exit 2"]
        await place.start(0)
        async with asyncio.timeout(5):
            await place.keeping[0]
    assert place.workers.exit_code == 2


async def test_what_a_worker_has_not_taken_is_bounded_and_answers_still_reach_it() -> None:
    broker = MemoryBroker()
    session = broker.client("gateway", [SNAPSHOT_TOPIC])
    relay = Relay(Live(settings(workers=2)), session, 1, (), lambda _why: None, lambda: None)
    mine, its = socket.socketpair()
    worker = RelayedBroker()
    await relay.attach(0, lambda: None).open(mine)
    await worker.channel.open(its)
    tasks = [asyncio.create_task(each) for each in (session.run(), relay.run(), relay.tell_sessions())]
    worker.channel.send(READY)
    await until(lambda: worker.connected, "the session")
    for qos in (0, 1):
        for _ in range(40):
            broker.publish(SNAPSHOT_TOPIC, BIG, qos=qos)
    await until(lambda: len(worker._inbox) >= WINDOW_BYTES // len(BIG), "a full window")
    async with asyncio.timeout(5):
        await worker.publish(Publication("t", b""))
    assert sum(len(each.payload) for each in worker._inbox) <= WINDOW_BYTES + len(BIG)
    messages = worker.messages()
    async with asyncio.timeout(10):
        for _ in range(80):
            worker.acknowledge(await anext(messages))
    await worker.close()
    await session.close()
    await asyncio.gather(*tasks)


async def test_lost_messages_of_an_absent_worker_are_counted(tmp_path: Path) -> None:
    async with worker_site(tmp_path) as place:
        await place.kill(0)
        await place.kill(1)
        for qos in (0, 1):
            place.snapshot(snapshot_json(jpeg()), qos=qos)
        lost = place.metrics.value
        await until(lambda: lost("ignored_messages_total", reason="worker_away") == 1, "the lost one")


# --- frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 2 * BUFFER_BYTES])
async def test_a_defect_of_the_receiver_is_logged_and_the_channel_goes_on(size: int) -> None:
    taken: list[int] = []

    def take(record: Any, _content: bytes) -> None:
        taken.append(record.number)
        if record.number == 1:
            raise ValueError("a defect")

    mine, its = socket.socketpair()
    sender: Channel[Any] = Channel(ToFront, lambda *_: None, lambda: None)
    receiver: Channel[Any] = Channel(ToFront, take, lambda: None, 3)
    await sender.open(mine)
    with capture_logs() as logs:
        await receiver.open(its)
        for number in (1, 2):
            sender.send(Publish(number, "t", 1, False, None, None, ()), bytes(size))
        await until(lambda: taken == [1, 2], "both")
    (line,) = logs
    assert (line["log_level"], line["worker"], str(line["exc_info"])) == ("error", 3, "a defect")
    for end in (sender, receiver):
        end.abort()


@pytest.mark.parametrize("size", [100, 2 * BUFFER_BYTES, 2**32 - 1])
async def test_what_is_no_frame_is_logged_with_its_worker(size: int) -> None:
    mine, its = socket.socketpair()
    lost = asyncio.Event()
    channel: Channel[Any] = Channel(ToFront, lambda *_: None, lost.set, 3)
    with capture_logs() as logs:
        await channel.open(its)
        sending = asyncio.to_thread(mine.sendall, size.to_bytes(4) + bytes(4) + b"\xc1" * min(size, 4 * BUFFER_BYTES))
        with contextlib.suppress(OSError):
            await sending
        async with asyncio.timeout(5):
            await lost.wait()
    (line,) = logs
    assert (line["log_level"], line["worker"]) == ("error", 3)
    mine.close()


# --- HTTP, and what is left behind -----------------------------------------------------------------------


async def test_headers_for_one_connection_only_are_not_passed_on(tmp_path: Path) -> None:
    got: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        got.append(request.headers)
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "worker-0"
        await web.UnixSite(runner, str(path)).start()
        channel: Channel[Any] = Channel(ToFront, lambda *_: None, lambda: None)
        seats = [Seat(0, channel=channel, state=READY)]
        standing, metrics = Standing(seats, MemoryBroker().client("gateway")), Metrics()
        front = Surface(("127.0.0.1", 0), seats, [path], standing, metrics, _nothing, settings())
        url = f"http://127.0.0.1:{await front.start()}/api/models"
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(url, headers={"Connection": "close, X-Hop", "X-Hop": "1", "X-Kept": "1"})
        await front.stop()
    await runner.cleanup()
    assert "X-Kept" in got[0]
    assert "X-Hop" not in got[0]


async def _nothing() -> Merged:
    return Merged([], [])


def test_folders_of_fronts_that_were_killed_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    with tempfile.TemporaryDirectory(prefix="t-") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        left, lives, foreign = (Path(place) / f"{PREFIX}{name}" for name in ("left", "lives", "foreign"))
        for folder in (left, lives, foreign):
            folder.mkdir()
            (folder / "worker-0").touch()
        (foreign / "thesis.txt").touch()
        (Path(place) / f"{PREFIX}link").symlink_to(tmp_path)
        lock = os.open(lives, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with private_folder() as own, private_folder() as another:
            assert own.exists()
            assert another.exists()
            assert not left.exists()
            assert (lives / "worker-0").exists()
            assert (foreign / "thesis.txt").exists()
        assert not own.exists()
        os.close(lock)
