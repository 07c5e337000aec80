"""The process of one variant dies at a real Triton while snapshots come."""

from __future__ import annotations

import threading

import psutil
import pytest

from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import RealSite, until

IN_FLIGHT = 2
"""So few that a busy machine is not overloaded."""
IMAGES = [frame(TEST_SEEDS[10 + number], 0) for number in range(4)]


def stubs(triton: EmbeddedTriton, model: str) -> list[psutil.Process]:
    """The processes that serve a model."""
    children = psutil.Process(triton.pid).children()
    return [child for child in children if any(f"/{model}/" in word for word in child.cmdline())]


@pytest.mark.triton
def test_kill_9_of_a_variant_fails_no_snapshot_and_it_comes_back(site: RealSite, shared_triton: EmbeddedTriton) -> None:
    sent: list[int] = []
    stop = threading.Event()

    def cameras() -> None:
        while not stop.is_set():
            until(lambda: len(sent) - len(site.answers) < IN_FLIGHT, "an answer")
            number = len(sent)
            site.send(json_snapshot(IMAGES[number % len(IMAGES)], f"camera-{number % 5}", number=number))
            sent.append(number)

    def answered_by(variant: str, since: int) -> bool:
        return any(body["backend_used"] == variant for body in site.results[since:])

    camera = threading.Thread(target=cameras)
    camera.start()
    try:
        until(lambda: answered_by("onnx", 0), "an answer of the variant")
        before = len(site.results)
        for stub in stubs(shared_triton, "industrial-safety-onnx"):
            stub.kill()
        until(lambda: answered_by("torch", before), "an answer of the other variant")
        before = len(site.results)
        until(lambda: answered_by("onnx", before), "the variant, loaded again")
    finally:
        stop.set()
        camera.join()
    site.answered(len(sent))
    assert [body["error"] for body in site.errors] == []
    until(site.is_ready, "readiness")
    text = site.get("/metrics").text
    assert 'edge_gateway_circuit_breaker_state{model="industrial-safety",state="closed",variant="onnx"} 1.0' in text
