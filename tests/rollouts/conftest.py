"""The real parts for the tests of this folder: one Mosquitto for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.local.broker import EmbeddedBroker


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """A broker that no test stops."""
    with EmbeddedBroker() as broker:
        if broker.protocol != "5":
            pytest.skip("there is no Mosquitto here, and it cannot be installed")
        yield broker
