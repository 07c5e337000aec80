"""Cameras to a broker in memory: the newest at its turn, nothing queued, nothing quiet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.cameras.newest import Newest, Picture
from gateway.cameras.reading import source_of
from gateway.cameras.sending import Feed, run_cameras
from gateway.cameras.spec import CameraSource
from gateway.cameras.status import read_health
from gateway.errors import UserError
from gateway.messages import Message
from gateway.testing import MemoryBroker
from tests.broker_session import until
from tests.flow.builders import jpeg

TOPIC = "in"


class Counting:
    """A camera that has a new picture whenever the one before was looked at, and says which one it is."""

    def __init__(self, failures: list[Exception] | None = None) -> None:
        self.made = 0
        self.failures = failures or []

    def play(self, newest: Newest) -> Iterator[None]:
        if self.failures:
            raise self.failures.pop(0)
        while True:
            self.made += 1
            newest.hand_over(Picture(partial(b"%d".__mod__, self.made), 1.5))
            yield


class Seen:
    """What arrived on the topic."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.messages: list[Message] = []
        self._client = broker.client("seen", (TOPIC,))
        self._tasks = [asyncio.create_task(self._client.run()), asyncio.create_task(self._collect())]

    async def _collect(self) -> None:
        async for message in self._client.messages():
            self._client.acknowledge(message)
            self.messages.append(message)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


@pytest.fixture
async def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def seen(broker: MemoryBroker) -> AsyncIterator[Seen]:
    seen = Seen(broker)
    yield seen
    await seen.stop()


@contextlib.asynccontextmanager
async def sending(broker: MemoryBroker, *feeds: Feed, health: Path | None = None) -> AsyncIterator[asyncio.Task[None]]:
    """Run them until the block ends; then they end in order."""
    stopping = asyncio.Event()
    task = asyncio.create_task(run_cameras(broker.client("cameras"), feeds, stopping, health))
    try:
        yield task
    finally:
        stopping.set()
        async with asyncio.timeout(20):
            await asyncio.wait({task})
    task.result()


def camera(device: str = "gate", rate: float = 50, **more: object) -> CameraSource:
    return CameraSource.model_validate({"device": device, "source": "somewhere", "rate": rate, **more})


