"""What is no honest HTTP: slow, huge, compressed, smuggled; and what browsers send for other sites."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from structlog.testing import capture_logs

from gateway.admin.answers import SECURITY_HEADERS
from gateway.admin.connections import Limits
from gateway.admin.http import HttpServer
from tests.admin.commanded import Office, office, with_token
from tests.flow.builders import jpeg
from tests.harness import TIMEOUT_S, until

PROMOTE = "/api/models/detector/promote"
POST = b"POST " + PROMOTE.encode() + b" HTTP/1.1"
TOKEN = {"Authorization": "Bearer s3cret"}


async def say(place: Office, request: bytes) -> bytes:
    """Send bytes as they are; all that comes back until the gateway closes."""
    host, _, port = place.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            async with asyncio.timeout(TIMEOUT_S):
                return await reader.read(-1)
        return b""
    finally:
        writer.close()


def statuses(answer: bytes) -> list[int]:
    """The status of each answer on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, "Host: gateway", "Connection: close", *headers, "", ""]).encode("latin-1")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Office]:
    async with office(api_token_file=with_token(tmp_path)) as running:
        yield running


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"\x00" * 100,
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /live HTTP/9.9\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: a\r\nBad Header\x00: s3cret\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: a\r\n: no name\r\n\r\n",
        b"GET /a\x00b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a:99999/live HTTP/1.1\r\nHost: a\r\n\r\n",
        POST + b"\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        POST + b"\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        POST + b"\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_is_no_http_is_answered_with_an_error_or_not_at_all(place: Office, request_bytes: bytes) -> None:
    answer = await say(place, request_bytes)
    assert set(statuses(answer)) <= {400, 404, 505}, answer
    assert b"s3cret" not in answer
    assert b"aiohttp" not in answer
    assert place.commands.executed == []
    assert (await place.http.get("/live")).status_code == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (head("GET /" + "a" * 9_000 + " HTTP/1.1"), 431),
        (head("GET /live HTTP/1.1", "X: " + "a" * 9_000), 431),
        (head("GET /live HTTP/1.1", *(f"X-{n}: {'a' * 1000}" for n in range(33)))[:-2], 431),
        (head("GET /live HTTP/1.1", *(f"X-{n}: a" for n in range(500))), 400),
    ],
)
async def test_huge_heads_are_cut_off(place: Office, request_bytes: bytes, status: int) -> None:
    """In pieces, as they come over a network, so that none is complete by the time it is too large."""
    host, _, port = place.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(request_bytes), 5_000):
            writer.write(request_bytes[start : start + 5_000])
            await writer.drain()
            await asyncio.sleep(0.001)
    async with asyncio.timeout(TIMEOUT_S):
        answer = await reader.read(-1)
    writer.close()
    assert statuses(answer) == [status]
    assert b"X-Content-Type-Options: nosniff" in answer


