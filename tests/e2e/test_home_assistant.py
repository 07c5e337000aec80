"""Home Assistant's side of a real broker: what it finds there when it comes, from a gateway of two workers."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import paho.mqtt.client as paho
import pytest

from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import Client, RealSite, until

CAMERAS = 4


class HomeAssistant:
    """A client on the discovery topics: the last message of each, and how many came."""

    def __init__(self, port: int, prefix: str) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, dict[str, Any]] = {}
        self.count: Counter[str] = Counter()
        self._client = Client(port, f"{prefix}/#", on_message=self._hear)

    def _hear(self, message: paho.MQTTMessage) -> None:
        with self._lock:
            self.count[message.topic] += 1
            self._last[message.topic] = json.loads(message.payload)

    def devices(self) -> dict[str, dict[str, Any]]:
        """The discovery messages by the name of the device."""
        with self._lock:
            return {body["device"]["name"]: body for topic, body in self._last.items() if topic.endswith("/config")}

    def state_of(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            return self._last.get(body["state_topic"], {})

    def close(self) -> None:
        self._client.close()


@pytest.mark.triton
def test_who_comes_later_finds_the_gateway_and_its_cameras(
    shared_broker: EmbeddedBroker, shared_triton: EmbeddedTriton
) -> None:
    with RealSite(shared_broker, shared_triton, WORKERS="2") as site:
        prefix = f"ha/{site.unit}"
        before = HomeAssistant(shared_broker.port, prefix)
        site.start(HOME_ASSISTANT_TOPIC=prefix)
        site.wait_ready()
        image = frame(TEST_SEEDS[0], 0)
        names = {f"camera-{number}" for number in range(CAMERAS)}
        for number, name in enumerate(sorted(names) * 2):
            site.send(json_snapshot(image, name, number=number, backend_preference="onnx"))
        site.answered(2 * CAMERAS)
        until(lambda: len(before.devices()) == CAMERAS + 1, "all devices")
        configs = {topic for topic in before.count if topic.endswith("/config")}
        assert {before.count[topic] for topic in configs} == {1}, "each is said once, whichever worker has it"
        before.close()

        later = HomeAssistant(shared_broker.port, prefix)
        until(lambda: set(later.devices()) == {"Edge gateway gw", *names}, "what the broker keeps")
        gateway = later.devices()["Edge gateway gw"]
        for name in names:
            camera = later.devices()[name]
            assert camera["device"]["via_device"] == gateway["device"]["identifiers"][0]
            until(lambda: "last_result" in later.state_of(camera), "its state")  # noqa: B023 - awaited here
            alert = next(key for key, each in camera["components"].items() if each["platform"] == "binary_sensor")
            assert later.state_of(camera)[alert] in ("ON", "OFF")
        later.close()
