"""`serve --workers 2` on real parts: one gateway, in three processes."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator

import httpx
import psutil
import pytest

from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import RealSite, until

CAMERAS = 4
SNAPSHOTS = 40


@pytest.fixture
def site(shared_broker: EmbeddedBroker, shared_triton: EmbeddedTriton) -> Iterator[RealSite]:
    # room for all snapshots of a burst: an answer may be QUEUE_FULL otherwise
    room = str(2 * SNAPSHOTS * 2**20)
    with RealSite(shared_broker, shared_triton, WORKERS="2", DRAIN_TIMEOUT_S="5", QUEUE_MAX_BYTES=room) as place:
        place.start()
        place.wait_ready()
        yield place


def workers(site: RealSite) -> list[psutil.Process]:
    return [each for each in psutil.Process(site.process.pid).children() if "serve" in each.cmdline()]


def send(site: RealSite, images: list[bytes], numbers: range) -> None:
    for number in numbers:
        image = images[number % len(images)]
        site.send(json_snapshot(image, f"camera-{number % CAMERAS}", number=number, backend_preference="onnx"))


@pytest.mark.triton
def test_two_workers_are_one_gateway(site: RealSite) -> None:
    images = [frame(seed, 0) for seed in TEST_SEEDS[:2]]
    send(site, images, range(SNAPSHOTS))
    site.answered(SNAPSHOTS)
    assert len(site.results) == SNAPSHOTS, "one answer each"
    per_camera = Counter(result["device_id"] for result in site.results)
    assert per_camera == {f"camera-{number}": SNAPSHOTS // CAMERAS for number in range(CAMERAS)}
    starts = Counter(alert["device_id"] for alert in site.of("ai_alert") if alert["event"] == "start")
    assert set(starts.values()) <= {1}, "an alert starts once, whichever worker has the camera"
    until(lambda: site.metric("edge_gateway_unacknowledged_messages") == 0, "all acknowledgements")
    assert site.metric("edge_gateway_snapshots_received_total") == SNAPSHOTS
    assert site.metric("edge_gateway_snapshot_duration_seconds_count") == SNAPSHOTS
    assert site.get("/api/status").json()["snapshots"]["published"] == SNAPSHOTS
    _asked_over_http(site, images[0])
    _killed(site, images)
    _stopped(site)


def _asked_over_http(site: RealSite, image: bytes) -> None:
    """Each of the two answers, and pages that the front does not know itself are the lead's."""
    for _ in range(2):
        url = f"http://127.0.0.1:{site.http_port}/v1/infer?model=industrial-safety"
        answer = httpx.post(url, content=image, headers={"Content-Type": "image/jpeg"}, timeout=20, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert answer.json()["message_type"] == "ai_inference_result"
    assert "/v1/infer" in site.get("/openapi.json").json()["paths"]
    assert site.get("/nothing").json()["error"]["code"] == "NOT_FOUND"
    assert site.get("/v2/health/ready").json() == {"ready": True}


def _killed(site: RealSite, images: list[bytes]) -> None:
    """kill -9 of one: nothing is lost, and the next takes its place."""
    (victim, *_), before = workers(site), site.metric("edge_gateway_snapshots_received_total")
    send(site, images, range(SNAPSHOTS, SNAPSHOTS + 8))
    victim.send_signal(signal.SIGKILL)
    send(site, images, range(SNAPSHOTS + 8, SNAPSHOTS + 16))
    site.answered(SNAPSHOTS + 16)
    until(lambda: site.metric("edge_gateway_workers") == 2, "the worker in its place")
    assert site.metric("edge_gateway_worker_restarts_total") == 1
    assert site.metric("edge_gateway_snapshots_received_total") >= before, "no count goes back"
    until(site.is_ready, "both to be ready")
    until(lambda: site.get("/ready").json()["degraded"] == [], "nothing to be degraded")
    assert [each["status"] for each in site.of("ai_status") if each["status"] == "offline"] == []


def _stopped(site: RealSite) -> None:
    """SIGTERM ends all of them, and says so once."""
    processes = workers(site)
    assert len(processes) == 2
    assert site.process.stop(20) == 0
    assert not any(each.is_running() for each in processes)
    until(lambda: site.of("ai_status")[-1]["status"] == "offline", "the offline status")
    ended = [alert["alert_id"] for alert in site.of("ai_alert") if alert["event"] == "end"]
    assert len(ended) == len(set(ended))


@pytest.mark.triton
def test_no_worker_outlives_a_front_that_is_killed(site: RealSite) -> None:
    processes = workers(site)
    site.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
