"""What the front tells readers while a worker hangs or is away, and what many of them cost it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.admin import console_entries
from gateway.workers import console
from gateway.workers import surface as surface_module
from gateway.workers.console_merge import cameras as merged_cameras
from tests.test_workers_console import CAMERAS, sent
from tests.test_workers_http import surface
from tests.worker_site import WorkerSite


def cameras_of(place: WorkerSite, index: int) -> list[str]:
    """Those that one worker shows."""
    gallery = place.workers[index].gateway._pipeline.gallery
    assert gallery is not None
    return list(gallery.cameras)


@contextlib.asynccontextmanager
async def hanging(path: Path) -> AsyncIterator[None]:
    """In place of a worker's HTTP: one that takes every request and answers none.

    Of who has asked the worker before, the connection stays.
    """
    await asyncio.to_thread(path.rename, path.with_suffix(".away"))

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
        writer.close()

    server = await asyncio.start_unix_server(take, path)
    try:
        yield
    finally:
        server.close()
        await asyncio.to_thread(path.with_suffix(".away").replace, path)


async def test_of_a_worker_that_does_not_answer_in_time_nothing_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "ANSWER_S", 0.3)
    monkeypatch.setattr(console, "SOON_S", 0.3)
    monkeypatch.setattr(surface_module, "READ_S", 0.3)
    async with surface(tmp_path) as (place, client):
        await sent(place)
        mine, lead = cameras_of(place, 1)[0], cameras_of(place, 0)[0]
        async with hanging(place.sockets[0]):
            for path in ("golden?model=detector", "golden/picture?model=detector&name=a", "models"):
                answer = await client.get(f"/api/{path}")
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), path
        async with hanging(place.sockets[1]):
            for path in (f"camera?id={mine}", f"frame?id={mine}", "frame?result=none", "camera?id=nobody"):
                answer = await client.get(f"/api/{path}")
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), path
                assert answer.json()["error"]["code"] == "WORKER_UNAVAILABLE"
            assert (await client.get(f"/api/camera?id={lead}")).status_code == 200
        assert (await client.get(f"/api/camera?id={mine}")).status_code == 200
        assert (await client.get("/api/camera?id=nobody")).status_code == 404
        await place.kill(1)
        assert (await client.get(f"/api/frame?id={mine}")).status_code == 503


async def test_a_camera_is_not_kept_waiting_by_a_worker_that_does_not_have_it(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        await sent(place)
        name = cameras_of(place, 0)[0]
        async with hanging(place.sockets[1]):
            began = time.monotonic()
            answer = await client.get(f"/api/camera?id={name}")
            assert answer.status_code == 200
            assert time.monotonic() - began < console.SOON_S - 1


async def test_many_readers_ask_each_worker_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with surface(tmp_path) as (place, client):
        await sent(place)
        asked = 0

        def counted(*given: Any) -> list[dict[str, Any]]:
            nonlocal asked
            asked += 1
            return console_entries.cameras_of(*given)

        monkeypatch.setattr("gateway.admin.console_api.cameras_of", counted)
        answers = await asyncio.gather(*(client.get("/api/cameras") for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
        assert {len(answer.json()["cameras"]) for answer in answers} == {len(CAMERAS)}
        assert asked < 100, "two workers for each reader would be 200"


def test_the_entries_of_all_workers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_entries, "MAX_SHOWN_BYTES", 30)
    one = (
        b'{"camera":"%s","model":null,"facility":"f","last_at":%d,"rate_per_s":0,"published":1,"failed":0,"dropped":0,'
        b'"entry":{"at":%d}}'
    )
    bodies = [
        b'{"cameras":[' + one % (name, at, at) + b"]}" for name, at in ((b"a", 3), (b"b", 1), (b"c", 2), (b"d", 9))
    ]
    listed = merged_cameras(bodies)["cameras"]
    assert [(each.camera, bytes(each.entry) == b"null") for each in listed] == [
        ("a", False), ("b", True), ("c", False), ("d", False),
    ]  # fmt: skip