@pytest.mark.parametrize(
    "path",
    ["/live", "/ready", "/metrics", "/api/status", "/api/models", "/nope", "/api/models/nope", "/openapi.json", "/v2"],
)
async def test_every_answer_has_the_headers_that_bind_browsers(place: Office, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE", "TRACE", "PROPFIND"):
        answer = await place.http.request(method, path, headers={"Origin": "https://evil.example"})
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value, (method, name)
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert answer.status_code < 500


async def test_the_answer_to_no_http_has_them_too(place: Office) -> None:
    answer = await say(place, b"hello\r\n\r\n")
    for name, value in SECURITY_HEADERS.items():
        assert f"{name}: {value}".encode() in answer
    assert b'"code":"BAD_REQUEST"' in answer


@pytest.mark.parametrize(
    "path",
    ["../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "%2fetc%2fpasswd", "..;/", "%00",
     "detector%00", "detector/../detector", "C:%5Cwindows", "file:%2f%2f%2fetc%2fpasswd", "%ff%fe", "%ed%a0%80",
     "a" * 8_000],
)  # fmt: skip
async def test_no_path_leads_to_a_file(place: Office, path: str) -> None:
    for prefix in ("/", "/api/models/", "/v2/models/", "/api/models/detector/"):
        answer = await say(place, head(f"GET {prefix}{path} HTTP/1.1"))
        assert statuses(answer)[0] in (400, 404, 405, 431), answer
        assert b"root:" not in answer
        answer = await say(place, head(f"POST {prefix}{path}/unload HTTP/1.1", "Authorization: Bearer s3cret"))
        assert statuses(answer)[0] in (400, 404, 405, 431), answer
    assert place.commands.executed == []


@pytest.mark.parametrize("path", ["/v1/infer", PROMOTE, "/live"])
async def test_what_is_compressed_is_not_unpacked(place: Office, path: str) -> None:
    bomb = gzip.compress(bytes(20 * 2**20))
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x"):
        answer = await place.http.post(path, content=bomb, headers={"Content-Encoding": coding, **TOKEN})
        assert answer.status_code in (405, 415)
    assert place.commands.executed == []


async def test_a_form_of_a_thousand_parts_and_one_within_another_is_refused(place: Office) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x", **TOKEN}
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    nested = b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n1\r\n--y--\r\n"
    long = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + bytes(2**20) + b"\r\n"
    for body, status in ((part * 1000, 400), (nested * 100, 400), (long, 413), (b"\r\n" * 10_000, 400)):
        answer = await place.http.post("/v1/infer", content=body + b"--x--\r\n", headers=headers)
        assert answer.status_code == status, body[:60]


async def test_requests_one_behind_the_other_are_answered_in_order(place: Office) -> None:
    several = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n" * 50 + head("GET /nope HTTP/1.1")
    assert statuses(await say(place, several)) == [200] * 50 + [404]


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /live HTTP/1.0\r\n\r\n", [200]),
        (head("GET http://gateway/live HTTP/1.1"), [200]),
        (head("GET /live HTTP/1.1", "Upgrade: websocket", "Sec-WebSocket-Key: a", "Sec-WebSocket-Version: 13"), [200]),
        (head("CONNECT evil.example:443 HTTP/1.1"), [404]),
        (head("OPTIONS * HTTP/1.1"), [404]),
        (head("GET /live HTTP/1.1", "Expect: a-miracle"), [417]),
    ],
)
async def test_unusual_http(place: Office, request_bytes: bytes, expected: list[int]) -> None:
    answer = statuses(await say(place, request_bytes))
    assert answer == expected or set(answer) <= {400, 404, 405}


async def test_a_body_behind_an_upgrade_is_no_second_request_with_rights(place: Office) -> None:
    inner = head(f"POST {PROMOTE} HTTP/1.1")
    upgrade = b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert 202 not in statuses(await say(place, upgrade + inner))
    assert place.commands.executed == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Sec-Fetch-Site": "none"}, 202),
        ({"Origin": "http://{host}"}, 202),
        ({}, 202),
    ],
)
async def test_a_page_of_another_site_commands_nothing_even_with_the_token(
    place: Office, headers: dict[str, str], status: int
) -> None:
    given = {name: value.format(host=place.url.removeprefix("http://")) for name, value in headers.items()}
    assert (await place.http.post(PROMOTE, headers={**TOKEN, **given})).status_code == status
    assert len(place.commands.executed) == (status == 202)


@contextlib.asynccontextmanager
async def strict(place: Office, limits: Limits) -> AsyncIterator[tuple[HttpServer, int]]:
    """A second server of the same gateway, with other limits."""
    server = HttpServer("127.0.0.1", 0, place.health, place.metrics, *place.parts, limits)
    port = await server.start()
    try:
        yield server, port
    finally:
        await server.stop()


def slow_client(port: int, source: str = "127.0.0.1", said: bytes = b"GET /live HTTP/1.1\r\nX: ") -> socket.socket:
    """One who never finishes his request."""
    client = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0))
    client.sendall(said)
    client.setblocking(False)
    return client


