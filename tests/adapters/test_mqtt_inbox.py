"""Messages that come faster than they are read: the inbox is bounded, and QoS 1 messages come again."""

from __future__ import annotations

import socket
from typing import Any, Literal

import pytest

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.adapters.mqtt_client import FramedClient
from gateway.adapters.mqtt_connack import Learned
from gateway.adapters.mqtt_framing import FramedSocket, Framing
from gateway.messages import Publication
from tests.adapters.mqtt_client import Client
from tests.adapters.scripted_broker import DISCONNECT, PUBACK, Peer, scripted_broker
from tests.broker_session import running, until
from tests.mosquitto_server import Mosquitto


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_full_inbox_drops_what_the_broker_sends_again(
    mosquitto: Mosquitto, protocol: Literal["5", "3.1.1"]
) -> None:
    gateway = Client(mosquitto.port, protocol=protocol, subscriptions=("in",), inbox_max_messages=5)
    await gateway.connected()
    async with running(MqttBroker(MqttSettings(client_id="camera", port=mosquitto.port))) as camera:
        for number in range(12):
            await camera.broker.publish(Publication("in", b"%d" % number))
    await until(lambda: "inbox_full" in gateway.events)
    payloads: set[bytes] = set()
    while len(payloads) < 12:
        message = await gateway.next()
        payloads.add(message.payload)
        gateway.broker.acknowledge(message)
    await gateway.close()


async def test_after_a_drop_a_steady_stream_does_not_put_the_next_connection_off() -> None:
    kinds: list[int] = []

    async def steady(peer: Peer) -> None:
        await peer.accept()
        if kinds:
            for number in (3, 4):
                await peer.publish(b"%d" % number, number)
            await peer.read()
        for number in (1, 2, 3):
            await peer.publish(b"%d" % number, number)
        kinds.append((await peer.read()).kind)
        await peer.publish(b"4", 4)
        await peer.publish(b"marker")
        kinds.extend([(await peer.read()).kind, (await peer.read()).kind])

    async with scripted_broker(steady) as port:
        gateway = Client(port, subscriptions=("in",), inbox_max_messages=2)
        await until(lambda: "inbox_full" in gateway.events)
        one, two = await gateway.take(2)
        gateway.broker.acknowledge(one)
        assert (await gateway.next()).payload == b"marker"
        gateway.broker.acknowledge(two)
        assert [message.payload for message in await gateway.take(2)] == [b"3", b"4"]
        await gateway.close()
    assert kinds == [PUBACK, PUBACK, DISCONNECT]


async def test_a_drop_with_nothing_unacknowledged_is_asked_for_again_at_once() -> None:
    kinds: list[int] = []

    async def full_of_qos_0(peer: Peer) -> None:
        await peer.accept()
        if not kinds:
            await peer.publish(b"a")
            await peer.publish(b"b")
        await peer.publish(b"c", 1)
        kinds.append((await peer.read()).kind)
        await peer.read()

    async with scripted_broker(full_of_qos_0) as port:
        gateway = Client(port, subscriptions=("in",), inbox_max_messages=2)
        await until(lambda: kinds[:1] == [DISCONNECT])
        messages = await gateway.take(3)
        gateway.broker.acknowledge(messages[2])
        await until(lambda: kinds[-1] == PUBACK)
        await gateway.close()
    assert [message.payload for message in messages] == [b"a", b"b", b"c"]


def test_a_packet_that_paho_has_in_a_hundred_reads_is_not_left_lying() -> None:
    """paho pauses after 100 reads, even when nothing is left to read that would wake it."""
    client = FramedClient(MqttSettings(client_id="gateway"), Learned())
    payloads: list[bytes] = []
    client.on_message = lambda _client, _data, message: payloads.append(bytes(message.payload))
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # one read for each write, whatever its size
    with near, far:
        near.setblocking(False)
        client.stream = FramedSocket(near, Framing(1000, properties=True))
        client._sock = client.stream
        for part in (b"\x30\x68\x00\x02in\x00", *(b"x",) * 99):
            far.send(part)
        client.loop_read()
        assert (payloads, client.stream.pending()) == ([], False)
        assert client.packet_waits
        client.loop_read()
    assert payloads == [b"x" * 99]
    assert not client.packet_waits


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    "large",
    [
        {"topic": "in", "payload": bytes(400)},
        {"topic": "in/" + "x" * 400, "payload": b""},
        {"topic": "in", "payload": b"", "correlation_data": bytes(400)},
        {"topic": "in", "payload": b"", "user_properties": (("a" * 200, "b" * 200),)},
    ],
)
async def test_inbox_is_bounded_in_bytes(mosquitto: Mosquitto, large: dict[str, Any]) -> None:
    gateway = Client(mosquitto.port, subscriptions=("in/#",), inbox_max_bytes=1000)
    await gateway.connected()
    async with running(MqttBroker(MqttSettings(client_id="camera", port=mosquitto.port))) as camera:
        for _ in range(4):
            await camera.broker.publish(Publication(**large, qos=0))
    await until(lambda: gateway.events.count("inbox_full") == 2)
    await gateway.take(2)
    await gateway.close()
