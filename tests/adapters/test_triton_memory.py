"""Memory per model as Triton's metrics tell it, over real HTTP, and metrics that tell nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gateway.adapters.triton import TritonServer
from gateway.adapters.triton_memory import MAX_BYTES, ResidentMemory, parse_gauge
from tests.adapters.triton_wire import listening, statistics_response

METRICS = """# HELP nv_inference_count Number of inferences
# TYPE nv_inference_count counter
nv_inference_count{model="m",version="1"} 7
# HELP edge_backend_resident_memory_bytes Resident memory
# TYPE edge_backend_resident_memory_bytes gauge
edge_backend_resident_memory_bytes{model="m",version="1"} 133300224
edge_backend_resident_memory_bytes{model="m",version="2"} 1e6
edge_backend_resident_memory_bytes{model="other \\"one\\"",version="2"} 5
"""


@asynccontextmanager
async def metrics_server(answer: Callable[[], web.Response]) -> AsyncIterator[tuple[str, list[str]]]:
    """An HTTP server whose URL and list of requests are given."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        return answer()

    application = web.Application()
    application.router.add_get("/metrics", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics", asked
    finally:
        await runner.cleanup()


async def test_memory_comes_from_the_metrics_and_is_read_once() -> None:
    serving = metrics_server(lambda: web.Response(text=METRICS))
    async with listening() as (wire, url), serving as (metrics_url, asked):
        wire.says(ModelStatistics=statistics_response())
        server = TritonServer(url, metrics_url=metrics_url)
        found = await asyncio.gather(*(server.statistics("m") for _ in range(5)))
        await server.close()

    assert [each.memory_bytes for each in found] == [134300224] * 5
    assert asked == ["/metrics"]


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=500),
        lambda: web.Response(text="edge_backend_resident_memory_bytes{model= nonsense"),
        lambda: web.Response(body=b"#" * (MAX_BYTES + 1)),
        lambda: web.Response(body=b"\xff\xfe"),
        lambda: web.Response(text='edge_backend_resident_memory_bytes{model="m"} NaN'),
        lambda: web.Response(text='edge_backend_resident_memory_bytes{model="m"} +Inf'),
    ],
    ids=["status 500", "nonsense", "too large", "no text", "NaN", "infinite"],
)
async def test_metrics_that_do_not_tell_are_none(answer: Callable[[], web.Response]) -> None:
    async with metrics_server(answer) as (metrics_url, _):
        memory = ResidentMemory(metrics_url)
        assert await memory.of("m") is None
        await memory.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/metrics", "nonsense", "ftp://x/metrics", "http://[::1"])
async def test_metrics_that_cannot_be_read_are_none(url: str) -> None:
    memory = ResidentMemory(url)
    assert await memory.of("m") is None
    await memory.close()


def test_only_the_gauge_is_parsed() -> None:
    assert parse_gauge(METRICS) == {"m": 134300224, 'other "one"': 5}
