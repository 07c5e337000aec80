"""Payloads that could not be processed reach a topic of their own, so many and no more."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.config import Settings
from gateway.errors import BackendRejected, BackendUnavailable, ConfigError, InternalError, SnapshotError
from gateway.flow.dead_letters import MAX_WAITING_BYTES, DeadLetters
from gateway.live import Live
from gateway.messages import Message, MessageProperties
from gateway.metrics import Metrics
from gateway.models.loops import refuse_loops
from gateway.testing import MemoryBroker
from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, origin, settings, snapshot_json, user_properties
from tests.harness import Site, site, until

TEMPLATE = "dead/{facility}/{device_id}"
BROKEN = b"\xff\xd8\xff\xe0 a JPEG that ends here"


@contextlib.asynccontextmanager
async def letters_of(
    folder: Path, broker: MemoryBroker | None = None, **more: Any
) -> AsyncIterator[tuple[Site, list[Message]]]:
    """A site with a dead letter topic, and the dead letters so far."""
    broker, found = broker or MemoryBroker(), []
    reader = broker.client("reader", ["dead/#"])

    async def read() -> None:
        async for letter in reader.messages():
            reader.acknowledge(letter)
            found.append(letter)

    tasks = [asyncio.create_task(reader.run()), asyncio.create_task(read())]
    try:
        await until(lambda: reader.connected)
        async with site(folder, broker=broker, **{"dead_letter_topic": TEMPLATE, **more}) as place:
            yield place, found
    finally:
        await reader.close()
        await asyncio.gather(*tasks)


def counted(place: Site, outcome: str) -> float:
    return place.metrics.value("dead_letters_total", outcome=outcome)


async def test_what_cannot_be_read_arrives_as_it_was_sent_and_says_why(tmp_path: Path) -> None:
    trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    asked = MessageProperties("text/\x00html", None, b"42", None, (trace, ("device_id", "cam\x01era/1")))
    async with letters_of(tmp_path) as (place, letters):
        place.snapshot(b"no snapshot", properties=asked)
        await until(lambda: place.outcomes() == {"rejected": 1})
        await until(lambda: len(letters) == 1)
        letter, error = letters[0], place.errors[0]
        assert counted(place, "sent") == 1
    assert (letter.topic, letter.payload, letter.qos, letter.retain) == (
        "dead/plant/cam_era_1", b"no snapshot", 1, False,
    )  # fmt: skip
    assert letter.properties.content_type == "application/octet-stream"
    assert letter.properties.correlation_data == b"42"
    assert letter.properties.response_topic is None
    user = dict(letter.properties.user_properties)
    assert user.pop("timestamp")
    assert user == {
        "result_id": error["result_id"],
        "code": "PAYLOAD_INVALID",
        "reason": error["error"]["message"],
        "topic": SNAPSHOT_TOPIC,
        "device_id": "cam_era/1",
        "part": "payload",
        "sha256": hashlib.sha256(b"no snapshot").hexdigest(),
        "traceparent": trace[1],
    }


@pytest.mark.parametrize(
    ("payload", "part", "content_type", "content"),
    [
        (BROKEN, "payload", "image/jpeg", BROKEN),
        (snapshot_json(BROKEN), "picture", "image/jpeg", BROKEN),
        (b'{"image_data": 1}', "payload", "application/json", b'{"image_data": 1}'),
    ],
    ids=["raw picture", "picture in JSON", "JSON"],
)
async def test_of_a_picture_that_fails_later_the_picture_is_left(
    tmp_path: Path, payload: bytes, part: str, content_type: str, content: bytes
) -> None:
    async with letters_of(tmp_path) as (place, letters):
        place.snapshot(payload)
        await until(lambda: len(letters) == 1)
        await until(lambda: place.outcomes() == {"rejected": 1})
    user = dict(letters[0].properties.user_properties)
    assert (user["part"], letters[0].properties.content_type, letters[0].payload) == (part, content_type, content)
    assert user["sha256"] == hashlib.sha256(payload).hexdigest(), "of what was sent"


@pytest.mark.parametrize(("error", "letters"), [(BackendRejected("no"), 1), (BackendUnavailable("gone"), 0)])
async def test_what_may_succeed_later_is_no_dead_letter(tmp_path: Path, error: SnapshotError, letters: int) -> None:
    async with letters_of(tmp_path, snapshot_deadline_ms=100, max_payload_bytes=4096) as (place, found):
        for variant in ("detector-onnx", "detector-torch"):
            place.triton.fail(variant, error)
        place.snapshot(jpeg())
        place.snapshot(bytes(5000))
        await until(lambda: sum(place.outcomes().values()) == 2)
        assert {body["error"]["code"] for body in place.errors} == {error.code, "PAYLOAD_TOO_LARGE"}
        assert counted(place, "sent") == letters
        await until(lambda: len(found) == letters)


async def test_those_who_ask_over_http_leave_no_dead_letters(tmp_path: Path) -> None:
    async with letters_of(tmp_path, dead_letters_per_minute=1) as (place, letters), aiohttp.ClientSession() as session:
        async with session.post(f"http://127.0.0.1:{place.gateway.http_port}/v1/infer", data=BROKEN) as response:
            assert response.status == 422
        place.snapshot(b"no snapshot")
        await until(lambda: bool(letters))
        assert [letter.payload for letter in letters] == [b"no snapshot"]


async def test_a_misconfiguration_does_not_echo_everything(tmp_path: Path) -> None:
    async with letters_of(tmp_path, dead_letters_per_minute=20) as (place, letters):
        for number in range(50):
            place.snapshot(b"no snapshot %d" % number)
        await until(lambda: place.outcomes() == {"rejected": 50})
        assert len(place.errors) == 50, "each is told all the same"
        assert counted(place, "sent") + counted(place, "limited") == 50
        assert 2 <= counted(place, "sent") < 10
        await until(lambda: len(letters) == counted(place, "sent"))


async def test_a_broker_that_refuses_dead_letters_holds_up_nothing(tmp_path: Path) -> None:
    broker = MemoryBroker()
    broker.deny("dead/#")
    async with letters_of(tmp_path, broker) as (place, letters):
        place.snapshot(b"no snapshot")
        place.snapshot(jpeg())
        await until(lambda: place.outcomes() == {"rejected": 1, "published": 1})
        await until(lambda: place.metrics.value("unacknowledged_messages") == 0)
        assert counted(place, "refused") == 1
        assert not letters


async def test_a_repeated_error_has_no_second_dead_letter(tmp_path: Path) -> None:
    async with letters_of(tmp_path) as (place, _):
        place.triton.hold("detector-onnx")
        place.snapshot(jpeg())
        await place.triton.wait_until_held("detector-onnx")
        place.snapshot(b"no snapshot")
        await until(lambda: place.outcomes() == {"rejected": 1})
        place.broker.stop()
        place.broker.start()
        await until(lambda: place.outcomes() == {"rejected": 2})
        place.triton.release("detector-onnx")
        await until(lambda: place.metrics.value("unacknowledged_messages") == 0)
        assert len(place.errors) == 2
        assert counted(place, "sent") == 1


async def test_nobody_gets_his_answer_on_the_dead_letter_topic(tmp_path: Path) -> None:
    async with letters_of(tmp_path) as (place, letters):
        place.snapshot(jpeg(), properties=MessageProperties(response_topic="dead/plant/camera-01"))
        place.snapshot(b"no snapshot", properties=user_properties(device_id="camera-01"))
        await until(lambda: place.outcomes() == {"rejected": 1, "published": 1})
        await until(lambda: bool(letters))
        assert [letter.payload for letter in letters] == [b"no snapshot"]


async def test_payloads_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes as well as by number; what has been given up makes room."""
    monkeypatch.setattr("gateway.flow.dead_letters.LIMIT_S", 0.01)
    metrics = Metrics()
    live = Live(settings(dead_letter_topic=TEMPLATE, dead_letters_per_minute=600))
    book = DeadLetters(live, MemoryBroker().client("never connected"), metrics)
    large = bytes(MAX_WAITING_BYTES - 10)
    first = book.write(origin(), InternalError("x"), large)
    assert first is not None
    assert book.write(origin(), InternalError("x"), bytes(11)) is None
    assert book.write(origin(), InternalError("x"), bytes(10)) is not None
    await book.send(first)
    assert book.write(origin(), InternalError("x"), bytes(11)) is not None
    assert metrics.value("dead_letters_total", outcome="late") == 1
    assert metrics.value("dead_letters_total", outcome="limited") == 1


