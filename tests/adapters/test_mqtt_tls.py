"""TLS and mutual TLS to a real Mosquitto, with a throw-away authority."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.messages import Publication
from tests.adapters.mqtt_client import Client
from tests.broker_session import until
from tests.certificates import Authority
from tests.mosquitto_server import Mosquitto, NewMosquitto

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
async def tls_port(ca: Authority, new_mosquitto: NewMosquitto) -> int:
    """Of a Mosquitto that wants certificates of the authority."""
    pair = ca.issue("server")
    files = (f"cafile {ca.path}", f"certfile {pair.certificate}", f"keyfile {pair.key}")
    server = new_mosquitto(*files, "require_certificate true", "use_identity_as_username true")
    await server.start()
    return server.port


@pytest.fixture
def trust(ca: Authority) -> dict[str, Any]:
    pair = ca.issue("client")
    return {
        "host": "localhost", "tls": True, "ca_file": ca.path, "cert_file": pair.certificate, "key_file": pair.key,
        "look_at_files_s": 0.05,
    }  # fmt: skip


async def test_large_and_oversize_messages_over_mutual_tls(tls_port: int, trust: dict[str, Any]) -> None:
    gateway = Client(tls_port, subscriptions=("in",), max_payload_bytes=1_000_000, **trust)
    await gateway.connected()
    for size in (1_000_000, 3_000_000, 10):
        await gateway.broker.publish(Publication("in", bytes(size)))
    messages = await gateway.take(3)
    await gateway.close()
    assert [len(message.payload) for message in messages] == [1_000_000, 0, 10]
    assert [message.oversize.size if message.oversize else None for message in messages] == [None, 3_000_000, None]


async def test_renewed_certificate_is_shown_without_a_restart_and_nothing_is_lost(
    tls_port: int, trust: dict[str, Any], ca: Authority
) -> None:
    other = ca.issue("other")
    camera = Client(tls_port, "camera", **trust | {"cert_file": other.certificate, "key_file": other.key})
    gateway = Client(tls_port, subscriptions=("in",), **trust)
    await gateway.connected()
    await camera.connected()
    taken: list[bytes] = []

    async def take() -> None:
        while len(set(taken)) < 300:
            message = await gateway.next()
            taken.append(message.payload)
            gateway.broker.acknowledge(message)

    async def send() -> None:
        for number in range(300):
            if number == 100:
                ca.issue("client")  # over the one that is used
            if number == 200:
                await until(lambda: gateway.events.count("connected") == 2)
            await camera.broker.publish(Publication("in", b"%d" % number))

    with capture_logs() as logs:
        await asyncio.gather(take(), send())
    await gateway.close()
    await camera.close()
    assert set(taken) == {b"%d" % number for number in range(300)}
    assert gateway.events == ["connected", "credentials_renewed", "connected"]
    (entry,) = [entry for entry in logs if "Renewed credentials" in entry.get("reason", "")]
    assert entry["log_level"] == "info"
    assert "client.crt" in entry["reason"]


async def test_client_without_certificate_is_told_which_setting_is_missing(tls_port: int, ca: Authority) -> None:
    with capture_logs() as logs:
        gateway = Client(tls_port, host="localhost", tls=True, ca_file=ca.path)
        await until(lambda: "unreachable" in gateway.events)
        await gateway.close()
    assert "connected" not in gateway.events
    assert "AIO_TLS_CERT_FILE" in logs[0]["fix"]


async def test_tls_towards_a_plain_listener(mosquitto: Mosquitto) -> None:
    with capture_logs() as logs:
        gateway = Client(mosquitto.port, host="localhost", tls=True, connect_timeout_s=1.0)
        await until(lambda: "unreachable" in gateway.events)
        await gateway.close()
    assert "TLS" in logs[0]["reason"]
    assert "is its TLS port" in logs[0]["fix"]


async def test_plain_text_towards_a_tls_listener(tls_port: int) -> None:
    with capture_logs() as logs:
        gateway = Client(tls_port)
        await until(lambda: "unreachable" in gateway.events)
        await gateway.close()
    assert "AIO_MQTT_USE_TLS is false" in f"{logs[0]['reason']} {logs[0]['fix']}"
