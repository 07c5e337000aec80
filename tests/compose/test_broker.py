"""A real Mosquitto with the configuration, the roles and the passwords that the containers have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.config import Settings
from gateway.errors import PublishRefused
from gateway.local.processes import free_ports
from gateway.messages import Message, Publication
from gateway.topics import TopicPattern, fill
from tests.broker_session import Running, running, until
from tests.certificates import Authority
from tests.compose.files import FOLDER
from tests.compose.site_setup import load_setup, prepared
from tests.mosquitto_server import Mosquitto

pytestmark = pytest.mark.mosquitto

PARTS = {"business_unit": "unit", "facility": "hall", "gateway_id": "gw", "device_id": "gate", "model_name": "safety"}
SNAPSHOT = "edge-ai/unit/hall/gw/camera/snapshots"
RESULT = "edge-ai/unit/hall/gw/ai/inference/vision"
INPUTS = (SNAPSHOT, "edge-ai/unit/hall/camera/snapshots", "edge-ai/unit/hall/gw/sensors/t-1",
          "azure-iot-operations/data/gate/snapshot")  # fmt: skip


@dataclass(frozen=True)
class Site:
    """The broker of the containers, with what leads to it."""

    server: Mosquitto
    health_port: int
    secrets: Path

    def settings(self, user: str, *subscriptions: str, **more: Any) -> MqttSettings:
        folder = {"gateway": "gateway/mqtt-password", "camera": "camera/mqtt-password"}.get(user, f"all/mqtt-{user}")
        given: dict[str, Any] = {
            "host": "127.0.0.1", "port": self.server.port, "client_id": f"a-{user}", "session_expiry_s": 0,
            "username": user, "password_file": self.secrets / folder,
        }  # fmt: skip
        return MqttSettings(**given | {"subscriptions": subscriptions} | more)


async def started(folder: Path, monkeypatch: pytest.MonkeyPatch, listeners: str, *more: tuple[str, str]) -> Site:
    """Start it with paths and ports of this test in place of the container's."""
    secrets = prepared(folder, monkeypatch)
    load_setup().main(["make"], secrets)
    server = Mosquitto(folder)
    (health_port,) = free_ports(1)
    there = folder / "listeners"
    there.mkdir()
    text = (FOLDER / "mosquitto" / "mosquitto.conf").read_text()
    listener = (FOLDER / "mosquitto" / listeners / "listener.conf").read_text()
    for old, new in (
        ("listener 1880 ", f"listener {health_port} "),
        ("listener 1883\n", f"listener {server.port} 127.0.0.1\n"),
        ("listener 8883\n", f"listener {server.port} 127.0.0.1\n"),
        ("/mosquitto/config/", f"{FOLDER}/mosquitto/"),
        ("/mosquitto/secrets/", f"{secrets}/mosquitto/"),
        ("/mosquitto/listeners", str(there)),
        ("persistence_location /mosquitto/data/", f"persistence_location {folder}/data/"),
        *more,
    ):
        text, listener = text.replace(old, new), listener.replace(old, new)
    # At the end: per_listener_settings has to be the first line. As root, for the folders of a test belong to root.
    server.config.write_text(f"{text}\nuser root\n")
    (there / "listener.conf").write_text(listener)
    await server.start()
    return Site(server, health_port, secrets)


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    site = await started(tmp_path, monkeypatch, "plain")
    yield site
    await site.server.stop()


