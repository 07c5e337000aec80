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
        self._session = MqttBroker(MqttSettings(client_id=client_id, port=port, **settings), self.events.append)
        super().__init__(self._session)

    def drop(self) -> None:
        """Lose the connection as when a cable is pulled; it connects again at once."""
        assert self._session._connection is not None
        self._session._connection.abort()


def run_program(*command: str, folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
