"""What the tests of the MQTT adapter share."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from tests.broker_session import Running


class Client(Running):
    """A running MqttBroker and the events that it told."""

    def __init__(self, port: int, client_id: str = "gateway", **settings: Any) -> None:
        self.events: list[str] = []
        super().__init__(MqttBroker(MqttSettings(client_id=client_id, port=port, **settings), self.events.append))


def run_program(*command: str, folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