class Listener:
    """Collects all that a session gets."""

    def __init__(self, session: Running) -> None:
        self.got: list[str] = []
        self._session = session
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for message in self._session.broker.messages():
            self._session.broker.acknowledge(message)
            self.got.append(message.topic)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def test_the_gateway_gets_every_input_and_publishes_all_it_has_to_say(site: Site) -> None:
    defaults = Settings.model_fields["mqtt_input_topics"].default
    inputs = [TopicPattern(text).subscription for text in defaults]
    commands = "edge-ai/unit/hall/gw/ai/commands/models"
    gateway = MqttBroker(site.settings("gateway", *inputs, f"$share/all/{inputs[0]}", commands))
    async with running(gateway) as session, running(MqttBroker(site.settings("camera"))) as camera:
        for topic in INPUTS:
            await camera.broker.publish(Publication(topic, b"1"))
        got = {(await session.next()).topic for _ in range(len(INPUTS) + 1)}  # the shared subscription once more
        assert got == set(INPUTS)
        templates = [text for text in Settings(home_assistant_topic="homeassistant").output_topics if "#" not in text]
        said = [fill(text, PARTS) for text in templates]
        for topic in (*said, f"{fill(Settings().status_topic, PARTS)}/doctor", "homeassistant/device/gate/config"):
            await gateway.publish(Publication(topic, b"{}", retain=topic.endswith("status")))


async def test_a_camera_publishes_and_reads_nothing(site: Site) -> None:
    everything = ("#", "edge-ai/+/+/+/ai/#", SNAPSHOT)
    camera = MqttBroker(site.settings("camera", *everything))
    gateway, viewer = MqttBroker(site.settings("gateway")), MqttBroker(site.settings("viewer", "edge-ai/+/+/+/ai/#"))
    async with running(camera) as at_camera, running(gateway), running(viewer) as at_viewer:
        spy = Listener(at_camera)
        await gateway.publish(Publication(RESULT, b"{}", retain=True))
        assert (await at_viewer.next()).topic == RESULT
        await camera.publish(Publication(SNAPSHOT, b"1"))  # whatever was on its way to it came before this answer
        assert spy.got == []
        with pytest.raises(PublishRefused):
            await camera.publish(Publication(RESULT, b"{}"))
        await spy.stop()


async def test_a_viewer_sees_answers_alone_and_says_nothing(site: Site) -> None:
    viewer = MqttBroker(site.settings("viewer", "#"))
    commands = "edge-ai/unit/hall/gw/ai/commands/models"
    gateway, camera = MqttBroker(site.settings("gateway")), MqttBroker(site.settings("camera"))
    async with running(viewer) as at_viewer, running(gateway), running(camera):
        spy = Listener(at_viewer)
        await camera.publish(Publication(SNAPSHOT, b"1"))
        await gateway.publish(Publication(commands, b'{"token": "secret"}'))
        await gateway.publish(Publication(RESULT, b"{}"))
        await until(lambda: RESULT in spy.got)
        assert spy.got == [RESULT]
        for topic in (SNAPSHOT, RESULT, commands):
            with pytest.raises(PublishRefused):
                await viewer.publish(Publication(topic, b"{}"))
        await spy.stop()


@pytest.mark.parametrize("user", [None, "viewer", "xyzzy"])
async def test_nobody_comes_in_without_his_password(site: Site, user: str | None) -> None:
    settings = site.settings("camera", username=user) if user else MqttSettings(
        client_id="a", host="127.0.0.1", port=site.server.port
    )  # fmt: skip
    broker = MqttBroker(settings)
    session = Running(broker)
    await until(lambda: bool(broker.trouble))
    assert not broker.connected
    assert "authoris" in broker.trouble.lower() or "authoriz" in broker.trouble.lower()
    await session.close()


async def test_the_health_check_learns_that_it_runs_and_nothing_else(site: Site) -> None:
    asking = MqttSettings(client_id="health", host="127.0.0.1", port=site.health_port, subscriptions=("$SYS/#", "#"))
    async with running(MqttBroker(asking)) as session, running(MqttBroker(site.settings("gateway"))) as gateway:
        message: Message = await session.next()
        assert message.topic == "$SYS/broker/uptime"
        await gateway.broker.publish(Publication(RESULT, b"{}"))
        with pytest.raises(PublishRefused):
            await session.broker.publish(Publication(SNAPSHOT, b"1"))


