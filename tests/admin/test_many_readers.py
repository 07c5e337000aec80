"""Many who read at once: one answer is made for all of them, and what nobody reads is bounded."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin import connections as connections_module
from gateway.admin import console_entries, shared_answers
from gateway.admin.connections import Connections, LimitedSite, Limits
from gateway.admin.console_entries import MAX_SHOWN_BYTES, cameras_of, within_limit
from gateway.admin.shared_answers import AT_ONCE, SharedAnswers
from tests.admin.test_console import console
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import until

MIB = 2**20


class Press:
    """Makes answers, each when it is let."""

    def __init__(self) -> None:
        self.begun = 0
        self.under_way = 0
        self.go = asyncio.Event()

    async def make(self) -> web.Response:
        self.begun += 1
        self.under_way += 1
        number = self.begun
        await self.go.wait()
        self.under_way -= 1
        return web.Response(body=f"{number}".encode(), headers={"X-Number": f"{number}"})


async def test_all_who_wait_get_the_same_bytes_and_who_comes_later_a_newer_answer() -> None:
    shared, press = SharedAnswers(), Press()
    first = [asyncio.create_task(shared.of("page", press.make)) for _ in range(50)]
    await until(lambda: press.begun == 1, "the first answer to be begun")
    later = [asyncio.create_task(shared.of("page", press.make)) for _ in range(50)]
    press.go.set()
    before, after = await asyncio.gather(*first), await asyncio.gather(*later)
    assert len({id(answer) for answer in (*before, *after)}) == 100, "an answer for each request"
    assert {id(answer.body) for answer in before} == {id(before[0].body)}
    assert (before[0].body, after[0].body, press.begun) == (b"1", b"2", 2)
    assert after[0].headers["X-Number"] == "2"


async def test_only_some_pages_are_made_at_once_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_answers, "WAIT_S", 0.1)
    shared, press = SharedAnswers(), Press()
    late = await asyncio.gather(*(shared.of(f"page {number}", press.make) for number in range(20)))
    assert press.under_way == AT_ONCE
    assert {(answer.status, answer.headers["Retry-After"]) for answer in late} == {(503, "1")}
    press.go.set()
    await until(lambda: (press.begun, press.under_way) == (20, 0), "all of them")
    assert (await shared.of("page 1", press.make)).status == 200


async def test_a_page_that_fails_fails_for_all_who_wait_and_for_nobody_else() -> None:
    shared, press = SharedAnswers(), Press()
    press.go.set()

    async def fail() -> web.Response:
        raise ConnectionError("gone")

    failed = await asyncio.gather(*(shared.of("page", fail) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(error, ConnectionError) for error in failed)
    assert (await shared.of("page", press.make)).status == 200


async def test_a_hundred_readers_of_the_cameras_cost_a_few_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def counted(*given: Any) -> list[dict[str, Any]]:
        nonlocal made
        made += 1
        return cameras_of(*given)

    monkeypatch.setattr("gateway.admin.console_api.cameras_of", counted)
    async with console(tmp_path) as (place, client):
        place.broker.publish("edge-ai/unit/plant/gw/camera/snapshots", snapshot_json(jpeg()))
        answers = await asyncio.gather(*(client.get("/api/cameras") for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
        assert made < 50


@given(st.lists(st.tuples(st.floats(0, 9), st.text(max_size=3), st.integers(2, MAX_SHOWN_BYTES // 2)), max_size=20))
def test_the_entries_in_a_list_are_the_newest_and_bounded(latest: list[tuple[float, str, int]]) -> None:
    latest = list({camera: (at, camera, size) for at, camera, size in latest}.values())
    shown = within_limit(latest)
    assert sum(size for _, camera, size in latest if camera in shown) <= MAX_SHOWN_BYTES
    assert {camera for _, camera, _ in sorted(latest, reverse=True)[: len(shown)]} == shown
    if sum(size for *_, size in latest) <= MAX_SHOWN_BYTES:
        assert len(shown) == len(latest)


async def test_a_camera_whose_entry_is_left_out_is_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_entries, "MAX_SHOWN_BYTES", 6000)
    async with console(tmp_path) as (place, client):
        for name in ("cam-1", "cam-2", "cam-3"):
            sent = snapshot_json(jpeg(), device_id=name, metadata={"note": "x" * 2000})
            place.broker.publish("edge-ai/unit/plant/gw/camera/snapshots", sent)
        await until(lambda: len(place.of("ai_inference_result")) == 3, "three results")
        listed = (await client.get("/api/cameras")).json()["cameras"]
        assert [each["entry"] is None for each in listed] == [True, False, False]
        assert listed[0]["camera"] == "cam-1"
        assert listed[0]["last_at"]
        assert (await client.get("/api/camera?id=cam-1")).json()["entry"]["result"]["device_id"] == "cam-1"


async def test_answers_that_nobody_reads_are_bounded_and_who_reads_gets_his(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "ROOM_S", 0.2)
    body = b"x" * (8 * MIB)  # more than the system takes by itself

    async def page(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.add_routes([web.get("/", page)])
    runner = web.AppRunner(app, handle_signals=False)
    await runner.setup()
    refused: list[str] = []
    kept = Connections(refused.append, Limits(unread_bytes=20 * MIB, unread_s=60))
    await LimitedSite(runner, ("127.0.0.1", 0), kept).start()
    port = runner.addresses[0][1]
    deaf = []
    for _ in range(12):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        deaf.append(client)
    most = 0

    def held() -> bool:
        nonlocal most
        most = max(most, sum(each.unread_bytes for each in kept))
        return len(refused) >= 6

    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as reader:
            asked = asyncio.create_task(reader.get("/"))
            await until(held, "the first to make room")
            assert (await asked).content == body
        assert 8 * MIB < most <= 20 * MIB
        assert set(refused) == {"crowded"}
    finally:
        for client in deaf:
            client.close()
        await runner.cleanup()
