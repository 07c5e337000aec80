"""Snapshots that come again: answered as before, once each, and within bounds."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import Phase, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from gateway.errors import Outcome
from gateway.flow.acks import AckLedger
from gateway.flow.dead_letters import DeadLetters
from gateway.flow.observer import Observers
from gateway.flow.repeats import MEAN_BYTES, REMEMBERED, SMALLEST_SHARE, Repeat, Repeats
from gateway.flow.replies import Replies
from gateway.live import Live
from gateway.messages import MessageProperties, Publication
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.testing import MemoryBroker
from tests.flow.builders import (
    jpeg,
    message,
    origin,
    served,
    settings,
    signature,
    snapshot_json,
    spec,
    user_properties,
)
from tests.flow.test_sensor_flow import SENSOR, TOPIC, reading, thermometer
from tests.harness import HELMET, NO_HELMET, Site, sees, site, until, write_model

NAMED = b'{"timestamp": 1}'


def asked(place: Site, result_id: str) -> int:
    """How often Triton was asked about a snapshot."""
    return sum(request.request_id == result_id for request in place.triton.requests)


async def settled(place: Site, **outcomes: int) -> None:
    """Wait for these outcomes, and until all is acknowledged."""
    await until(lambda: place.outcomes() == outcomes, f"{outcomes}, got {place.outcomes()}")
    await until(lambda: place.metrics.value("unacknowledged_messages") == 0)


async def lose_acknowledgements(place: Site, payloads: list[bytes], **more: Any) -> None:
    """Send a snapshot that is held at Triton and others behind it, which are answered; then lose the connection."""
    place.triton.hold("detector-torch")
    place.snapshot(snapshot_json(jpeg(), backend_preference="torch"))
    await place.triton.wait_until_held("detector-torch")
    for payload in payloads:
        place.snapshot(payload, **more)
    await until(lambda: sum(place.outcomes().values()) == len(payloads), "the outcomes of those behind it")
    place.broker.stop()
    place.broker.start()
    await until(lambda: place.received == 2 * (len(payloads) + 1), "the redelivery of all")
    place.triton.release("detector-torch")


# --- the answers ---------------------------------------------------------------------------------------


async def test_a_redelivered_snapshot_gets_the_very_same_answer_and_triton_is_not_asked_again(tmp_path: Path) -> None:
    wanted = MessageProperties(response_topic="answers/me", correlation_data=b"42")
    async with site(tmp_path) as place:
        place.triton.hold("detector-torch")
        place.snapshot(snapshot_json(jpeg(), backend_preference="torch"))
        await place.triton.wait_until_held("detector-torch")
        responses = place.broker.client("asker", ["answers/me"])
        asking = asyncio.create_task(responses.run())
        await until(lambda: responses.connected)
        place.snapshot(snapshot_json(jpeg(), backend_preference="onnx"), properties=wanted)
        await place.answered(1)
        await until(lambda: place.outcomes() == {"published": 1})
        place.broker.stop()
        place.broker.start()
        await place.answered(2)
        received = [await anext(responses.messages()) for _ in range(2)]
        place.triton.release("detector-torch")
        await settled(place, published=4)
        await responses.close()
        await asking
    first, again = [item for item in place.seen if item[1]["message_type"] == "ai_inference_result"][:2]
    assert first == again, "byte for byte, properties included"
    assert received[0].payload == received[1].payload
    assert received[0].properties == received[1].properties
    assert asked(place, first[1]["result_id"]) == 1
    assert place.metrics.value("repeats_total") == 1


async def test_a_comparison_is_repeated_with_its_result_and_an_alert_is_not(tmp_path: Path) -> None:
    sent = snapshot_json(jpeg(), backend_preference="dual")
    async with site(tmp_path) as place:
        for variant in ("detector-onnx", "detector-torch"):
            place.triton.add_model(signature(variant), sees(NO_HELMET))
            await place.triton.load(variant)
        place.snapshot(sent)
        await settled(place, published=1)
        place.snapshot(sent)
        await settled(place, published=2)
        alerts = len(place.of("ai_alert"))
        assert len(place.results) == len(place.of("dual_backend_comparison")) == 2
    assert place.results[0] == place.results[1]
    assert place.of("dual_backend_comparison")[0] == place.of("dual_backend_comparison")[1]
    assert alerts == place.metrics.value("alerts_total", model="detector", event="start") == 1
    assert asked(place, place.results[0]["result_id"]) == 2, "one request a variant"


async def test_a_redelivered_error_is_repeated_and_one_sent_anew_is_tried_again(tmp_path: Path) -> None:
    sent = snapshot_json(jpeg(), model_name="newcomer", backend_preference="onnx")
    async with site(tmp_path) as place:
        await lose_acknowledgements(place, [sent])
        await settled(place, rejected=2, published=2)
        assert place.errors[0] == place.errors[1]
        assert place.metrics.value("snapshot_errors_total", code="MODEL_UNKNOWN") == 1, "one error, said twice"
        place.snapshot(sent)
        await settled(place, rejected=3, published=2)
        assert place.metrics.value("snapshot_errors_total", code="MODEL_UNKNOWN") == 2


async def test_what_had_to_give_way_can_be_sent_again(tmp_path: Path) -> None:
    one, other = (snapshot_json(jpeg(seed=number)) for number in range(2))
    async with site(tmp_path, max_in_flight=1, queue_max_messages=1) as place:
        place.triton.hold("detector-onnx")
        place.snapshot(snapshot_json(jpeg(seed=9)))
        await place.triton.wait_until_held("detector-onnx")
        place.snapshot(one)
        place.snapshot(other)
        await until(lambda: len(place.errors) == 1)
        assert place.errors[0]["error"]["code"] == "QUEUE_FULL"
        place.triton.release("detector-onnx")
        await settled(place, published=2, dropped_full=1)
        place.snapshot(one)
        await settled(place, published=3, dropped_full=1)
    assert place.errors[0]["result_id"] == place.results[-1]["result_id"]


async def test_equal_pictures_that_do_not_say_when_they_were_taken_are_frames_of_their_own(tmp_path: Path) -> None:
    """A camera that sees the same again, or a test picture: each frame counts, for alerts too."""
    async with site(tmp_path) as place:
        for count in (1, 2, 3):
            place.snapshot(jpeg())
            await settled(place, published=count)
        assert place.metrics.value("repeats_total") == 0
        assert asked(place, place.results[0]["result_id"]) == 3


@pytest.mark.parametrize(
    "properties",
    [user_properties(id="7"), user_properties(time="2023-10-15T12:00:00Z"), MessageProperties(correlation_data=b"1")],
    ids=["id", "time", "correlation data"],
)
async def test_a_picture_that_names_itself_is_known_when_it_is_sent_again(
    tmp_path: Path, properties: MessageProperties
) -> None:
    async with site(tmp_path) as place:
        for count in (1, 2):
            place.snapshot(jpeg(), properties=properties)
            await settled(place, published=count)
        assert asked(place, place.results[0]["result_id"]) == 1
    assert place.results[0] == place.results[1]


async def test_who_asks_for_something_else_gets_something_else(tmp_path: Path) -> None:
    """The same picture for another variant, or at another time, is another snapshot."""
    async with site(tmp_path) as place:
        for count, more in enumerate(
            ({}, {"backend_preference": "torch"}, {"time": "2023-10-15T12:00:00Z"}, {"device_id": "x"}), 1
        ):
            place.snapshot(jpeg(), properties=user_properties(**{"id": "7", **more}))
            await settled(place, published=count)
    assert len({body["result_id"] for body in place.results}) == 4
    assert [body["backend_used"] for body in place.results] == ["onnx", "torch", "onnx", "onnx"]


async def test_http_asks_triton_each_time(tmp_path: Path) -> None:
    async with site(tmp_path) as place, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{place.gateway.http_port}/v1/infer"
        replies = []
        for _ in range(2):
            async with session.post(url, data=snapshot_json(jpeg(), timestamp=1)) as response:
                replies.append(await response.json())
        assert [asked(place, reply["result_id"]) for reply in replies] == [1, 1]
        assert place.metrics.value("repeats_total") == 0


async def test_a_redelivered_reading_joins_no_window_twice(tmp_path: Path) -> None:
    write_model(tmp_path, **SENSOR)
    write_model(tmp_path, "detector")
    triton = thermometer()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(HELMET))
    async with site(tmp_path, triton=triton) as place:
        await lose_acknowledgements(place, [reading(0) for _ in range(14)], topic=TOPIC)
        await settled(place, windowed=16, published=14)
        of_sensor = [body for body in place.results if body["device_id"] == "t-1"]
        first = sorted(of_sensor[:6], key=lambda body: body["timestamp"])  # they may overtake each other
        assert first == of_sensor[6:], "the answers of the six windows again"
        assert {asked(place, body["result_id"]) for body in of_sensor} == {1}


async def test_the_answer_is_with_the_broker_before_the_repeat_is_acknowledged() -> None:
    """So a gateway that dies in between is sent the snapshot once more."""
    acknowledged: list[str] = []
    repeats, live, _ = cache()
    client, metrics = MemoryBroker().client("gateway"), Metrics()
    acks = AckLedger(lambda item: acknowledged.append(str(item.delivery)), lambda _item: True, metrics)
    replies = Replies(client, acks, repeats, DeadLetters(live, client, metrics), metrics, Observers())
    again = origin(result_id="a")
    acks.open("a", message(NAMED, delivery="again"))
    repeating = asyncio.create_task(replies.repeat(again, Repeat(Outcome.PUBLISHED, tuple(answer()))))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not acknowledged, "the broker is away"
    running = asyncio.create_task(client.run())
    await repeating
    assert acknowledged == ["again"]
    await client.close()
    await running


# --- without the cache -----------------------------------------------------------------------------------


async def test_without_a_window_all_is_answered_anew_redelivered_or_not(tmp_path: Path) -> None:
    sent = snapshot_json(jpeg(), backend_preference="onnx")
    async with site(tmp_path, repeat_window_s=0) as place:
        await lose_acknowledgements(place, [sent])
        await settled(place, published=4)
        assert len(place.results) == 3
        place.snapshot(sent)
        await settled(place, published=5)
        assert len(place.results) == 4
        assert asked(place, place.results[0]["result_id"]) == 3


async def test_a_new_gateway_infers_again_under_the_same_id(tmp_path: Path) -> None:
    sent, ids = snapshot_json(jpeg()), []
    for _ in range(2):
        async with site(tmp_path) as place:
            place.snapshot(sent)
            await settled(place, published=1)
            assert place.metrics.value("repeats_total") == 0
        ids.append(place.results[0]["result_id"])
    assert ids[0] == ids[1]


# --- bounds ----------------------------------------------------------------------------------------------


def cache(**more: Any) -> tuple[Repeats, Live, Models]:
    """An empty cache under these settings, with a model."""
    live, models = Live(settings(**more)), Models()
    models.put(served())
    return Repeats(live, models), live, models


def answer(size: int = 100) -> list[Publication]:
    return [Publication("t", bytes(size))]


def known(repeats: Repeats, result_id: str, **more: Any) -> bool:
    return repeats.find(message(NAMED, **more), origin(result_id=result_id)) is not None


kept = st.tuples(st.integers(0, 20), st.integers(0, 20_000), st.integers(1, 3))


@given(st.lists(kept, max_size=60), st.integers(1, 12))
def test_the_cache_stays_within_its_bounds(items: list[tuple[int, int, int]], most: int) -> None:
    """By messages and bytes, whatever is kept; the newest that fits is there."""
    repeats, _, _ = cache(repeat_max_messages=most)
    for number, size, count in items:
        repeats.keep(origin(result_id=str(number), model_name="detector"), Outcome.PUBLISHED, answer(size) * count)
        assert len(repeats) <= most
        assert 0 <= repeats.size <= most * MEAN_BYTES
        assert bool(len(repeats)) == bool(repeats.size)
        found = repeats.find(message(NAMED), origin(result_id=str(number)))
        assert found is None or found.answers == tuple(answer(size) * count), "never an older answer"
        assert known(repeats, str(number), duplicate=True) == (found is not None)


def test_an_answer_too_large_is_not_kept() -> None:
    repeats, live, _ = cache(repeat_max_messages=1000)
    repeats.keep(origin(result_id="small", model_name="detector"), Outcome.PUBLISHED, answer())
    huge = live.current.repeat_max_messages * MEAN_BYTES // SMALLEST_SHARE + 1
    repeats.keep(origin(result_id="huge", model_name="detector"), Outcome.PUBLISHED, answer(huge))
    assert known(repeats, "small")
    assert not known(repeats, "huge")
    assert not known(repeats, "huge", duplicate=True)


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.WINDOWED}))
def test_a_redelivery_whose_answer_has_gone_is_answered_anew(outcome: Outcome) -> None:
    """It may be another frame of the same bytes, whose first delivery was lost before it was opened."""
    repeats, live, _ = cache()
    repeats.keep(origin(result_id="a", model_name="detector"), outcome, answer())
    live.replace(live.current.model_copy(update={"repeat_window_s": 0.0}))
    assert not known(repeats, "a", duplicate=True)


def test_answers_are_forgotten_with_time_and_a_repeat_does_not_keep_them_longer() -> None:
    repeats, live, _ = cache(repeat_window_s=86_400)
    repeats.keep(origin(result_id="a", model_name="detector"), Outcome.PUBLISHED, answer())
    assert known(repeats, "a")
    assert known(repeats, "a"), "still"
    live.replace(live.current.model_copy(update={"repeat_window_s": 0.0}))
    assert not known(repeats, "a")
    assert len(repeats) == repeats.size == 0


def test_readings_in_their_windows_are_bounded_too() -> None:
    repeats, _, _ = cache(repeat_max_messages=1)
    for number in range(REMEMBERED + 2):
        repeats.keep(origin(result_id=str(number)), Outcome.WINDOWED)
    assert not known(repeats, "1", duplicate=True)
    assert known(repeats, "2", duplicate=True)


@pytest.mark.parametrize("change", ["version", "model.yaml", "settings", "removed"])
def test_a_snapshot_sent_anew_after_a_change_is_answered_anew_and_a_redelivery_as_before(change: str) -> None:
    repeats, live, models = cache()
    repeats.keep(origin(result_id="a", model_name="detector"), Outcome.PUBLISHED, answer())
    assert known(repeats, "a")
    match change:
        case "version":
            models.put(replace(models.current.models["detector"], version=4))
        case "model.yaml":
            models.put(served(spec(preprocessing={"resize": [32, 32]})))
        case "settings":
            live.replace(live.current.model_copy(update={"default_backend": "torch"}))
        case _:
            models.remove("detector")
    assert not known(repeats, "a")
    assert known(repeats, "a", duplicate=True)


@pytest.mark.parametrize("redelivered", [False, True])
def test_another_response_topic_is_not_answered_on_the_former_one(redelivered: bool) -> None:
    repeats, _, _ = cache()
    repeats.keep(origin(result_id="a", model_name="detector", response_topic="x"), Outcome.PUBLISHED, answer())
    again = message(NAMED, duplicate=redelivered)
    assert repeats.find(again, origin(result_id="a", response_topic="x")) is not None
    assert repeats.find(again, origin(result_id="a", response_topic="y")) is None


@pytest.mark.parametrize("payload", [b'{"timestamp": null}', b'{"metadata": {"timestamp": 1}}', b'{"a": "timestamp"}'])
def test_a_timestamp_that_says_nothing_makes_no_two_frames_one(payload: bytes) -> None:
    repeats, _, _ = cache()
    repeats.keep(origin(result_id="a", model_name="detector"), Outcome.PUBLISHED, answer())
    assert repeats.find(message(payload), origin(result_id="a")) is None
    assert repeats.find(message(b"\xef\xbb\xbf" + NAMED), origin(result_id="a")) is not None


# --- whatever happens ------------------------------------------------------------------------------------

steps = st.lists(st.sampled_from(["a", "b", "c", "bad", "lost", "pause", "hold", "release"]), min_size=4, max_size=14)


# Without shrinking: a failing example waits out its deadline each time it is tried.
@tried(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(steps, st.integers(1, 3), st.sampled_from([0, 60]), st.randoms(use_true_random=False))
def test_each_arrival_has_one_outcome_and_each_snapshot_one_answer(
    tmp_path_factory: pytest.TempPathFactory, plan: list[str], in_flight: int, window_s: int, rng: random.Random
) -> None:
    """Arrivals, repeats of both kinds and settlements in any order."""
    payloads = {name: snapshot_json(jpeg(), metadata={"name": name}) for name in "abc"} | {"bad": b"{"}

    async def run() -> None:
        folder = tmp_path_factory.mktemp("models")
        async with site(folder, max_in_flight=in_flight, repeat_window_s=window_s) as place:
            for step in plan:
                match step:
                    case "hold":
                        place.triton.hold("detector-onnx")
                    case "release":
                        place.triton.release("detector-onnx")
                    case "lost":
                        place.broker.stop()
                        place.broker.start()
                    case "pause":
                        await asyncio.sleep(0.002)
                    case name:
                        place.snapshot(payloads[name])
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
            place.triton.release("detector-onnx")
            sent = set(plan) & set(payloads)
            await until(lambda: place.metrics.value("broker_connected") == 1)
            await until(lambda: place.received >= len([step for step in plan if step in payloads]))
            await until(lambda: len({body["result_id"] for body in place.results + place.errors}) == len(sent))
            await until(lambda: sum(place.outcomes().values()) == place.received, f"{place.outcomes()}")
            await until(lambda: place.metrics.value("unacknowledged_messages") == 0)
            assert await place.stop() == 0
            assert len({body["result_id"] for body in place.results + place.errors}) == len(sent)
            for result_id in {body["result_id"] for body in place.results}:
                different = {repr(body) for body in place.results if body["result_id"] == result_id}
                assert len(different) == (1 if window_s else asked(place, result_id))
                assert asked(place, result_id) == 1 or not window_s
        assert sum(place.outcomes().values()) == place.received

    asyncio.run(run())
