"""Server-sent events through a real socket: what comes, when, and what becomes of those who do not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from gateway.admin import events as events_module
from gateway.admin.answers import SECURITY_HEADERS
from gateway.admin.events import MAX_STREAMS, MOST_ENTRIES
from gateway.flow.gallery import MAX_CAMERAS
from gateway.testing import MemoryTriton
from tests.admin.test_console import COMMAND, READ, console, disagreeing, tokens
from tests.event_stream import events, the_next
from tests.flow.builders import answer_to, jpeg, origin, signature, snapshot_json
from tests.harness import NO_HELMET, TIMEOUT_S, Site, sees, until


def streams(place: Site) -> int:
    """Open streams."""
    return len(place.gateway._console._streams)


async def test_a_stream_begins_with_what_there_is_and_goes_on_with_what_changes(tmp_path: Path) -> None:
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(NO_HELMET))
    async with console(tmp_path, triton=triton) as (place, http):
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        await until(lambda: len(place.of("ai_alert")) == 1, "the alert")
        async with http.stream("GET", "/api/events") as answer:
            assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
            told = events(answer)
            first = await the_next(told, "results")
            assert [entry["result"] for entry in first["entries"]] == place.results
            assert abs(first["now"] - first["entries"][0]["at"]) < 60
            assert (await the_next(told, "alerts"))["alerts"] == place.of("ai_alert")
            place.snapshot(snapshot_json(jpeg(seed=1), device_id="cam-2"))
            place.snapshot(snapshot_json(b"no picture", device_id="cam-3"))
            await place.answered(3)
            seen: dict[str, Any] = {}
            while {"cam-2", "cam-3"} - set(seen):
                entries = (await the_next(told, "results"))["entries"]
                seen |= {entry["camera"]: entry for entry in entries}
            assert "cam-1" not in seen, "it has not changed"
            assert seen["cam-2"]["picture"]
            assert seen["cam-3"]["error"] == place.errors[0]


async def test_many_results_of_a_camera_are_one_event_with_the_latest(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http), http.stream("GET", "/api/events") as answer:
        told = events(answer)
        assert (await the_next(told, "results"))["entries"] == []
        gallery = place.gateway._pipeline.gallery
        assert gallery is not None
        for number in range(1000):
            gallery.answered(answer_to(origin(device_id="fast", result_id=f"{number}"), b'{"number": %d}' % number))
        (entry,) = (await the_next(told, "results"))["entries"]
        assert entry["result"] == {"number": 999}


async def test_disagreements_are_told_as_they_happen(tmp_path: Path) -> None:
    async with console(tmp_path, triton=disagreeing(), enable_dual_backend=True) as (place, http):
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        await place.answered(1)
        async with http.stream("GET", "/api/events") as answer:
            told = events(answer)
            await the_next(told, "results")
            place.snapshot(snapshot_json(jpeg(seed=1), device_id="cam-2"))
            said = await the_next(told, "disagreement")
            assert (said["camera"], said["model"]) == ("cam-2", "detector")
            assert said["result_id"] == place.results[1]["result_id"]


async def test_large_results_come_in_several_events(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        gallery = place.gateway._pipeline.gallery
        assert gallery is not None
        for number in range(5):
            gallery.answered(answer_to(origin(device_id=f"cam-{number}"), b'"%b"' % (b"a" * 200_000)))
        async with http.stream("GET", "/api/events") as answer:
            told = events(answer)
            parts = [(await the_next(told, "results"))["entries"] for _ in range(5)]
        assert [[entry["camera"] for entry in part] for part in parts] == [[f"cam-{number}"] for number in range(5)]


async def test_however_many_cameras_change_at_once_each_is_told_of(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        gallery = place.gateway._pipeline.gallery
        assert gallery is not None
        names = [f"cam-{number}" for number in range(MAX_CAMERAS)]
        for name in names:
            gallery.answered(answer_to(origin(device_id=name), b"1"))
        async with http.stream("GET", "/api/events") as stream:
            told = events(stream)
            for text in (1, 2):
                found: list[tuple[str, int]] = []
                while len(found) < MAX_CAMERAS:
                    entries = (await the_next(told, "results"))["entries"]
                    assert len(entries) <= MOST_ENTRIES
                    found += [(entry["camera"], entry["result"]) for entry in entries]
                assert found == [(name, text) for name in names]
                for name in names:
                    gallery.answered(answer_to(origin(device_id=name), b"2"))


async def test_the_ninth_who_looks_is_asked_to_come_back_until_one_has_left(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http), contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_STREAMS - 1):
            await stack.enter_async_context(http.stream("GET", "/api/events"))
        async with http.stream("GET", "/api/events"):
            refused = await http.get("/api/events")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "QUEUE_FULL")
            assert int(refused.headers["Retry-After"]) > 0
            assert (await http.get("/ready")).status_code == 200
        await until(lambda: streams(place) == MAX_STREAMS - 1, "the end of the one that left")
        async with http.stream("GET", "/api/events") as answer:
            assert answer.status_code == 200


async def test_one_address_locks_nobody_out(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http), contextlib.AsyncExitStack() as stack:
        silent = [
            await stack.enter_async_context(http.stream("GET", "/api/events"))  # nothing of it is read
            for _ in range(MAX_STREAMS)
        ]
        for number in range(2, 5):
            elsewhere = httpx.AsyncHTTPTransport(local_address=f"127.0.0.{number}")
            operator = httpx.AsyncClient(base_url=http.base_url, transport=elsewhere)
            await stack.enter_async_context(operator)
            answer = await stack.enter_async_context(operator.stream("GET", "/api/events"))
            assert answer.status_code == 200
            await the_next(events(answer), "results")
            assert streams(place) == MAX_STREAMS
        for cut in silent[:3]:
            with pytest.raises(httpx.TransportError):
                await cut.aread()
        assert (await http.get("/api/events")).status_code == 503, "of its own it has enough"


async def test_of_equals_the_oldest_gives_way_when_it_has_been_there_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with console(tmp_path) as (place, http), contextlib.AsyncExitStack() as stack:
        oldest, *_ = [await stack.enter_async_context(http.stream("GET", "/api/events")) for _ in range(MAX_STREAMS)]
        monkeypatch.setattr(events_module, "STAY_S", 0.0)
        async with http.stream("GET", "/api/events") as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.TransportError):
                await oldest.aread()
            assert streams(place) == MAX_STREAMS


async def test_pictures_are_kept_while_a_stream_is_open(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        gallery = place.gateway._pipeline.gallery
        assert gallery is not None
        async with http.stream("GET", "/api/events") as answer:
            await the_next(events(answer), "results")
            assert gallery.pictures.watched
            place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
            await place.answered(1)
            assert gallery.pictures.size == len(jpeg())


async def test_who_reads_nothing_is_dropped_and_nothing_piles_up_for_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "UNREAD_S", 0.3)
    async with console(tmp_path) as (place, http):
        gallery = place.gateway._pipeline.gallery
        assert gallery is not None
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.to_thread(deaf.connect, ("127.0.0.1", place.gateway.http_port))
        deaf.sendall(b"GET /api/events HTTP/1.1\r\nHost: a\r\n\r\n")
        deaf.setblocking(False)
        await until(lambda: streams(place) == 1, "the stream")
        (connection,) = [each for each in place.gateway._http.connections if each.busy]
        waiting = 0
        while streams(place):
            assert waiting < 2**20
            for number in range(20):
                gallery.answered(answer_to(origin(device_id=f"cam-{number}"), b'"%b"' % (b"a" * 100_000)))
            if connection._socket is not None:
                waiting = max(waiting, connection._socket.get_write_buffer_size())
            await asyncio.sleep(0.02)
        assert (await http.get("/ready")).status_code == 200
        deaf.close()


async def test_at_a_stop_all_are_told_goodbye_and_the_stop_is_quick(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http), http.stream("GET", "/api/events") as answer:
        told = events(answer)
        await the_next(told, "results")
        with capture_logs() as logs:
            async with asyncio.timeout(1.9):
                assert await place.stop() == 0
        assert await the_next(told, "bye") == {}
        assert not [entry for entry in logs if "defect" in entry["event"]]


async def test_something_is_said_when_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "COMMENT_EVERY_S", 0.1)
    async with console(tmp_path) as (_, http), http.stream("GET", "/api/events") as answer:
        told = events(answer)
        await the_next(told, "results")
        await the_next(told, "")


async def test_a_head_has_no_stream(tmp_path: Path) -> None:
    async with console(tmp_path) as (_, http):
        assert (await http.head("/api/events")).status_code == 405
        assert (await http.post("/api/events")).status_code == 405


async def test_who_leaves_is_forgotten_at_once(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, _):
        url = f"http://127.0.0.1:{place.gateway.http_port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as visitor, visitor.stream("GET", "/api/events"):
            await until(lambda: streams(place) == 1, "the stream")
        await until(lambda: streams(place) == 0, "its end")


async def test_a_token_that_is_taken_back_ends_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "COMMENT_EVERY_S", 0.1)
    (tmp_path / "models").mkdir()
    async with console(tmp_path / "models", **tokens(tmp_path)) as (place, http):
        async with http.stream("GET", "/api/events", headers=READ) as answer:
            told = events(answer)
            await the_next(told, "")
            (tmp_path / "read").write_text("another")
            async with asyncio.timeout(TIMEOUT_S):
                rest = [name async for name, _ in told]
            assert "bye" not in rest
        assert streams(place) == 0
        assert (await http.get("/api/cameras", headers=COMMAND)).status_code == 200, "no failure is counted for it"
