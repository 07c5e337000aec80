"""Two real Tritons behind the pool: one dies under load, and comes back to what the other one serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from gateway.adapters.triton import TransferEvents, TritonServer
from gateway.adapters.triton_pool import TritonPool
from gateway.adapters.triton_pool_member import Limits
from gateway.local.tritonserver import EmbeddedTriton
from gateway.messages import InferRequest
from gateway.metrics import Metrics
from tests import triton_models as models
from tests.contract.inference_servers import DEADLINE_S, ROWS, ask, until

MODEL = "times"
CONFIG = models.config_text(models.times_signature(MODEL, 1))
LIMITS = Limits(first_pause_s=0.1, longest_pause_s=0.5)

pytestmark = pytest.mark.triton


@asynccontextmanager
async def pool_of(tritons: list[EmbeddedTriton], metrics: Metrics) -> AsyncIterator[TritonPool]:
    pool = TritonPool({each.grpc_url: TritonServer(each.grpc_url) for each in tritons}, metrics, limits=LIMITS)
    yield pool
    await pool.close()


async def in_service(pool: TritonPool, *names: str) -> None:
    """Look, as the loader does, until all endpoints are."""

    async def look() -> bool:
        for name in names:
            await pool.serving(name)
        return all(each.state == "in service" for each in pool.endpoints)

    await until(look)


async def test_one_dies_under_load_and_comes_back_warm(triton: EmbeddedTriton, second_triton: EmbeddedTriton) -> None:
    metrics = Metrics()
    async with pool_of([triton, second_triton], metrics) as pool:
        await pool.load(MODEL, (1, 2), CONFIG)
        await pool.unload("bare")
        await pool.load("bare", (1,))
        await in_service(pool, MODEL, "bare")
        over = asyncio.Event()
        answered = 0

        async def camera(version: str) -> None:
            nonlocal answered
            while not over.is_set():
                response = await pool.infer(ask(MODEL, version=version))
                np.testing.assert_array_equal(response.outputs["y__0"], ROWS * int(version))
                answered += 1

        cameras = [asyncio.create_task(camera(version)) for version in ("1", "2") * 3]
        try:
            await asyncio.to_thread(second_triton.kill)
            await until(lambda: passed(pool, "away"))
            at = answered
            await asyncio.to_thread(second_triton.start)
            await in_service(pool, MODEL, "bare")
        finally:
            over.set()
            await asyncio.gather(*cameras)  # none of their snapshots has failed
        assert answered > at

        first, second = (TritonServer(each.grpc_url) for each in (triton, second_triton))
        try:
            assert await second.serving(MODEL) == (1, 2)
            assert await second.serving("bare") == (1,)
            assert (await first.statistics(MODEL)).success_count >= at // 2  # it was never loaded again
            warm = (await second.statistics(MODEL)).success_count
            assert warm >= 2
        finally:
            await first.close()
            await second.close()
        assert metrics.value("triton_endpoint_ejections_total", endpoint=second_triton.grpc_url) == 1
        # What the gateway asks for with its own configuration goes on from what came from the other one.
        await pool.load(MODEL, (1, 2), CONFIG)
        await pool.load(MODEL, (2,), CONFIG)
        assert await pool.serving(MODEL) == (2,)
        for _ in range(4):
            assert (await pool.infer(ask(MODEL))).model_version == "2"


async def passed(pool: TritonPool, state: str) -> bool:
    """Whether an endpoint is in this state."""
    await pool.serving(MODEL)
    return any(each.state == state for each in pool.endpoints)


async def test_each_tensor_goes_to_the_one_that_shares_its_memory(
    triton: EmbeddedTriton, second_triton: EmbeddedTriton
) -> None:
    sent: list[str] = []
    transfers = TransferEvents(sent=sent.append, fell_back=lambda _: None)
    servers = {
        each.grpc_url: TritonServer(each.grpc_url, shared_memory_bytes=4 * 2**20, transfers=transfers)
        for each in (triton, second_triton)
    }
    pool = TritonPool(servers, Metrics(), limits=LIMITS)
    try:
        await pool.load("types")
        await in_service(pool, "types")

        async def asked() -> None:
            signature = models.types_signature("types")
            inputs = {spec.name: np.zeros(2, models.numpy_type(spec)) for spec in signature.inputs}
            inputs["in_UINT8"] = pool.tensor((200_000,), np.dtype(np.uint8))
            inputs["in_UINT8"][...] = 7
            response = await pool.infer(InferRequest("types", inputs, ("out_UINT8",), DEADLINE_S))
            assert (response.outputs["out_UINT8"] == 7).all()

        async def proven() -> bool:
            del sent[:]
            for _ in range(8):
                await asked()
            return sent == ["shared_memory"] * 8

        await until(proven)
        assert all(server.shared_memory_slots["free"] for server in servers.values())
    finally:
        await pool.close()
