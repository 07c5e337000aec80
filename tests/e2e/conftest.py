"""The real parts for the tests of this folder: one Mosquitto and one Triton with the sample models for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from tests.e2e.site import RealSite

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[EmbeddedBroker]:
    """A broker that no test stops."""
    with EmbeddedBroker() as broker:
        if broker.protocol != "5":
            pytest.skip("there is no Mosquitto here, and it cannot be installed")
        yield broker


@pytest.fixture(scope="session")
def shared_triton() -> Iterator[EmbeddedTriton]:
    """A Triton that no test stops."""
    with EmbeddedTriton(REPOSITORY) as triton:
        yield triton


@pytest.fixture
def site(shared_broker: EmbeddedBroker, shared_triton: EmbeddedTriton) -> Iterator[RealSite]:
    """A gateway process of this test's own between the shared broker and Triton, ready."""
    with RealSite(shared_broker, shared_triton) as place:
        place.start()
        place.wait_ready()
        yield place
