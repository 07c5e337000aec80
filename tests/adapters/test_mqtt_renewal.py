"""Tokens and passwords that are renewed while the session is up, at a broker that is scripted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.adapters.mqtt_settings import MqttSettings
from tests.adapters.mqtt_client import Client
from tests.adapters.scripted_broker import AUTH, CONNACK_RESUMED, DISCONNECT, Packet, Peer, scripted_broker
from tests.broker_session import until
from tests.certificates import Authority, server_context

OFTEN: dict[str, Any] = {"look_at_files_s": 0.03, "host": "localhost", "answer_timeout_s": 0.3}
AUTH_SUCCESS = bytes.fromhex("f0 02 00 00")
AUTH_CONTINUE = bytes.fromhex("f0 02 18 00")
NOT_AUTHORIZED = bytes.fromhex("e0 01 87")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """As Kubernetes mounts it: a link to a link, which is exchanged."""
    for number in ("1", "2"):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "token").write_text(f"token-{number}\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "token").symlink_to("..data/token")
    return tmp_path / "token"


def renew(token: Path) -> None:
    new = token.parent / "..data_new"
    new.symlink_to("..2")
    os.replace(new, token.parent / "..data")  # noqa: PTH105 - the point is that it is one step


def secured(folder: Path, token: Path) -> tuple[dict[str, Any], Any]:
    """Settings of a client, and the TLS context of its broker."""
    ca = Authority(folder)
    return {**OFTEN, "tls": True, "ca_file": ca.path, "sat_file": token}, server_context(ca.issue("server"))


async def test_renewed_token_is_shown_with_auth_and_the_session_goes_on(token: Path, tmp_path: Path) -> None:
    seen: list[Packet] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.read())
        await peer.send(CONNACK_RESUMED)
        seen.append(await peer.read())
        await peer.send(AUTH_SUCCESS)
        seen.append(await peer.read())

    settings, context = secured(tmp_path, token)
    async with scripted_broker(script, context) as port:
        gateway = Client(port, **settings)
        await gateway.connected()
        renew(token)
        await until(lambda: "credentials_renewed" in gateway.events)
        assert gateway.broker.connected
        await gateway.close()
    connect, auth, end = seen
    assert b"token-1" in connect.body
    # Re-authenticate, then the properties: authentication method and data.
    assert (auth.kind, auth.body[0]) == (AUTH, 0x19)
    assert auth.body[2:] == b"\x15\x00\x07K8S-SAT\x16\x00\x07token-2"
    assert end.kind == DISCONNECT
    assert gateway.events == ["connected", "credentials_renewed"]


@pytest.mark.parametrize("answer", [b"", AUTH_CONTINUE, NOT_AUTHORIZED])
async def test_broker_that_does_not_take_auth_gets_a_new_connection(token: Path, tmp_path: Path, answer: bytes) -> None:
    connects: list[Packet] = []

    async def script(peer: Peer) -> None:
        connects.append(await peer.read())
        await peer.send(CONNACK_RESUMED)
        assert (await peer.read()).kind in (AUTH, DISCONNECT)
        await peer.send(answer)
        await peer.read()

    settings, context = secured(tmp_path, token)
    async with scripted_broker(script, context) as port:
        gateway = Client(port, **settings)
        await gateway.connected()
        renew(token)
        await until(lambda: gateway.events.count("connected") == 2)
        await gateway.close()
    assert b"token-2" in connects[1].body
    assert "session_lost" not in gateway.events
    if not answer:
        assert gateway.events == ["connected", "credentials_renewed", "connected"]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_renewed_password_takes_a_new_connection(tmp_path: Path, protocol: str) -> None:
    file, seen = tmp_path / "password", list[Packet]()
    file.write_text("first")

    async def script(peer: Peer) -> None:
        seen.append(await peer.read())
        await peer.send(CONNACK_RESUMED if protocol == "5" else CONNACK_RESUMED[:1] + b"\x02\x01\x00")
        seen.append(await peer.read())

    async with scripted_broker(script) as port:
        gateway = Client(port, username="gw", password_file=file, protocol=protocol, **OFTEN)
        await gateway.connected()
        file.write_text("second")
        await until(lambda: len(seen) == 3)
        await gateway.close()
    assert b"first" in seen[0].body
    assert seen[1].kind == DISCONNECT  # in order, so that no last will is sent
    assert b"second" in seen[2].body


async def test_files_are_followed_on_after_what_nobody_foresaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, looks, check = tmp_path / "password", list[int](), MqttSettings.check_renewal
    file.write_text("first")

    def break_twice(settings: MqttSettings) -> None:
        looks.append(1)
        if len(looks) < 3:
            raise RuntimeError("unforeseen")
        check(settings)

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(CONNACK_RESUMED)
        await peer.read()

    monkeypatch.setattr(MqttSettings, "check_renewal", break_twice)
    async with scripted_broker(script) as port:
        with capture_logs() as logs:
            gateway = Client(port, username="gw", password_file=file, **OFTEN)
            await gateway.connected()
            file.write_text("second")
            await until(lambda: gateway.events.count("connected") == 2)
            await gateway.close()
    assert gateway.events == ["connected", "credentials_renewed", "connected"]
    assert len([entry for entry in logs if entry["log_level"] == "error"]) == 1


async def test_broken_renewal_keeps_the_session_and_is_said_once(tmp_path: Path) -> None:
    """A key that is copied before its certificate, a file that is half written: the session must not pay for it."""
    ca = Authority(tmp_path)
    pair, fresh = ca.issue("client"), ca.issue("fresh")

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(CONNACK_RESUMED)
        await peer.read()

    mine: dict[str, Any] = {"tls": True, "ca_file": ca.path, "cert_file": pair.certificate, "key_file": pair.key}
    async with scripted_broker(script, server_context(ca.issue("server"), ca.path)) as port:
        with capture_logs() as logs:
            gateway = Client(port, **OFTEN, **mine)
            await gateway.connected()
            pair.key.write_bytes(fresh.key.read_bytes())
            await until(lambda: any("does not belong" in entry.get("reason", "") for entry in logs))
            pair.certificate.write_bytes(pair.certificate.read_bytes()[:100])
            await until(lambda: any("no certificate" in entry.get("reason", "") for entry in logs))
            pair.replace_by(ca.issue("late", days=(-5, -1)))
            await until(lambda: any("has ended" in entry.get("reason", "") for entry in logs))
            assert gateway.events == ["connected"]
            pair.replace_by(fresh)
            await until(lambda: gateway.events.count("connected") == 2)
            await gateway.close()
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert {entry["setting"] for entry in warnings} == {"AIO_TLS_KEY_FILE", "AIO_TLS_CERT_FILE"}
    assert gateway.events == ["connected", "credentials_renewed", "connected"]
