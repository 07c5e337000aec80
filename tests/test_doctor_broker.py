"""What `edge-gateway doctor` says of brokers that grant less than is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gateway.commands.broker import mqtt_settings
from gateway.doctor.broker import check_broker, probed_topics
from gateway.doctor.findings import Finding, Level
from tests.adapters.scripted_broker import CONNECT, DISCONNECT, PUBLISH, SUBSCRIBE, Peer, scripted_broker
from tests.flow.builders import settings

HOUR = (3600).to_bytes(4, "big")
SESSION_EXPIRY = b"\x11"


async def examined(port: int, **more: object) -> list[Finding]:
    config = settings(aio_broker_hostname="127.0.0.1", aio_broker_tcp_port=port, **more)
    mqtt = mqtt_settings(config, client_id="doctor", subscriptions=probed_topics(config, "doctor"), session_expiry_s=0)
    return await check_broker(config, replace(mqtt, max_payload_bytes=1024))


async def test_a_session_that_is_kept_for_less_and_another_client_id_are_told_and_nothing_stays() -> None:
    goodbyes: list[bytes] = []

    async def script(peer: Peer) -> None:
        properties = SESSION_EXPIRY + HOUR + b"\x12\x00\x05other"
        while True:
            packet = await peer.read()
            if packet.kind == CONNECT:
                body = b"\x00\x00" + bytes([len(properties)]) + properties
                await peer.send(b"\x20" + bytes([len(body)]) + body)
            elif packet.kind == SUBSCRIBE:
                await peer.send(b"\x90\x04" + packet.body[:2] + b"\x00\x01")
            elif packet.kind == PUBLISH:
                await peer.acknowledge(packet)
            elif packet.kind == DISCONNECT:
                goodbyes.append(packet.body)
                return

    async with scripted_broker(script) as port:
        found = await examined(port)
        async with asyncio.timeout(5):
            while len(goodbyes) < 2:
                await asyncio.sleep(0.01)
    warnings = [each.what for each in found if each.level is Level.WARNING]
    assert any("away for 3600 s, AIO_MQTT_SESSION_EXPIRY is 86400" in text for text in warnings)
    assert any(text.startswith("calls us 'other'") for text in warnings)
    assert goodbyes[1].endswith(SESSION_EXPIRY + bytes(4)), "the session that was asked for is given back"


async def test_a_name_that_leads_nowhere_is_not_taken_for_a_broker_that_is_away() -> None:
    config = settings(aio_broker_hostname="broker.invalid")
    (found,) = await check_broker(config, mqtt_settings(config, client_id="doctor"))
    assert found.level is Level.PROBLEM
    assert found.what.startswith("the name leads to no address: ")
    assert "AIO_BROKER_HOSTNAME" in found.fix


def test_topics_of_commands_are_asked_for_too() -> None:
    config = settings(mqtt_command_topics=("plant/{gateway_id}/do",), mqtt_input_topics=("$share/all/cameras/+",))
    assert probed_topics(config, "me") == ("$share/me/cameras/+", "plant/test/do")
