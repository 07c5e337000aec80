"""The front's HTTP: one surface for all workers, with the same limits and refusals as one gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from gateway.admin.guard import FAILURES
from gateway.testing import MemoryTriton
from gateway.workers.surface import Surface
from tests.admin.commanded import with_token
from tests.flow.builders import jpeg, settings, snapshot_json
from tests.worker_site import WorkerSite, detector, worker_site

JPEG = {"Content-Type": "image/jpeg"}


@contextlib.asynccontextmanager
async def surface(
    folder: Path, triton: Callable[[], MemoryTriton] = detector, **more: Any
) -> AsyncIterator[tuple[WorkerSite, httpx.AsyncClient]]:
    """Two workers behind one port."""
    async with worker_site(folder, triton, **more) as place:
        parts = place.relay.seats, place.sockets, place.standing, place.metrics, place.merged
        front = Surface(("127.0.0.1", 0), *parts, settings(**more))
        url = f"http://127.0.0.1:{await front.start()}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
                yield place, client
        finally:
            await front.stop()


async def test_inferences_take_turns_and_the_counts_are_those_of_all(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        for number in range(4):
            answer = await client.post("/v1/infer", content=jpeg(seed=number), headers=JPEG)
            assert answer.status_code == 200
            assert answer.json()["message_type"] == "ai_inference_result"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        each = [worker.gateway._metrics.value("snapshots_received_total") for worker in place.workers.values()]
        assert each == [2, 2]
        page = (await client.get("/metrics")).text
        assert "edge_gateway_snapshots_received_total 4.0" in page
        status = (await client.get("/api/status")).json()
        assert (status["snapshots_received"], status["snapshots"]["published"]) == (4, 4)
        assert (await client.get("/ready")).json() == {"status": "ready", "reasons": [], "degraded": []}


async def test_refusals_are_those_of_one_gateway(tmp_path: Path) -> None:
    async with surface(tmp_path, max_payload_bytes=10_000) as (place, client):
        many = await client.post("/v1/infer", content=b"x" * 20_000, headers=JPEG)
        assert (many.status_code, many.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
        lost = await client.get("/api/models/nobody")
        assert (lost.status_code, lost.json()["error"]["code"]) == (404, "MODEL_UNKNOWN")
        assert (await client.delete("/v1/infer")).headers["Allow"] == "POST"
        packed = await client.post("/v1/infer", content=b"x", headers={"Content-Encoding": "gzip"})
        assert packed.status_code == 415
        odd = await client.post(
            "/v1/infer", content=jpeg(), headers={b"Content-Type": b"image/jpeg", b"X-Odd": b"\xff\xfe"}
        )
        assert odd.status_code == 200
        off = await client.post("/api/models/detector/load")
        assert (off.status_code, off.json()["error"]["code"]) == (403, "UNAUTHORIZED")
        refusals = (await place.merged()).value
        assert refusals("http_refusals_total", reason="too_large") == 1
        assert refusals("http_refusals_total", reason="unauthorized") == 1


async def test_who_guesses_the_token_waits_whichever_worker_would_answer(tmp_path: Path) -> None:
    async with surface(tmp_path, api_token_file=with_token(tmp_path)) as (_, client):
        for number in range(FAILURES):
            forged = {"Authorization": f"Bearer {number}", "X-Edge-Gateway-Client": f"10.0.0.{number}"}
            path = "/v1/infer" if number % 2 else "/api/models/detector/load"
            assert (await client.post(path, content=b"", headers=forged)).status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        late = await client.post("/v1/infer", content=jpeg(), headers={**JPEG, **right})
        assert late.status_code == 429
        assert int(late.headers["Retry-After"]) > 0


async def test_a_body_where_none_belongs_disturbs_no_later_request(tmp_path: Path) -> None:
    async with surface(tmp_path) as (_, client):
        for size in (10, 100_000):
            for path in ("/api/cameras", "/api/health", "/api/camera?id=a", "/api/log", "/api/models"):
                await client.request("GET", path, content=b"x" * size)
                for _ in range(2):  # one of each worker
                    answer = await client.post("/v1/infer", content=jpeg(), headers=JPEG)
                    assert answer.status_code == 200, (path, size, answer.text)


async def test_with_the_token_it_is_answered(tmp_path: Path) -> None:
    async with surface(tmp_path, api_token_file=with_token(tmp_path)) as (_, client):
        right = {"Authorization": "Bearer s3cret", **JPEG}
        assert (await client.post("/v1/infer", content=jpeg(), headers=right)).status_code == 200


async def test_while_a_worker_is_away_the_others_answer_and_the_page_of_metrics_too(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(1)
        await client.get("/metrics")
        await place.kill(0)
        answers = await asyncio.gather(
            *(client.post("/v1/infer", content=jpeg(seed=each), headers=JPEG) for each in range(3))
        )
        assert [answer.status_code for answer in answers] == [200] * 3
        page = (await client.get("/metrics")).text
        assert "edge_gateway_snapshots_received_total 4.0" in page, "what the dead one had counted still counts"
        away = await client.get("/api/models")
        assert (away.status_code, away.json()["error"]["code"]) == (503, "WORKER_UNAVAILABLE")
        assert (await client.get("/live")).status_code == 200
        assert (await client.get("/ready")).json()["degraded"] == ["worker 1 of 2 is starting"]


async def test_the_status_is_that_of_one_gateway_also_while_the_lead_is_away(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(place.sockets[0]))) as lead:
            own = (await lead.get("http://worker/api/status")).json()
        assert (await client.get("/api/status")).json() == own
        await place.kill(0)
        status = (await client.get("/api/status")).json()
        assert status == {**own, "degraded": ["worker 1 of 2 is starting"]}
        assert (await client.head("/api/status")).status_code == 200
