"""Start order, outages and sudden deaths, with a broker and a Triton of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest

from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import REPOSITORY, RealSite, until

MEMORY_LIMIT_MB = 150


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [frame(TEST_SEEDS[10 + number], 0) for number in range(4)]


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        if broker.protocol != "5":
            pytest.skip("there is no Mosquitto here, and it cannot be installed")
        yield broker


@pytest.fixture
def triton() -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(REPOSITORY) as triton:
        yield triton


def test_start_order_does_not_matter_and_ready_is_honest(broker: EmbeddedBroker, triton: EmbeddedTriton) -> None:
    broker.kill()
    triton.kill()
    site = RealSite(broker, triton)
    site.start()
    try:
        until(lambda: answers(site, "/live"), "liveness")
        until(lambda: "broker" in str(site.get("/ready").json()["reasons"]), "the reason")
        assert "Triton" in str(site.get("/ready").json()["reasons"])
        assert site.get("/startup").status_code == 503
        broker.start()
        until(lambda: "broker" not in str(site.get("/ready").json()["reasons"]), "the broker's session")
        assert not site.is_ready()
        triton.start()
        until(site.is_ready, "readiness with both there")
        assert site.get("/startup").status_code == 200
        triton.kill()
        until(lambda: not site.is_ready(), "unreadiness without Triton")
        triton.start()
        until(site.is_ready, "readiness after Triton's restart")
        broker.kill()
        until(lambda: not site.is_ready(), "unreadiness without broker")
        broker.start()
        until(site.is_ready, "readiness after the broker's restart")
        log = "\n".join(site.process.log_tail(500))
        assert "Waiting for Triton" in log
        assert "aiting for the broker" in log
    finally:
        assert site.process.stop(10.0) == 0


def answers(site: RealSite, path: str) -> bool:
    try:
        return site.get(path).status_code == 200
    except httpx.HTTPError:
        return False


def test_kill_9_of_the_gateway_under_load_loses_nothing(site: RealSite, images: list[bytes]) -> None:
    count = 120
    sent = threading.Event()

    def cameras() -> None:
        for number in range(count):
            site.send(json_snapshot(images[number % len(images)], f"camera-{number % 5}", number=number))
        sent.set()

    camera = threading.Thread(target=cameras)
    camera.start()
    for threshold in (20, 50):
        site.answered(threshold)
        site.process.kill()
        site.start()
    camera.join()
    site.answered(count)
    by_id: dict[str, set[str]] = {}
    for body in site.answers:
        by_id.setdefault(body["result_id"], set()).add(f"{body['device_id']} {body['timestamp']}")
    assert len(by_id) == count
    assert all(len(snapshots) == 1 for snapshots in by_id.values()), "one id, one snapshot"
    until(lambda: site.metric("edge_gateway_unacknowledged_messages") == 0, "the last acknowledgement")
    assert site.metric("edge_gateway_snapshots_received_total") == site.metric("edge_gateway_snapshots_total")


def test_kill_9_of_triton_under_load_answers_every_snapshot(
    broker: EmbeddedBroker, triton: EmbeddedTriton, images: list[bytes]
) -> None:
    count = 60
    with RealSite(broker, triton) as site:
        site.start()
        site.wait_ready()

        def cameras() -> None:
            for number in range(count):
                site.send(json_snapshot(images[number % len(images)], f"camera-{number % 5}", number=number))

        camera = threading.Thread(target=cameras)
        camera.start()
        site.answered(10)
        triton.kill()
        triton.start()
        camera.join()
        site.answered(count)
        until(site.is_ready, "readiness after Triton's restart")
        until(
            lambda: site.metric("edge_gateway_snapshots_received_total") == site.metric("edge_gateway_snapshots_total"),
            "the sum of outcomes",
        )


def test_a_killed_gateway_leaves_its_last_will_and_a_stopped_one_says_goodbye(site: RealSite) -> None:
    until(lambda: [s["status"] for s in site.of("ai_status")][-1:] == ["ready"], "the status")
    site.process.kill()
    until(lambda: site.of("ai_status")[-1]["status"] == "offline", "the last will")
    assert site.of("ai_status")[-1]["reason"] == "connection lost"
    site.start()
    until(lambda: site.of("ai_status")[-1]["status"] == "ready", "the status after the restart")
    assert site.process.stop(10.0) == 0
    until(lambda: site.of("ai_status")[-1]["status"] == "offline", "the goodbye")
    assert site.of("ai_status")[-1]["reason"] == "stopped"


def test_sigterm_under_load_finishes_what_was_accepted(site: RealSite, images: list[bytes]) -> None:
    count = 40
    for number in range(count):
        site.send(json_snapshot(images[number % len(images)], "camera", number=number))
    assert site.process.stop(30.0) == 0
    site.start()
    site.answered(count)


def test_memory_under_load_stays_within_the_limit(site: RealSite, images: list[bytes]) -> None:
    rounds, cameras = 60, 3
    for number in range(rounds):
        for camera in range(cameras):
            image = images[(number + camera) % len(images)]
            site.send(json_snapshot(image, f"camera-{camera}", number=number, backend_preference="dual"))
        site.answered((number + 1) * cameras)
        assert site.memory_mb() <= MEMORY_LIMIT_MB