async def test_json_and_raw_snapshots(broker: MemoryBroker, seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    files = source_of(camera(source=str(tmp_path)), 10_000, 2**20)
    async with sending(broker, Feed(camera(), Counting(), TOPIC), Feed(camera("b", form="raw"), files, TOPIC)):
        await until(lambda: len(seen.messages) >= 6)
    bodies = [json.loads(message.payload) for message in seen.messages if message.payload[:1] == b"{"]
    assert {body["device_id"] for body in bodies} == {"gate"}
    assert bodies[0]["timestamp"] == 1.5
    assert jpeg() in [message.payload for message in seen.messages]
    assert {message.qos for message in seen.messages} == {1}


async def test_a_bad_file_stops_no_others_and_is_said_once(broker: MemoryBroker, seen: Seen, film: Path) -> None:
    (film.parent / "a.mp4").write_bytes(b"no film")
    (film.parent / "z.jpg").write_bytes(jpeg())
    feed = Feed(camera(form="raw"), source_of(camera(source=str(film.parent)), 10_000, 2**20), TOPIC)
    with capture_logs() as log:
        async with sending(broker, feed):
            await until(lambda: [message.payload for message in seen.messages].count(jpeg()) >= 2)
    assert [line["file"] for line in log if line["event"] == "A file is passed over"] == ["a.mp4"]
    assert len(seen.messages) > 2


async def test_a_file_that_is_too_large_is_not_read(broker: MemoryBroker, seen: Seen, tmp_path: Path) -> None:
    limit = 2**16
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**40)  # more than any memory
    (tmp_path / "b.jpg").write_bytes(bytes(limit * 3 // 4))  # becomes more than the limit in base64
    (tmp_path / "c.jpg").write_bytes(bytes((limit - 2048) * 3 // 4))
    feed = Feed(camera(), source_of(camera(source=str(tmp_path)), 10_000, limit), TOPIC)
    with capture_logs() as log:
        async with sending(broker, feed):
            await until(lambda: len(seen.messages) >= 3)
    passed = {line["file"]: line["reason"] for line in log if line["event"] == "A file is passed over"}
    assert passed == dict.fromkeys(("a.jpg", "b.jpg"), "is larger than 47616 bytes")
    assert all(len(message.payload) <= limit for message in seen.messages)


async def test_a_frame_that_is_too_large_is_said_once(broker: MemoryBroker, film: Path) -> None:
    source = source_of(camera(source=str(film)), 10_000, 2048 + 100)
    with capture_logs() as log:
        async with sending(broker, Feed(camera(), source, TOPIC)):
            await until(lambda: any("snapshot" in line["event"] for line in log))
    (line,) = (line for line in log if "snapshot" in line["event"])
    assert line["reason"].endswith("allows (75 bytes). Set max_width, or a lower quality")


async def test_pipes_and_devices_hold_up_no_others(broker: MemoryBroker, seen: Seen, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.mp4")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    (tmp_path / "d:1.jpg").write_bytes(jpeg())
    feed = Feed(camera(form="raw"), source_of(camera(source=str(tmp_path)), 10_000, 2**20), TOPIC)
    with capture_logs() as log:
        async with sending(broker, feed):
            await until(lambda: len(seen.messages) >= 2)
    assert [line["file"] for line in log if line["event"] == "A file is passed over"] == ["a.jpg", "b.mp4", "c.jpg"]


def test_a_colon_in_the_name_of_a_film_is_no_address(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film.rename(film.with_name("cam:1.mp4"))
    monkeypatch.chdir(film.parent)
    source = source_of(camera(source="."), 10_000, 2**20)
    assert sum(1 for _ in source.play(Newest())) == 10


@pytest.mark.parametrize(("keyframes", "frames"), [(False, 10), (True, 1)])
def test_of_a_film_every_frame_or_the_key_frames_alone(film: Path, keyframes: bool, frames: int) -> None:
    source = source_of(camera(source=str(film), keyframes=keyframes), 10_000, 2**20)
    assert sum(1 for _ in source.play(Newest())) == frames


async def test_while_the_broker_is_away_pictures_are_left_out(broker: MemoryBroker, seen: Seen) -> None:
    source = Counting()
    async with sending(broker, Feed(camera(form="raw"), source, TOPIC)):
        await until(lambda: len(seen.messages) >= 2)
        broker.stop()
        made, got = source.made, len(seen.messages)
        await until(lambda: source.made >= made + 10)
        assert len(seen.messages) <= got + 1
        broker.start()
        await until(lambda: len(seen.messages) >= got + 5)
    numbers = [int(message.payload) for message in seen.messages]
    assert numbers == sorted(set(numbers))
    gaps = [after - before for before, after in pairwise(numbers)]
    assert max(gaps) >= 8, "the pictures of the outage came later"


async def test_a_slow_broker_gets_newer_pictures_and_not_more(broker: MemoryBroker, seen: Seen, film: Path) -> None:
    broker.latency_s = 0.25
    feed = Feed(camera(rate=60, form="raw"), source_of(camera(source=str(film)), 10_000, 2**20), TOPIC)
    loop = asyncio.get_running_loop()
    async with sending(broker, feed):
        await until(lambda: len(seen.messages) >= 1)
        started = loop.time()
        await until(lambda: len(seen.messages) >= 5)
        assert loop.time() - started >= 0.9


async def test_a_camera_that_is_lost_is_tried_again_and_said_once(broker: MemoryBroker, seen: Seen) -> None:
    source = Counting([UserError("Connection refused", fix=""), UserError("Connection refused", fix="")])
    with capture_logs() as log:
        async with sending(
            broker, Feed(camera(source="http://host/x?user=operator&password=pass-word-7"), source, TOPIC)
        ):
            await until(lambda: len(seen.messages) >= 1)
    said = [line["event"] for line in log if line["event"].startswith("A camera")]
    assert said == ["A camera cannot be read; it is tried again", "A camera is read"]
    assert log[0]["reason"] == "Connection refused"
    assert "pass-word-7" not in str(log)


async def test_a_refusal_of_the_broker_is_said_once(broker: MemoryBroker, seen: Seen) -> None:
    broker.deny(TOPIC)
    source = Counting()
    with capture_logs() as log:

        def refusals() -> int:
            return [line["event"] for line in log].count("A camera's snapshot was not sent")

        async with sending(broker, Feed(camera(), source, TOPIC)):
            await until(lambda: refusals() > 0)
            made = source.made
            await until(lambda: source.made >= made + 5)
    assert refusals() == 1
    assert seen.messages == []


async def test_a_defect_ends_it(broker: MemoryBroker) -> None:
    with pytest.raises(ExceptionGroup) as ended:
        async with sending(broker, Feed(camera(), Counting([ZeroDivisionError("defect")]), TOPIC)) as task:
            await asyncio.wait({task}, timeout=20)
    assert ended.group_contains(ZeroDivisionError)


async def test_one_that_hears_nothing_of_its_cameras_is_not_healthy(broker: MemoryBroker, tmp_path: Path) -> None:
    health = tmp_path / "health.json"
    async with sending(broker, Feed(camera(), Counting([UserError("gone", fix="")] * 9), TOPIC), health=health):
        await until(health.exists)
    assert read_health(health) == (False, ["gate does not send, 0 so far: not read yet"])


def test_a_file_that_is_not_written_any_more_is_not_healthy(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    path.write_text('{"written_at": 1000, "cameras": {"gate": {"sends": true, "sent": 3, "reason": ""}}}')
    healthy, (line,) = read_health(path)
    assert not healthy
    assert line.startswith("nothing has been written for ")
