"""What a receiver of traces answers costs the gateway a bounded time and a bounded memory, and no secret."""

from __future__ import annotations

import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.adapters import otlp
from gateway.adapters.otlp import OtlpSpans
from gateway.traces import Kind, Span
from tests.harness import until
from tests.otlp_receiver import receiver

LIMIT_S = 0.3
OK = b"HTTP/1.1 200 OK\r\n"
MUCH = 64 * 2**20
"""More than all buffers between two sockets hold."""


class Answerer:
    """A server that answers each request with `pieces`, as long as anybody takes them."""

    def __init__(self, pieces: Callable[[], Iterator[bytes]]) -> None:
        self.connections = self.taken = 0
        outer, self.over = self, threading.Event()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer.connections += 1
                try:
                    while self._request():
                        for piece in pieces():
                            self.wfile.write(piece)
                            outer.taken += len(piece)
                except OSError:
                    pass  # the gateway has closed it
                finally:
                    outer.over.set()

            def _request(self) -> bool:
                length = 0
                while line := self.rfile.readline().strip().lower():
                    length = int(line[15:]) if line.startswith(b"content-length:") else length
                return bool(self.rfile.read(length))

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def answering(pieces: Callable[[], Iterator[bytes]]) -> Iterator[Answerer]:
    running = Answerer(pieces)
    try:
        yield running
    finally:
        running.server.shutdown()
        running.server.server_close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent at once, and an answer is not waited for long."""
    monkeypatch.setattr(otlp, "EVERY_S", 0.02)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(LIMIT_S))


def without_end(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    for _ in range(MUCH // len(piece)):
        yield piece


def slowly(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    for _ in range(1000):
        time.sleep(LIMIT_S / 10)
        yield piece


async def sent(endpoint: str, times: int = 1) -> tuple[Counter[str], list[Any], float]:
    """What became of spans that were sent one after the other, what the log says, and how long it took."""
    counts: Counter[str] = Counter()
    now = began_at = time.monotonic()
    span = Span(1, 2, None, "", "queued", Kind.INTERNAL, now - 0.5, now, {}, None)
    with capture_logs() as lines:
        sink = OtlpSpans(endpoint, {}, lambda outcome, number: counts.update({outcome: number}))
        for number in range(1, times + 1):
            sink.take([span])
            await until(partial(lambda wanted: counts.total() == wanted, number))
        took_s = time.monotonic() - began_at
        await sink.close()
    return counts, lines, took_s


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK + b"\r\n", b"x" * 65536),
        (OK + b"Content-Length: 999999999999\r\n\r\n", b"x" * 65536),
        (OK + b"Content-Encoding: gzip\r\n\r\n", b"\x1f\x8b" * 32768),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ],
)
async def test_a_body_without_end_is_not_read(head: bytes, piece: bytes) -> None:
    with answering(partial(without_end, head, piece)) as there:
        counts, lines, _ = await sent(there.endpoint)
        await until(there.over.is_set)
    assert there.taken < MUCH / 2
    assert (counts, lines) == ({"sent": 1}, [])


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK, b"X-More: " + b"x" * 60_000 + b"\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60_000 + b"\r\nx\r\n"),
    ],
)
async def test_a_head_without_end_is_a_failure(head: bytes, piece: bytes) -> None:
    with answering(partial(without_end, head, piece)) as there:
        counts, lines, _ = await sent(there.endpoint)
        await until(there.over.is_set)
    assert there.taken < MUCH / 2
    assert counts == {"dropped": 1}
    assert [line["event"] for line in lines] == ["Traces cannot be sent, they are dropped"]


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK + b"Content-Length: 100000\r\n\r\n", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (OK, b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
async def test_an_answer_that_drips_is_a_failure_after_the_time_out(head: bytes, piece: bytes) -> None:
    with answering(partial(slowly, head, piece)) as there:
        counts, lines, took_s = await sent(there.endpoint)
    assert LIMIT_S < took_s < 10 * LIMIT_S
    assert counts == {"dropped": 1}
    assert [line["event"] for line in lines] == ["Traces cannot be sent, they are dropped"]
    assert lines[0]["reason"]


@pytest.mark.parametrize("status", [302, 307, 308])
async def test_an_answer_that_sends_elsewhere_is_a_failure(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=secret-one")
    with receiver() as elsewhere:
        head = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {elsewhere.endpoint}/v1/traces\r\nContent-Length: 0\r\n\r\n"
        with answering(lambda: iter([head.encode()])) as there:
            counts, lines, _ = await sent(there.endpoint)
    assert elsewhere.asked == 0
    assert counts == {"dropped": 1}
    assert str(status) in lines[0]["reason"]


async def test_usual_answers_share_a_connection() -> None:
    with answering(lambda: iter([OK + b"Set-Cookie: a=b\r\nContent-Length: 2\r\n\r\n{}"])) as there:
        counts, lines, _ = await sent(there.endpoint, times=3)
    assert (counts, lines, there.connections) == ({"sent": 3}, [], 1)
