"""Commands through a real Mosquitto, asked as `mosquitto_rr` does: MQTT 5 request and response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.admin.command_desk import CommandDesk
from gateway.admin.guard import TokenGuard
from gateway.admin.model_commands import ModelCommandTopic
from gateway.admin.models_topic import ModelsTopic
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from tests.admin.commanded import COMMAND_TOPIC, MODELS_TOPIC, Scripted, with_token
from tests.flow.builders import served, settings
from tests.harness import until
from tests.mosquitto_server import Mosquitto

pytestmark = pytest.mark.mosquitto


class Operator:
    """A client of MQTT 5 that asks and collects what comes."""

    def __init__(self, port: int) -> None:
        self.seen: list[paho.MQTTMessage] = []
        self.subscribed = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "operator", protocol=paho.MQTTv5)
        self._client.on_message = lambda _client, _data, message: self.seen.append(message)
        self._client.on_subscribe = self._on_subscribe
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([("answers/operator", SubscribeOptions(1)), (MODELS_TOPIC, SubscribeOptions(1))])
        self._client.loop_start()

    def _on_subscribe(self, *_given: Any) -> None:
        self.subscribed = True

    def ask(self, command: dict[str, Any], number: bytes) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = "answers/operator"
        properties.CorrelationData = number
        properties.UserProperty = [("authorization", "Bearer s3cret")]
        self._client.publish(COMMAND_TOPIC, msgspec.json.encode(command), qos=1, properties=properties)

    def on(self, topic: str) -> list[paho.MQTTMessage]:
        return [message for message in self.seen if message.topic == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.asynccontextmanager
async def gateway(port: int, commands: Scripted, folder: Path) -> AsyncIterator[MqttBroker]:
    """The parts of a gateway that answer commands, with a session that outlives them."""
    config = settings(api_token_file=with_token(folder), mqtt_command_topics=COMMAND_TOPIC)
    models, metrics = Models(), Metrics()
    models.put(served())
    broker = MqttBroker(
        MqttSettings(client_id="gateway", port=port, subscriptions=("in",), optional_subscriptions=(COMMAND_TOPIC,))
    )
    topic = ModelCommandTopic(
        config, broker, CommandDesk(commands, models, metrics), models, TokenGuard(config.api_token_file)
    )

    async def take() -> None:
        async for message in broker.messages():
            broker.acknowledge(message)
            topic.take(message)

    work = (broker.run(), take(), topic.run(), ModelsTopic(config, broker, models, commands).run())
    running = [asyncio.create_task(each) for each in work]
    try:
        await until(lambda: broker.connected, "the session")
        yield broker
    finally:
        await broker.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@pytest.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    server = Mosquitto(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def operator(mosquitto: Mosquitto) -> AsyncIterator[Operator]:
    someone = await asyncio.to_thread(Operator, mosquitto.port)
    await until(lambda: someone.subscribed, "the operator's subscriptions")
    yield someone
    await asyncio.to_thread(someone.close)


async def test_a_request_gets_its_response(mosquitto: Mosquitto, operator: Operator, tmp_path: Path) -> None:
    commands = Scripted()
    async with gateway(mosquitto.port, commands, tmp_path):
        operator.ask({"action": "rollback", "model": "detector", "version": 2}, b"\x00\xff7")
        await until(lambda: bool(operator.on("answers/operator")), "the response")
        await until(lambda: bool(operator.on(MODELS_TOPIC)), "the state")
    (response,), state = operator.on("answers/operator"), operator.on(MODELS_TOPIC)[0]
    assert getattr(response.properties, "CorrelationData", None) == b"\x00\xff7"
    assert msgspec.json.decode(response.payload)["message"] == "version 2 of detector: rollback"
    assert msgspec.json.decode(state.payload)["model_name"] == "detector"


async def test_what_was_sent_while_the_gateway_was_away_is_not_carried_out_unseen(
    mosquitto: Mosquitto, operator: Operator, tmp_path: Path
) -> None:
    """Carried out or not, as this Mosquitto marks what it has kept, but answered."""
    commands = Scripted()
    async with gateway(mosquitto.port, commands, tmp_path):
        pass
    operator.ask({"action": "rollback", "model": "detector"}, b"8")
    async with gateway(mosquitto.port, commands, tmp_path):
        await until(lambda: bool(operator.on("answers/operator")), "the response")
    (response,) = operator.on("answers/operator")
    assert msgspec.json.decode(response.payload)["ok"] is bool(commands.executed)
