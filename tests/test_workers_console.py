"""The console of `serve --workers N`: one view of all workers, and events of all of them in one stream."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.admin.console_pages import POLICY
from gateway.admin.events import MAX_STREAMS
from gateway.admin.guard import FAILURES
from gateway.workers.console_merge import add_series
from tests.admin.test_console import GUARDED, disagreeing, tokens
from tests.event_stream import events, the_next
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import until
from tests.test_workers_http import surface
from tests.worker_site import WorkerSite, detector

CAMERAS = tuple(f"cam-{number}" for number in range(8))
"""Enough that each of two workers has some."""


async def look(client: httpx.AsyncClient) -> None:
    """Have all workers keep pictures."""
    await client.get("/api/frame?result=none")


async def sent(place: WorkerSite) -> None:
    """One snapshot of each camera, answered."""
    before = len(place.results)
    for number, name in enumerate(CAMERAS):
        place.snapshot(snapshot_json(jpeg(seed=number), device_id=name))
    await place.answered(before + len(CAMERAS))
    await place.acknowledged()


def streams(place: WorkerSite) -> list[int]:
    """Open streams of each worker."""
    return [len(worker.gateway._console._streams) for worker in place.workers.values()]


async def test_what_it_shows_is_of_all_workers(tmp_path: Path) -> None:
    async with surface(tmp_path, triton=disagreeing, enable_dual_backend=True) as (place, client):
        await look(client)
        await sent(place)
        galleries = [worker.gateway._pipeline.gallery for worker in place.workers.values()]
        assert all(gallery is not None and gallery.cameras for gallery in galleries), "each has some cameras"
        listed = (await client.get("/api/cameras")).json()["cameras"]
        assert [each["camera"] for each in listed] == list(CAMERAS)
        results = {result["device_id"]: result for result in place.results}
        for name in CAMERAS:
            camera = (await client.get(f"/api/camera?id={name}")).json()
            frame = (await client.get(f"/api/frame?id={name}&width=64")).json()
            assert camera["history"][0]["result"] == frame["entry"]["result"] == results[name]
        report = (await client.get("/api/compare")).json()
        (model,) = report["models"]
        assert model["agreement"] == {"true": 0, "false": len(CAMERAS), "unknown": 0}
        assert sum(row[2] for row in model["series"]) == len(CAMERAS)
        assert model["latency"]["onnx"]["count"] == len(CAMERAS)
        assert sum(count for _, count in model["latency"]["onnx"]["buckets"]) == len(CAMERAS)
        assert {each["camera"] for each in report["pairs"]} == set(CAMERAS)
        found = (await client.get(f"/api/frame?result={report['disagreements'][0]['result_id']}")).json()
        assert found["comparison"] == report["disagreements"][0]["comparison"]
        for path, code in (("camera?id=x", "CAMERA_UNKNOWN"), ("frame?id=x", "CAMERA_UNKNOWN"),
                           ("frame?result=x", "PICTURE_UNKNOWN")):  # fmt: skip
            missing = await client.get(f"/api/{path}")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, code)
        page = await client.get("/")
        assert page.headers["Content-Security-Policy"] == POLICY
        assert (await client.get("/api/console")).json()["console"] == "pictures"
        assert (await client.head("/api/cameras")).status_code == 200


async def test_health_is_that_of_all(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        await sent(place)
        for at in (1_700_000_000, 1_700_000_005):
            for worker in place.workers.values():
                worker.gateway._console._health.look(at)
        health = (await client.get("/api/health")).json()
        assert health["series"][-2:] == [[1_700_000_000, 8, 8, 0, 0, 0], [1_700_000_005, 0, 0, 0, 0, 0]]
        assert health["status"] == (await client.get("/api/status")).json()
        assert health["queue"]["max_messages"] == 2 * 64
        assert health["process"]["workers"] == 2
        assert [(each["variant"], each["state"]) for each in health["breakers"]] == [
            ("onnx", "closed"),
            ("torch", "closed"),
        ]


async def test_one_stream_has_the_events_of_all_and_ends_theirs_when_its_client_leaves(tmp_path: Path) -> None:
    async with surface(tmp_path, triton=detector) as (place, client):
        async with client.stream("GET", "/api/events") as answer:
            told = events(answer)
            await until(lambda: streams(place) == [1, 1], "a stream at each worker")
            await sent(place)
            seen: set[str] = set()
            alerted: set[str] = set()
            while not seen == alerted == set(CAMERAS):
                name, data = await anext(told)
                seen |= {entry["camera"] for entry in data.get("entries", ())}
                alerted |= {alert["device_id"] for alert in data.get("alerts", ())}
                assert name in ("results", "alerts")
        await until(lambda: streams(place) == [0, 0], "the end of both")


async def test_a_worker_that_comes_back_is_listened_to_again(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client), client.stream("GET", "/api/events") as answer:
        told = events(answer)
        await until(lambda: streams(place) == [1, 1], "a stream at each worker")
        await place.kill(0)
        await place.start(0)
        await until(lambda: place.standing.report().ready, "the new worker")
        await until(lambda: streams(place) == [1, 1], "its stream")
        await sent(place)
        seen: set[str] = set()
        while seen != set(CAMERAS):
            seen |= {entry["camera"] for entry in (await the_next(told, "results"))["entries"]}


async def test_the_ninth_who_looks_is_refused_by_the_front(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client), contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_STREAMS):
            await stack.enter_async_context(client.stream("GET", "/api/events"))
        assert (await client.get("/api/events")).status_code == 503
        await until(lambda: streams(place) == [MAX_STREAMS] * 2, "all streams")


async def test_the_front_asks_for_the_read_token_and_counts_failures(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    async with surface(tmp_path / "models", detector, **tokens(tmp_path)) as (_, client):
        right = {"Authorization": "Bearer reader"}
        assert (await client.get("/api/cameras", headers=right)).status_code == 200
        async with client.stream("GET", "/api/events", headers=right) as answer:
            assert await the_next(events(answer), "results")
        for path in ("/", "/api/console", "/ready", "/metrics"):
            assert (await client.get(path)).status_code == 200
        for number, path in enumerate(GUARDED[:FAILURES]):
            forged = {"X-Edge-Gateway-Client": f"10.0.0.{number}"}
            assert (await client.get(path, headers=forged)).status_code == 401, path
        assert (await client.get("/api/cameras", headers=right)).status_code == 429


async def test_while_all_workers_are_away_the_page_is_there(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        await place.kill(0)
        await place.kill(1)
        assert (await client.get("/")).status_code == 200
        for path in ("cameras", "camera?id=a", "compare", "frame?id=a", "health"):
            answer = await client.get(f"/api/{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "WORKER_UNAVAILABLE")
        async with client.stream("GET", "/api/events") as stream:
            assert stream.status_code == 200


async def test_without_a_console_the_front_has_none_either(tmp_path: Path) -> None:
    async with surface(tmp_path, console="off") as (_, client):
        for path in ("/", "/api/console", "/api/cameras", "/api/events", "/api/health"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "CONSOLE_OFF"), path


_rows = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(0, 9)), unique_by=lambda row: row[0])


@given(st.lists(_rows, max_size=4))
@hypothesis_settings(max_examples=30, deadline=None)
def test_nothing_is_lost_when_series_are_added(series: list[list[tuple[int, int, int]]]) -> None:
    added = add_series(series)
    assert [row[0] for row in added] == sorted({row[0] for each in series for row in each})
    for column in (1, 2):
        assert sum(row[column] for row in added) == sum(row[column] for each in series for row in each)
