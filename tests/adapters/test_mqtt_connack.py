"""What a broker grants, limits and refuses in CONNACK and SUBACK, and how a link that has died is noticed."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway.messages import Publication
from tests.adapters.mqtt_client import Client
from tests.adapters.scripted_broker import CONNACK_3_1_1, PINGREQ, PUBLISH, SUBSCRIBE, Packet, Peer, scripted_broker
from tests.broker_session import until

PINGRESP = b"\xd0\x00"


def connack(code: int = 0, properties: bytes = b"") -> bytes:
    body = bytes([0, code]) + varint(len(properties)) + properties
    return b"\x20" + varint(len(body)) + body


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80, number >> 7]) if number > 127 else bytes([number])


def text(identifier: int, value: bytes) -> bytes:
    return bytes([identifier]) + len(value).to_bytes(2, "big") + value


@pytest.mark.parametrize(
    ("code", "properties", "said", "fix"),
    [
        (0x84, b"", "Unsupported protocol version", "MQTT_PROTOCOL"),
        (0x85, b"", "Client identifier not valid", "AIO_MQTT_CLIENT_ID"),
        (0x86, b"", "Bad user name or password", "the user 'gw' (AIO_MQTT_USERNAME)"),
        (0x87, text(0x1F, b"no\x07 such\x1b[31m user" + b"!" * 300), "Not authorized ('no_ such_[31m user!", "'gw'"),
        (0x8A, b"", "Banned", "ban of the client 'gateway'"),
        (0x8C, b"", "Bad authentication method", "AIO_MQTT_USERNAME"),
        (0x9C, text(0x1C, b"other:1883"), "Use another server ('other:1883')", "AIO_BROKER_HOSTNAME"),
        (0x9D, text(0x1C, b"other:1883"), "Server moved ('other:1883')", "AIO_BROKER_HOSTNAME"),
        (0x9F, b"", "Connection rate exceeded", "rate of connections"),
        (0x00, b"\x24\x00", "takes QoS 0 only", "Allow QoS 1"),
    ],
)
async def test_refusal_says_why_and_what_to_do(code: int, properties: bytes, said: str, fix: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(connack(code, properties))
        await peer.read()

    async with scripted_broker(script) as port:
        with capture_logs() as logs:
            gateway = Client(port, username="gw")
            await until(lambda: gateway.events.count("connect_refused") >= 2)
            await gateway.close()
    (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert said in entry["reason"]
    assert fix in entry["fix"]
    assert len(entry["reason"]) < 300
    assert entry["reason"].isprintable()
    assert "connected" not in gateway.events


@pytest.mark.parametrize(("code", "said"), [(4, "Bad user name or password"), (5, "Not authorized")])
async def test_refused_credentials_in_mqtt_3_1_1(code: int, said: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(CONNACK_3_1_1[:3] + bytes([code]))
        await peer.read()

    async with scripted_broker(script) as port:
        with capture_logs() as logs:
            gateway = Client(port, protocol="3.1.1", username="gw")
            await until(lambda: "connect_refused" in gateway.events)
            await gateway.close()
    assert said in logs[0]["reason"]
    assert "'gw' (AIO_MQTT_USERNAME)" in logs[0]["fix"]


@pytest.mark.parametrize("refuses_will", [True, False])
async def test_without_retained_messages_all_is_sent_unretained_after_one_warning(refuses_will: bool) -> None:
    """A broker of this kind refuses a retained last will, as MQTT 5 wants it, or takes it all the same."""
    published: list[Packet] = []
    no_retain = b"\x25\x00"

    async def script(peer: Peer) -> None:
        connect = await peer.read()
        if refuses_will and connect.body[7] & 0b00100000:
            await peer.send(connack(0x9A))
            return
        await peer.send(connack(0, no_retain))
        packet = await peer.read()
        published.append(packet)
        await peer.acknowledge(packet)
        await peer.read()

    async with scripted_broker(script) as port:
        with capture_logs() as logs:
            gateway = Client(port, will=Publication("status", b"offline", retain=True))
            await gateway.connected()
            await gateway.broker.publish(Publication("status", b"online", retain=True))
            await gateway.close()
    assert [(packet.kind, packet.flags & 1) for packet in published] == [(PUBLISH, 0)]
    warnings = [entry for entry in logs if "no retained messages" in entry["event"]]
    assert [entry["log_level"] for entry in warnings] == ["warning"]


@pytest.mark.parametrize(
    ("properties", "topic", "said"),
    [(b"\x28\x00", "a/+", "'a/+' of MQTT_INPUT_TOPICS"), (b"\x2a\x00", "$share/g/a", "no shared subscriptions")],
)
async def test_subscription_that_the_broker_cannot_take_is_named(properties: bytes, topic: str, said: str) -> None:
    asked: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(connack(0, properties))
        asked.append(await peer.read())

    async with scripted_broker(script) as port:
        with capture_logs() as logs:
            gateway = Client(port, subscriptions=("a/b", topic))
            await until(lambda: "subscribe_refused" in gateway.events)
            await gateway.close()
    assert said in logs[0]["reason"]
    assert topic in logs[0]["reason"]
    assert not [packet for packet in asked if packet.kind == SUBSCRIBE]


async def test_optional_subscription_that_is_not_possible_is_left_out_with_a_warning() -> None:
    asked: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(connack(0, b"\x28\x00"))
        subscribe = await peer.read()
        asked.append(subscribe)
        await peer.send(b"\x90\x04" + subscribe.body[:2] + b"\x00\x01")
        await peer.read()

    async with scripted_broker(script) as port:
        with capture_logs() as logs:
            gateway = Client(port, subscriptions=("a",), optional_subscriptions=("commands/#",))
            await gateway.connected()
            await gateway.close()
    assert b"commands" not in asked[0].body
    assert [entry["filter"] for entry in logs if entry["log_level"] == "warning"] == ["commands/#"]


async def test_server_keep_alive_is_kept() -> None:
    pings: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(connack(0, b"\x13\x00\x01"))
        while True:
            pings.append(await peer.read())
            await peer.send(PINGRESP)

    async with scripted_broker(script) as port:
        gateway = Client(port, keep_alive_s=600)
        await gateway.connected()
        await until(lambda: len(pings) == 2)
        await gateway.close()
    assert {packet.kind for packet in pings[:2]} == {PINGREQ}
    assert gateway.events == ["connected"]


@pytest.mark.parametrize("publishing", [False, True])
async def test_silent_broker_is_lost_after_one_and_a_half_keep_alive_times(publishing: bool) -> None:
    """The socket takes all that is written, as that of a machine behind a dead link does for a while."""
    pings: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(connack())
        while True:
            packet = await peer.read()
            pings.extend([packet] if packet.kind == PINGREQ else [])
            if len(pings) == 1 and packet.kind == PINGREQ:
                await peer.send(PINGRESP)  # one sign of life, then none

    async with scripted_broker(script) as port:
        with capture_logs() as logs:
            gateway = Client(port, keep_alive_s=1)
            await gateway.connected()
            await until(lambda: len(pings) == 1)
            waiting = []
            while "lost" not in gateway.events:
                if publishing:
                    waiting.append(asyncio.create_task(gateway.broker.publish(Publication("out", b"x"))))
                await asyncio.sleep(0.02)
            await gateway.close()
            await asyncio.gather(*waiting, return_exceptions=True)
    (entry,) = [entry for entry in logs if "Lost" in entry["event"]]
    assert "has not answered for 1.5 s" in entry["reason"]  # paho by itself would wait for 2 s, and not say that
