"""Commands over MQTT: answered on the response topic, carried out once or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.admin.command_bodies import MAX_COMMAND_BYTES
from gateway.config_reading import load_settings
from gateway.errors import BackendUnavailable, CommandRefused, ConfigError
from gateway.messages import MessageProperties
from gateway.rollout.commands import Action, Command
from gateway.testing import MemoryBroker
from tests.admin.commanded import COMMAND_TOPIC, MODELS_TOPIC, Office, office, with_token
from tests.flow.builders import served, settings, spec
from tests.harness import until
from tests.test_messages_doc import EXAMPLES, shape_of

PROMOTE = {"action": "promote", "model": "detector", "version": 3}
BEARER = {"user_properties": (("authorization", "Bearer s3cret"),)}
NO_VERSIONS: tuple[Any, ...] = (0, -1, 1e9, 3.0, "3", True, 2**31, [], {})
END = {"action": "unload", "model": "end"}


async def everything_is_done(place: Office) -> None:
    """The topic has gone through all that came before."""
    await place.answer(END)


def code(answer: dict[str, Any]) -> str:
    assert set(answer) == {"message_type", "timestamp", "gateway_id", "ok", "error"}
    assert (answer["message_type"], answer["ok"]) == ("ai_model_command_result", False)
    assert set(answer["error"]) == {"code", "message", "fix"}
    return str(answer["error"]["code"])


@pytest.mark.parametrize("action", list(Action))
async def test_a_command_is_carried_out_and_answered(tmp_path: Path, action: Action) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        answer = await place.answer(PROMOTE | {"action": action}, **BEARER, correlation_data=b"\x00\x07")
        assert place.commands.executed == [Command(action, "detector", 3, "MQTT")]
        assert place.counted(action, "ok") == 1
        (message,) = (message for message in place.seen if message.topic == "answers/me")
    assert {key: answer[key] for key in answer if key != "timestamp"} == {
        "message_type": "ai_model_command_result",
        "gateway_id": "test",
        "ok": True,
        "message": f"version 3 of detector: {action}",
    }
    assert (message.properties.correlation_data, message.retain) == (b"\x00\x07", False)
    assert message.properties.content_type == "application/json"


async def test_the_token_may_stand_in_the_message_as_mqtt_3_1_1_needs(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        place.broker.publish(COMMAND_TOPIC, b'{"action": "promote", "model": "detector", "token": "s3cret"}')
        await until(lambda: bool(place.commands.executed), "the command")
        assert place.bodies("answers/me") == []
    assert place.commands.executed[0].version is None


async def test_a_command_and_its_answers_look_as_the_page_shows(tmp_path: Path) -> None:
    command = EXAMPLES["command"]
    async with office(api_token_file=with_token(tmp_path, command["token"])) as place:
        place.models.put(served(spec(command["model"])))
        done = await place.answer(command)
        failed = await place.answer(command | {"model": "industrial-safty"})
    for answer, name in ((done, "command result"), (failed, "refused command")):
        assert list(answer) == list(EXAMPLES[name])
        assert shape_of(answer) == shape_of(EXAMPLES[name])
    assert failed["error"]["code"] == EXAMPLES["refused command"]["error"]["code"]


@pytest.mark.parametrize(
    ("more", "properties"),
    [
        ({}, ()),
        ({"token": "wrong"}, ()),
        ({"token": ["s3cret"]}, ()),
        ({"token": ""}, ()),
        ({"token": None}, ()),
        ({}, (("authorization", "s3cret"),)),
        ({}, (("authorization", "Basic s3cret"),)),
        ({}, (("token", "s3cret"),)),
        ({}, tuple(("authorization", f"Bearer {number}") for number in range(50))),
    ],
)
async def test_without_the_token_nobody_gets_in(
    tmp_path: Path, more: dict[str, Any], properties: tuple[tuple[str, str], ...]
) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        assert code(await place.answer(PROMOTE | more, user_properties=properties)) == "UNAUTHORIZED"
        assert place.commands.executed == []


async def test_who_lacks_the_token_learns_nothing_of_the_models(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        answers = [await place.answer({"action": "load", "model": name}) for name in ("detector", "nope")]
    assert answers[0]["error"] == answers[1]["error"]


async def test_without_a_configured_token_the_answer_says_how_to_switch_them_on() -> None:
    async with office() as place:
        answer = await place.answer(PROMOTE, **BEARER)
        assert code(answer) == "UNAUTHORIZED"
        assert place.commands.executed == []
    assert "API_TOKEN_FILE" in answer["error"]["fix"]
    assert "MQTT_COMMANDS=open" in answer["error"]["fix"]


async def test_open_asks_nobody_for_a_token(tmp_path: Path) -> None:
    async with office(mqtt_commands="open", api_token_file=with_token(tmp_path)) as place:
        assert (await place.answer(PROMOTE))["ok"]


async def test_what_an_old_subscription_still_brings_is_no_command() -> None:
    async with office(mqtt_command_topics="edge-ai/{business_unit}/orders", mqtt_commands="open") as place:
        place.command(PROMOTE)
        place.broker.publish("edge-ai/default/orders", b'{"action": "load", "model": "detector"}')
        await until(lambda: bool(place.commands.executed), "the command on the topic that is named")
        assert [command.action for command in place.commands.executed] == [Action.LOAD]
        assert place.bodies("answers/me") == []


def test_the_setting_of_before_is_refused_with_the_name_of_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("model_commands_topic: a/b\n")
    with pytest.raises(ConfigError, match="did you mean 'mqtt_command_topics'"):
        load_settings(file)


@pytest.mark.parametrize("topic", ["a/+", "a/#", "#", "$share/g/a", "$SYS/a", "a/{asset}", "a\0"])
def test_a_topic_of_commands_has_no_wildcards(topic: str) -> None:
    with pytest.raises(ValueError, match="mqtt_command_topics"):
        settings(mqtt_command_topics=topic)


async def test_without_a_configured_topic_nothing_commands() -> None:
    async with office(mqtt_command_topics="", mqtt_commands="open") as place:
        assert place.topic.topics == ()
        place.command(PROMOTE)
        place.broker.publish("answers/end", b"{}")
        await until(lambda: bool(place.bodies("answers/end")), "what came later")
        assert place.commands.executed == []
        assert place.bodies("answers/me") == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"promote",
        b"\xff\xd8\xff\xe0",
        b"[" * 60_000,
        b"{" * 60_000,
        b'{"action": "promote", "model": "detector", "version": 99999999999999999999999}',
        b" " * (MAX_COMMAND_BYTES + 1),
        b"x" * (9 * 2**20),
        [],
        "promote",
        None,
        {},
        {"model": "detector"},
        {"action": "promote"},
        {"action": "delete", "model": "detector"},
        {"action": ["promote"], "model": "detector"},
        {"action": True, "model": "detector"},
        {"action": "promote", "model": ""},
        {"action": "promote", "model": ["detector"]},
        {"action": "promote", "model": 3},
        PROMOTE | {"verison": 3},
        *(PROMOTE | {"version": version} for version in NO_VERSIONS),
    ],
)
async def test_what_is_no_command_reaches_nobody(payload: object) -> None:
    async with office(mqtt_commands="open") as place:
        answer = await place.answer(payload)
        assert code(answer) == "COMMAND_INVALID"
        assert place.commands.executed == []
    assert answer["error"]["fix"]


@pytest.mark.parametrize(
    "name", ["nope", "../detector", "/etc/passwd", "dé\u202etector", "a" * 60_000, "\x00", "+", "#"]
)
async def test_a_name_that_is_not_known_reaches_nobody(name: str) -> None:
    async with office(mqtt_commands="open") as place:
        answer = await place.answer({"action": "unload", "model": name})
        assert code(answer) == "MODEL_UNKNOWN"
        assert place.commands.executed == []
    assert len(answer["error"]["message"]) < 200


async def test_what_fails_on_the_way_is_answered_and_the_next_one_served() -> None:
    async with office(mqtt_commands="open") as place:
        for failure, expected in (
            (CommandRefused("NOTHING_TO_DO", "3 serves already", fix="Nothing"), "NOTHING_TO_DO"),
            (BackendUnavailable("Triton cannot be reached"), "COMMAND_FAILED"),
            (RuntimeError("a defect"), "COMMAND_FAILED"),
        ):
            place.commands.refusal = failure
            assert code(await place.answer(PROMOTE)) == expected
        place.commands.refusal = None
        assert (await place.answer(PROMOTE))["ok"]


async def test_a_retained_command_is_ignored() -> None:
    broker = MemoryBroker()
    broker.publish(COMMAND_TOPIC, b'{"action": "rollback", "model": "detector"}', retain=True)
    async with office(broker, mqtt_commands="open") as place:
        await everything_is_done(place)
        assert place.commands.executed == []


async def test_the_same_request_is_carried_out_once_and_answered_alike() -> None:
    rollback = {"action": "rollback", "model": "detector"}
    async with office(mqtt_commands="open") as place:
        answers = [await place.answer(rollback, correlation_data=b"7") for _ in range(3)]
        assert len(place.commands.executed) == 1
        assert answers[0] == answers[1] == answers[2]
        await place.answer(rollback, correlation_data=b"8")
        await place.answer(PROMOTE, correlation_data=b"7")
        assert len(place.commands.executed) == 3


async def test_without_correlation_data_twice_is_twice() -> None:
    async with office(mqtt_commands="open") as place:
        for _ in range(2):
            await place.answer({"action": "rollback", "model": "detector"})
        assert len(place.commands.executed) == 2


async def test_a_refused_stranger_does_not_answer_for_who_has_the_token(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        assert not (await place.answer(PROMOTE, correlation_data=b"7"))["ok"]
        assert (await place.answer(PROMOTE, correlation_data=b"7", **BEARER))["ok"]
        assert not (await place.answer(PROMOTE, correlation_data=b"7"))["ok"]
        assert len(place.commands.executed) == 1


@pytest.mark.parametrize("correlation", [None, b"7"])
async def test_a_command_that_the_broker_sends_again_is_not_carried_out_again(correlation: bytes | None) -> None:
    """Its acknowledgement was lost with the connection: nobody knows whether the gateway before us has done it."""
    broker = MemoryBroker()
    before = broker.client("gateway", [COMMAND_TOPIC])
    running = asyncio.create_task(before.run())
    await until(lambda: before.connected, "the session before")
    properties = MessageProperties(response_topic="answers/me", correlation_data=correlation)
    broker.publish(COMMAND_TOPIC, b'{"action": "rollback", "model": "detector"}', properties=properties)
    await before.close()
    await running
    async with office(broker, mqtt_commands="open") as place:
        await until(lambda: bool(place.bodies("answers/me")), "the answer")
        answer = place.bodies("answers/me")[0]
        assert code(answer) == "COMMAND_INVALID"
        assert "may have been carried out" in answer["error"]["message"]
        assert place.commands.executed == []
        again = await place.answer({"action": "rollback", "model": "detector"}, correlation_data=correlation)
        assert again["ok"]


async def test_a_known_command_sent_again_gets_its_answer_again() -> None:
    async with office(mqtt_commands="open", acknowledge=False) as place:
        first = await place.answer(PROMOTE, correlation_data=b"7")
        place.broker.stop()
        place.broker.start()
        await until(lambda: len(place.bodies("answers/me")) == 2, "the answer again")
        assert place.bodies("answers/me")[1] == first
        assert len(place.commands.executed) == 1


@pytest.mark.parametrize(
    "topic",
    [
        MODELS_TOPIC,
        COMMAND_TOPIC,
        "edge-ai/a/b/c/ai/status",
        "edge-ai/bu/plant/gw/camera/snapshots",
        "azure-iot-operations/data/cam/x",
        "own/detector/results",
        "answers/+",
        "#",
        "",
        "$SYS/x",
        "answers/\x00",
        "a" * 2000,
    ],
)
async def test_an_answer_goes_nowhere_where_it_does_harm(topic: str) -> None:
    async with office(mqtt_commands="open", result_topic="own/{device_id}/results") as place:
        place.command(PROMOTE, response_topic=topic)
        await everything_is_done(place)
        assert len(place.commands.executed) == 1
        said = [message for message in place.seen if b"ai_model_command_result" in message.payload]
        assert [message.topic for message in said] == ["answers/me"]


async def test_a_response_topic_that_the_broker_refuses_hinders_nobody() -> None:
    async with office(mqtt_commands="open") as place:
        place.broker.deny("answers/denied")
        place.command(PROMOTE, response_topic="answers/denied")
        await everything_is_done(place)
        assert len(place.commands.executed) == 1


async def test_commands_go_one_after_the_other_and_a_flood_is_cut_off() -> None:
    async with office(mqtt_commands="open") as place:
        place.commands.hold.clear()
        with capture_logs() as logs:
            for number in range(100):
                place.command({"action": "load", "model": "detector", "version": number + 1})
            await until(lambda: any("dropped" in entry["event"] for entry in logs), "the limit")
            assert len(place.commands.executed) == 1
            place.commands.hold.set()
            await until(lambda: len(place.bodies("answers/me")) >= 60, "the others")
        versions = [command.version for command in place.commands.executed]
        assert versions == sorted(versions, key=lambda version: version or 0)


async def test_the_token_is_never_logged_or_published(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        with capture_logs() as logs:
            await place.answer(PROMOTE, **BEARER)
            await place.answer(PROMOTE | {"token": "s3cret"})
            await place.answer(PROMOTE | {"token": "s3cret", "version": "s3cret"})
            await place.answer(PROMOTE | {"token": "s3cret-not"})
            await place.answer({"action": "load", "model": "nope", "token": "s3cret"})
        answers = [message for message in place.seen if message.topic == "answers/me"]
    assert len(logs) == len(answers) == 5
    assert "s3cret" not in str(logs)
    assert b"s3cret" not in b"".join(message.payload for message in answers)