def test_hostile_texts_are_cut_and_cleaned() -> None:
    book = DeadLetters(Live(settings(dead_letter_topic=TEMPLATE)), MemoryBroker().client("gateway"), Metrics())
    strange = "\x00\ud800" + "x" * 100_000
    letter = book.write(origin(device_id=strange, topic=strange), InternalError(strange), b"{")
    assert letter is not None
    for _, value in letter.user_properties:
        assert len(value.encode()) <= 1024
        assert "\x00" not in value


@pytest.mark.parametrize(
    "topic",
    [
        "edge-ai/{business_unit}/{facility}/{gateway_id}/ai/errors",
        "edge-ai/{business_unit}/{facility}/{gateway_id}/ai/{device_id}",
        "edge-ai/{business_unit}/{facility}/{gateway_id}/ai/commands/{model_name}",
        "plant/orders",
        "{facility}/{device_id}",
    ],
)
def test_a_dead_letter_topic_that_something_else_uses_is_refused(topic: str) -> None:
    """Whoever may send a picture could publish there whatever he likes, commands to models included."""
    with pytest.raises(ValueError, match="DEAD_LETTER_TOPIC must receive nothing else"):
        Settings(dead_letter_topic=topic, mqtt_command_topics=("plant/orders",))


def test_dead_letters_that_would_come_back_as_snapshots_are_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="never end"):
        refuse_loops(Settings(dead_letter_topic="azure-iot-operations/data/{device_id}/broken"))
