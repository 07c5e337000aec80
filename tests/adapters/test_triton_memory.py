"""Memory per model as Triton's metrics tell it, over real HTTP, and metrics that tell nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.triton import TritonServer
from gateway.adapters.triton_memory import GAUGES, MAX_BYTES, MemoryFigures, MemoryMetrics, parse_gauges
from gateway.ports import GpuMemory
from tests.adapters.triton_wire import listening, statistics_response

METRICS = """# HELP nv_inference_count Number of inferences
# TYPE nv_inference_count counter
nv_inference_count{model="m",version="1"} 7
# HELP edge_backend_resident_memory_bytes Resident memory
# TYPE edge_backend_resident_memory_bytes gauge
edge_backend_resident_memory_bytes{model="m",version="1"} 133300224
edge_backend_resident_memory_bytes{model="m",version="2"} 1e6
edge_backend_resident_memory_bytes{model="other \\"one\\"",version="2"} 5
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 16000
nv_gpu_memory_total_bytes{gpu_uuid="GPU-b"} 8000
nv_gpu_memory_total_bytes{gpu_uuid="GPU-c"} 99000
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 15000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-b"} 2000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-d"} 1
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
        memory = MemoryMetrics(metrics_url)
        assert await memory.of("m") is None
        assert await memory.gpu() is None
        await memory.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/metrics", "nonsense", "ftp://x/metrics", "http://[::1"])
async def test_metrics_that_cannot_be_read_are_none(url: str) -> None:
    memory = MemoryMetrics(url)
    assert await memory.of("m") is None
    assert await memory.gpu() is None
    await memory.close()


async def test_the_gpu_with_the_most_free_memory_is_told() -> None:
    async with metrics_server(lambda: web.Response(text=METRICS)) as (metrics_url, asked):
        server = TritonServer("127.0.0.1:1", metrics_url=metrics_url)
        found = await asyncio.gather(*(server.gpu_memory() for _ in range(5)))
        await server.close()
        assert await server.gpu_memory() is None

    assert found == [GpuMemory(used=2000, total=8000)] * 5
    assert asked == ["/metrics"]


async def test_without_metrics_no_gpu_is_known() -> None:
    server = TritonServer("127.0.0.1:1")
    assert await server.gpu_memory() is None
    await server.close()


def test_only_the_gauges_are_parsed() -> None:
    found = parse_gauges(METRICS)

    assert found == MemoryFigures({"m": 134300224, 'other "one"': 5}, (GpuMemory(15000, 16000), GpuMemory(2000, 8000)))


LINES = st.lists(
    st.tuples(st.sampled_from(GAUGES), st.text(alphabet='{}",=\\\\ .eE+-0123456789ngpu_idmodelNaInf#é\t', max_size=40)),
    max_size=4,
)


@given(LINES)
def test_any_page_is_read_or_refused_as_no_metrics(lines: list[tuple[str, str]]) -> None:
    with contextlib.suppress(ValueError):
        parse_gauges("\n".join(f"{gauge}{{{rest}" for gauge, rest in lines))
