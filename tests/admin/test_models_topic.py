"""`ai/models`: retained, at each change and each session, and gone with its model."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import msgspec

from gateway.messages import Message
from gateway.models.catalog import State, VariantFigures
from gateway.rollout.state import ModelState, RefusalRecord
from gateway.rollout.steps import Step
from tests.admin.commanded import MODELS_TOPIC, Office, office, refused, release, rollout
from tests.flow.builders import served
from tests.harness import until
from tests.test_messages_doc import EXAMPLES, shape_of

STABLE = ModelState("detector", release(3), release(2), roller="gw-1")


def on(place: Office, topic: str = MODELS_TOPIC) -> list[Message]:
    return [message for message in place.seen if message.topic == topic]


async def messages(place: Office, count: int) -> None:
    """Wait until so many have come."""
    await until(lambda: len(on(place)) >= count, f"{count} messages")


async def newcomer(place: Office) -> list[Message]:
    """What the broker keeps of models."""
    client = place.broker.client("newcomer", ["edge-ai/+/+/+/ai/models/+", "end"])
    running = asyncio.create_task(client.run())
    await until(lambda: client.connected, "the newcomer's session")
    place.broker.publish("end", b"", qos=0)
    kept: list[Message] = []
    async for message in client.messages():
        if message.topic == "end":
            break
        kept.append(message)
    await client.close()
    await running
    return kept


async def test_a_model_is_there_for_whoever_comes() -> None:
    async with office() as place:
        await until(lambda: bool(on(place)), "the first message")
        (message,) = await newcomer(place)
    body = msgspec.json.decode(message.payload)
    assert (message.topic, message.retain, message.properties.content_type) == (MODELS_TOPIC, True, "application/json")
    assert (body["message_type"], body["gateway_id"], body["status"]) == ("ai_model", "test", "serving")
    assert (body["version"], body["previous_version"], body["roller"]) == (3, 2, "gw-1")
    assert abs(body["timestamp"] - time.time()) < 60


async def test_it_looks_as_the_page_shows() -> None:
    async with office() as place:
        refusal = RefusalRecord(4, Step.GOLDEN, "wrong", "Train it", 1_700_000_000.0)
        steps = rollout(5).steps[:1]
        place.commands.put(msgspec.structs.replace(STABLE, rollout=rollout(5, steps=steps), refused=(refusal,)))
        await until(lambda: any(body["refused"] for body in place.bodies(MODELS_TOPIC)), "the refusal")
    body, example = place.bodies(MODELS_TOPIC)[-1], EXAMPLES["model"]
    assert shape_of(body) == shape_of(example)
    for part, of in ((body, example), (body["rollout"], example["rollout"])):
        assert list(part) == list(of)
    assert (body["status"], body["rollout"]["steps"]) == (example["status"], example["rollout"]["steps"])


async def test_every_step_of_a_rollout_is_told() -> None:
    async with office() as place:
        await until(lambda: bool(on(place)), "the first message")
        for number, step in enumerate(Step):
            place.commands.put(msgspec.structs.replace(STABLE, rollout=rollout(step=step)))
            await messages(place, number + 2)
        place.commands.put(msgspec.structs.replace(STABLE, rollout=refused()))
        await until(lambda: place.bodies(MODELS_TOPIC)[-1]["rollout"]["ending"] == "refused", "the end")
    told = [body["rollout"]["step"] for body in place.bodies(MODELS_TOPIC)[1:-1]]
    assert told == [*Step]
    assert place.bodies(MODELS_TOPIC)[-1]["rollout"]["reason"] == "person.jpg: class 2, expected 0"


async def test_progress_comes_once_a_second_at_most_and_the_last_word_comes() -> None:
    async with office() as place:
        await until(lambda: bool(on(place)), "the first message")
        began = time.monotonic()
        for number in range(500):
            progress = f"{number} of 500 answers"
            place.commands.put(msgspec.structs.replace(STABLE, rollout=rollout(progress=progress)))
            await asyncio.sleep(0)
        await until(lambda: (place.bodies(MODELS_TOPIC)[-1]["rollout"] or {}).get("progress") == progress, "the last")
        assert len(on(place)) <= 3 + (time.monotonic() - began)


async def test_variants_of_the_catalogue_are_changes_and_figures_are_none() -> None:
    async with office() as place:
        await until(lambda: bool(on(place)), "the first message")
        place.models.put(replace(served(), figures={"onnx": VariantFigures(queue_ms=1.0)}))
        place.models.put(served(torch=State.REFUSED))
        await until(lambda: len(on(place)) == 2, "the change")
    assert place.bodies(MODELS_TOPIC)[-1]["variants"]["torch"]["state"] == "refused"


async def test_a_new_session_gets_everything_again() -> None:
    async with office() as place:
        await until(lambda: bool(on(place)), "the first message")
        place.broker.stop()
        place.commands.put(msgspec.structs.replace(STABLE, rollout=rollout()))
        place.broker.start()
        await until(lambda: len(on(place)) >= 2, "the second session")
    assert place.bodies(MODELS_TOPIC)[-1]["status"] == "rolling_out"


async def test_a_removed_model_is_said_to_be_and_leaves_nothing() -> None:
    async with office() as place:
        await until(lambda: bool(on(place)), "the first message")
        del place.commands.states["detector"]
        place.commands.say_changed()
        place.models.remove("detector")
        await until(lambda: place.bodies(MODELS_TOPIC)[-1] == {}, "the empty message")
        assert await newcomer(place) == []
        assert place.bodies(MODELS_TOPIC)[-2]["status"] == "removed"
        place.models.put(served())
        await until(lambda: place.bodies(MODELS_TOPIC)[-1] != {}, "the model again")
        assert len(await newcomer(place)) == 1


async def test_a_model_removed_while_the_broker_is_away_is_cleared_when_it_is_back() -> None:
    async with office() as place:
        await until(lambda: bool(on(place)), "the first message")
        place.broker.stop()
        del place.commands.states["detector"]
        place.models.remove("detector")
        place.broker.start()
        await until(lambda: place.bodies(MODELS_TOPIC)[-1] == {}, "the empty message")


async def test_a_remembered_model_that_does_not_serve_is_not_said_to() -> None:
    async with office() as place:
        place.models.remove("detector")
        await until(lambda: bool(on(place)), "a message")
        await until(lambda: place.bodies(MODELS_TOPIC)[-1]["status"] == "not_serving", "the change")


async def test_a_broker_that_refuses_the_topic_hinders_no_other() -> None:
    async with office() as place:
        await until(lambda: bool(on(place)), "the first message")
        place.broker.deny(MODELS_TOPIC)
        place.commands.put(msgspec.structs.replace(STABLE, rollout=rollout()))
        place.commands.put(ModelState("other", release(1)))
        other = MODELS_TOPIC.replace("detector", "other")
        await until(lambda: bool(on(place, other)), "the other model")
        assert len(on(place)) == 1
