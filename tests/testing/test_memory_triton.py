"""What a test can do to the memory server; what it does as an inference server is in the contract tests."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from gateway.errors import BackendRejected, BackendTimeout, ModelUnavailable
from gateway.messages import InferRequest
from gateway.ports import GpuMemory
from gateway.testing import MemoryTriton
from tests import triton_models as models

ROWS = np.ones((1, 3), np.float32)


@pytest.fixture
def server() -> MemoryTriton:
    server = MemoryTriton()
    for version in (1, 2):
        server.add_model(models.times_signature("m", version), models.times(version))
    return server


async def ask(server: MemoryTriton, version: str = "", *, timeout_s: float = 5.0) -> float:
    """The factor with which a version answers."""
    response = await server.infer(InferRequest("m", {"x": ROWS}, ("y__0",), timeout_s, version))
    return float(response.outputs["y__0"][0, 0])


async def test_a_new_drop_serves_from_the_next_load_on(server: MemoryTriton) -> None:
    await server.load("m", (1, 2))
    server.add_model(models.times_signature("m", 2), models.times(20))
    server.add_model(models.times_signature("m", 3), models.times(3))
    assert [await ask(server, "1"), await ask(server, "2")] == [1, 2]
    assert await server.serving("m") == (1, 2)

    await server.load("m", (1, 2))
    assert [await ask(server, "1"), await ask(server, "2")] == [1, 20]


async def test_without_versions_a_new_drop_brings_the_highest(server: MemoryTriton) -> None:
    await server.load("m", (1,))
    await server.load("m")
    assert await server.serving("m") == (1,)
    server.add_model(models.times_signature("m", 3), models.times(3))
    await server.load("m")

    assert await server.serving("m") == (3,)
    assert server.known == {"m"}


async def test_the_calls_are_noted(server: MemoryTriton) -> None:
    await server.load("m")
    await server.load("m", (2, 1), "max_batch_size: 4")
    with pytest.raises(ModelUnavailable):
        await server.load("other", (1,))
    await server.unload("m")

    assert server.loads == ["m", "m", "other"]
    assert server.load_calls == [("m", (), None), ("m", (2, 1), "max_batch_size: 4"), ("other", (1,), None)]
    assert server.unloads == ["m"]


async def test_one_version_is_refused_until_it_is_not(server: MemoryTriton) -> None:
    server.refuse_load("m", "bad weights", 2)
    await server.load("m", (1,))
    with pytest.raises(ModelUnavailable, match="version 2: bad weights"):
        await server.load("m", (1, 2))
    assert await server.serving("m") == (1,)
    server.refuse_load("m", None, 2)
    await server.load("m", (1, 2))

    server.refuse_load("m", "no memory", 2)  # what is loaded is not loaded again
    await server.load("m", (2,))
    assert await server.serving("m") == (2,)


async def test_one_version_fails_and_another_is_slow(server: MemoryTriton) -> None:
    server.add_model(models.times_signature("m", 2), models.times(2), latency_s=60.0)
    await server.load("m", (1, 2))
    with pytest.raises(BackendTimeout):
        await ask(server, "2", timeout_s=0.01)
    server.fail("m", BackendRejected("out of memory"), 1)
    with pytest.raises(BackendRejected, match="out of memory"):
        await ask(server, "1")
    server.fail("m", None, 1)

    assert await ask(server, "1") == 1


async def test_a_model_that_was_lost_is_loaded_again(server: MemoryTriton) -> None:
    await server.load("m", (1,))
    server.lose("m")
    server.lose("nowhere")
    assert await server.serving("m") == ()
    await server.load("m")

    assert await server.serving("m") == (2,)
    assert server.unloads == []


async def test_requests_that_run_end_with_their_version(server: MemoryTriton) -> None:
    server.hold("m")
    await server.load("m", (1,))
    running = asyncio.create_task(ask(server, "1"))
    await server.wait_until_held("m")
    await server.load("m", (2,))
    server.release("m")

    assert await running == 1


async def test_memory_is_as_the_test_says(server: MemoryTriton) -> None:
    assert await server.gpu_memory() is None
    server.gpu = GpuMemory(used=1, total=2)
    assert await server.gpu_memory() == GpuMemory(1, 2)
    for version in (1, 2):
        server.add_model(models.times_signature("m", version), models.times(version), memory_bytes=100 * version)
    await server.load("m", (1, 2))
    assert (await server.statistics("m")).memory_bytes == 300
    server.stop()
    assert await server.gpu_memory() is None