async def test_five_hundred_slow_clients_keep_nobody_out_and_hold_no_more_than_their_share(place: Office) -> None:
    limits = Limits(connections=64)
    async with strict(place, limits) as (server, port):
        before, slow = psutil.Process().num_fds(), list[socket.socket]()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as steady:
            await steady.get("/live")
            for number in range(500):
                slow.append(await asyncio.to_thread(slow_client, port, "127.0.0.9"))
                if number % 50 == 0:
                    assert (await steady.get("/metrics")).status_code == 200
                    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as newcomer:
                        assert (await newcomer.get("/ready")).status_code in (200, 503)
                assert len(server.connections) <= limits.connections
            held = psutil.Process().num_fds() - before - len(slow)
            assert held <= limits.connections + 10
        for client in slow:
            client.close()
        await until(lambda: len(server.connections) == 0, "the end of all connections")
        assert place.metrics.value("http_refusals_total", reason="crowded") >= 400


async def test_a_head_that_does_not_end_is_ended(place: Office) -> None:
    async with strict(place, Limits(head_s=0.2)) as (_, port):
        for before in (b"", b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(TIMEOUT_S):
                writer.write(before)
                if before:
                    await reader.readuntil(b"}")
                writer.write(b"GET /live HTTP/1.1\r\nX: ")
                assert statuses(await reader.read(-1)) == [408]
            writer.close()
        assert place.metrics.value("http_refusals_total", reason="slow") == 2


async def test_who_says_nothing_or_reads_nothing_is_let_go(place: Office) -> None:
    async with strict(place, Limits(idle_s=0.3)) as (server, port):
        silent = slow_client(port, said=b"")
        deaf = slow_client(port, said=b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 2000)
        await until(lambda: len(server.connections) == 0, "the end of both")
        for client in (silent, deaf):
            client.close()


async def test_requests_whose_answers_are_not_read_keep_nobody_out(place: Office) -> None:
    """One behind the other, so that there is always one more to work on once the client reads."""
    said = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 400
    async with strict(place, Limits(connections=4, unread_s=0.2)) as (server, port):
        deaf = [slow_client(port, "127.0.0.9", said) for _ in range(4)]
        await until(lambda: any(each.writing_paused for each in server.connections), "an answer that is not read")
        for _ in range(4):
            deaf.append(slow_client(port, "127.0.0.9", said))
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as probe:
                assert (await probe.get("/live")).status_code == 200
        await until(lambda: len(server.connections) == 0, "the end of all, long before idle_s")
        for client in deaf:
            client.close()


async def test_who_reads_slowly_but_reads_is_served_to_the_end(place: Office) -> None:
    async with strict(place, Limits(unread_s=0.7)) as (_, port):
        client = slow_client(
            port, said=b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 400 + head("GET /nope HTTP/1.1")
        )
        reader, writer = await asyncio.open_connection(sock=client, limit=2**12)
        answers = bytearray()
        async with asyncio.timeout(TIMEOUT_S):
            while piece := await reader.read(2**18):
                answers += piece
                await asyncio.sleep(0.03)  # more slowly than it is sent
        writer.close()
    assert statuses(bytes(answers)) == [200] * 400 + [404]


async def test_who_sends_on_after_a_refusal_comes_to_read_it(place: Office) -> None:
    answer = await place.http.post(PROMOTE, headers={"Authorization": "Bearer guess"}, content=bytes(2 * 2**20))
    assert answer.status_code == 401
    assert (await place.http.post(PROMOTE, headers=TOKEN)).status_code == 202


@pytest.mark.parametrize("path", ["/v1/infer", PROMOTE])
async def test_who_leaves_in_the_middle_of_his_body_is_no_defect(place: Office, path: str) -> None:
    with capture_logs() as logs:
        host, _, port = place.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head(f"POST {path} HTTP/1.1", "Authorization: Bearer s3cret", "Content-Length: 99") + b"{")
        await writer.drain()
        await until(lambda: any(each.busy for each in place.connections), "the request")
        writer.close()
        await until(lambda: not place.connections, "the end")
        assert (await place.http.get("/live")).status_code == 200
    assert not [entry for entry in logs if "defect" in entry["event"]]


async def test_a_slow_picture_does_not_take_the_probes_along(place: Office) -> None:
    said = (
        b"POST /v1/infer HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\r\nContent-Length: 100000\r\n\r\n"
        + jpeg()[:9]
    )
    port = int(place.url.rpartition(":")[2])
    slow = [await asyncio.to_thread(slow_client, port, "127.0.0.1", said) for _ in range(20)]
    assert (await place.http.get("/live")).status_code == 200
    for client in slow:
        client.close()
