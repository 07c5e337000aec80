"""Brokers for the tests of the adapters: real ones, and the one in memory that a spool is put around."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.testing import MemoryBroker
from tests.broker_session import Running, running
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


@pytest.fixture
async def hub() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def viewer(hub: MemoryBroker) -> AsyncIterator[Running]:
    async with running(hub.client("viewer", ["out"])) as session:
        yield session
