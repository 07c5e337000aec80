"""Three gateways that share their cameras and one model volume, before two Tritons: each of them goes in turn."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from tests.e2e.site import until
from tests.replicas.site import Account, Replicas, detector

pytestmark = pytest.mark.triton
NOWHERE = "127.0.0.1:9"


@pytest.fixture(scope="module")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EmbeddedTriton]]:
    """Two of them on one volume with a detector."""
    repository = tmp_path_factory.mktemp("replicas")
    detector(repository)
    with EmbeddedTriton(repository) as first, EmbeddedTriton(repository) as second:
        yield [first, second]


@pytest.fixture(scope="module")
def three(shared_broker: EmbeddedBroker, tritons: list[EmbeddedTriton]) -> Iterator[Replicas]:
    """Three gateways, each before both Tritons; they leave their group at an orderly stop."""
    with Replicas(shared_broker, tritons, tritons[0].repository, MQTT_LEAVE_GROUP="true") as replicas:
        replicas.start()
        yield replicas


def is_whole(account: Account) -> bool:
    """Whether each snapshot has its result."""
    return (account.lost, account.errors) == (0, ())


def test_each_gateway_beside_a_triton_of_its_own(shared_broker: EmbeddedBroker, tritons: list[EmbeddedTriton]) -> None:
    """One that cannot reach its Triton keeps no other waiting; with an empty one it serves what is remembered."""
    with Replicas(shared_broker, tritons, tritons[0].repository, count=2) as replicas:
        first, second = replicas.replicas
        first.start(TRITON_GRPC_URL=NOWHERE, TRITON_METRICS_URL="")
        first.process.wait_ready(lambda: "Triton cannot be reached" in first.not_ready, 30, fix="See its log")
        second.start(TRITON_GRPC_URL=tritons[1].grpc_url, TRITON_METRICS_URL=tritons[1].metrics_url)
        second.wait_ready()
        assert (first.is_roller, second.is_roller) == (False, True)
        assert first.process.stop(30.0) == 0
        first.again(TRITON_GRPC_URL=tritons[0].grpc_url, TRITON_METRICS_URL=tritons[0].metrics_url)
        assert (first.is_roller, second.is_roller) == (False, True)
        replicas.begin()
        account = replicas.end()
        assert is_whole(account), account


def test_a_rolling_restart_under_load_loses_nothing(three: Replicas) -> None:
    three.begin()
    said = three.roll(MQTT_LEAVE_GROUP="false")
    assert ["Leaving the shared subscriptions" in each for each in said] == [True] * 3
    said = three.roll()
    assert ["Leaving the shared subscriptions" in each for each in said] == [False] * 3
    account = three.end()
    assert is_whole(account), account
    assert account.duplicates == 0, account


def test_killing_each_gateway_loses_nothing(three: Replicas) -> None:
    three.begin()
    three.kill_each()
    account = three.end()
    assert is_whole(account), account
    assert account.duplicates < account.sent / 10, account


def test_killing_one_of_two_tritons_fails_no_snapshot(three: Replicas, tritons: list[EmbeddedTriton]) -> None:
    victim = tritons[1]
    until(lambda: all(each.serves(victim.grpc_url) for each in three.replicas), "both Tritons in service", 60)
    three.begin()
    os.killpg(victim.pid, signal.SIGSTOP)  # so that snapshots are in flight there when it dies
    until(lambda: any(each.outstanding(victim.grpc_url) for each in three.replicas), "snapshots in flight there", 30)
    victim.kill()
    three.more(100)
    account = three.end()
    assert is_whole(account), account
    assert account.duplicates == 0, account