async def test_what_is_too_large_for_the_gateway_still_reaches_it(site: Site) -> None:
    limit = Settings().max_payload_bytes
    gateway = MqttBroker(site.settings("gateway", SNAPSHOT, max_payload_bytes=limit))
    async with running(gateway) as session, running(MqttBroker(site.settings("camera"))) as camera:
        await camera.broker.publish(Publication(SNAPSHOT, bytes(limit + 2**20)))
        message = await session.next()
        assert message.oversize is not None
        assert message.oversize.size == limit + 2**20


async def test_a_gateway_that_was_away_gets_all_of_it_after_a_restart_of_the_broker(site: Site) -> None:
    count = 1500  # beyond the thousand that Mosquitto keeps unless told otherwise
    asking = site.settings("gateway", SNAPSHOT, session_expiry_s=3600, receive_maximum=2000, inbox_max_messages=5000)
    async with running(MqttBroker(asking)):
        pass
    async with running(MqttBroker(site.settings("camera"))) as camera, asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(camera.broker.publish(Publication(SNAPSHOT, b"%d" % number)))
    await site.server.stop()
    await site.server.start()
    async with running(MqttBroker(asking)) as gateway:
        got = [int(message.payload) for message in await gateway.take(count)]
    assert got == list(range(count))


async def test_a_camera_cannot_take_the_gateway_s_session(site: Site) -> None:
    """Mosquitto ties no client id to a user: the gateway's is one that a camera can neither read nor guess."""
    made = yaml.safe_load((site.secrets / "gateway" / "gateway.yaml").read_text())
    settings = Settings(**made, gateway_id="gateway-01", facility="hall", business_unit="unit")
    asking = site.settings("gateway", SNAPSHOT, client_id=settings.client_id, session_expiry_s=3600)
    async with running(MqttBroker(asking)) as gateway:
        guessed = Settings(gateway_id="gateway-01").client_id
        async with running(MqttBroker(site.settings("camera", client_id=guessed))) as camera:
            spy = Listener(camera)
            assert gateway.broker.connected
        await spy.stop()
    async with running(MqttBroker(site.settings("camera"))) as camera:
        await camera.broker.publish(Publication(SNAPSHOT, b"waits"))
    async with running(MqttBroker(site.settings("camera", client_id=guessed))):
        pass
    async with running(MqttBroker(asking)) as gateway:
        assert (await gateway.next()).payload == b"waits"


async def test_a_broker_that_is_killed_has_what_it_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more: what came since the last save, of every 5 s, is gone (docs/decisions/0028-compose.md)."""
    site = await started(tmp_path, monkeypatch, "plain", ("autosave_interval 5\n", "autosave_interval 1\n"))
    asking = site.settings("gateway", SNAPSHOT, session_expiry_s=3600)
    async with running(MqttBroker(asking)):
        pass
    async with running(MqttBroker(site.settings("camera"))) as camera:
        await camera.broker.publish(Publication(SNAPSHOT, b"x" * 100_000))
    saved = site.server.config.parent / "data" / "mosquitto.db"
    await until(lambda: saved.exists() and saved.stat().st_size > 100_000)
    await site.server.kill()
    await site.server.start()
    async with running(MqttBroker(asking)) as gateway:
        assert (await gateway.next()).payload == b"x" * 100_000
    await site.server.stop()


async def test_with_tls_there_is_no_other_way_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tls").mkdir()
    ca = Authority(tmp_path / "tls")
    pair = ca.issue("server")
    files = [("ca.crt", ca.path), ("server.crt", pair.certificate), ("server.key", pair.key)]
    paths = [(f"/mosquitto/tls/{name}", str(path)) for name, path in files]
    site = await started(tmp_path, monkeypatch, "tls", *paths)
    secure = site.settings("gateway", SNAPSHOT, host="localhost", tls=True, ca_file=ca.path)
    async with running(MqttBroker(secure)) as session:
        assert session.broker.connected
    plain = MqttBroker(site.settings("camera"))
    session = Running(plain)
    await until(lambda: bool(plain.trouble))
    assert not plain.connected
    await session.close()
    await site.server.stop()
