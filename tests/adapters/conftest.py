"""Real brokers for the tests of the MQTT adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.mosquitto_server import Mosquitto, NewMosquitto


@pytest.fixture
async def new_mosquitto(tmp_path: Path) -> AsyncIterator[NewMosquitto]:
    servers: list[Mosquitto] = []

    def make(*lines: str, anonymous: bool = True) -> Mosquitto:
        servers.append(Mosquitto(tmp_path, *lines, anonymous=anonymous))
        return servers[-1]

    yield make
    for server in servers:
        await server.stop()


@pytest.fixture
async def mosquitto(new_mosquitto: NewMosquitto) -> Mosquitto:
    server = new_mosquitto()
    await server.start()
    return server
