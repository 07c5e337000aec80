"""The connections of the HTTP server: a bounded number, and none that is held without a request for long."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from gateway.admin.answers import REFUSED, SECURITY_HEADERS, error_response, http_error

log = structlog.get_logger(__name__)

SWEEP_S = 0.5
MAX_LINE = 8190
"""Bytes of the request line, and of one header."""
MAX_HEADERS = 64
LARGE = 64 * 1024
"""Bytes of an answer for which there has to be room; smaller ones, as probes get, never wait."""
ROOM_S = 2.0
"""To read an answer in peace, also while others wait for room."""
LOOK_FOR_ROOM_S = 0.02
LINGER_S = 3.0
"""For what a client still sends of a body that was refused, so that it comes to read the answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What all clients together, and each of them, may hold."""

    connections: int = 128
    head_bytes: int = 32_768
    """Request line and headers together."""
    head_s: float = 10.0
    """From the first byte of a request to the end of its headers."""
    idle_s: float = 75.0
    """Without any byte of a next request, or with an answer that the client does not read to its end."""
    unread_s: float = 5.0
    """With an answer of which the client reads nothing."""
    unread_bytes: int = 16 * 2**20
    """Of all answers together that have not been read; one alone may be larger."""


class Connections:
    """All open connections. When they are too many, the one that has waited longest for its client gives way.

    It is one of the address that has most, so who opens hundreds takes them from himself alone.
    """

    def __init__(self, refused: Callable[[str], None], limits: Limits) -> None:
        self.refused = refused
        self.limits = limits
        self._open: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._open))

    def admit(self, connection: Connection) -> None:
        """Take one in; there is always room for it, for a probe that is refused ends the gateway."""
        if len(self._open) >= self.limits.connections:
            self._make_room()
        self._open.add(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._look)

    def leave(self, connection: Connection) -> None:
        """Forget one that has ended."""
        self._open.discard(connection)

    def _make_room(self) -> None:
        """Close one; of those that the gateway works for only where there is no other."""
        held = Counter(each.address for each in self._open)
        victim = max(self._open, key=lambda each: (not each.busy, held[each.address], -each.waits_since))
        self.refused("crowded")
        victim.end()

    async def wait_for_room(self, connection: Connection, size: int) -> None:
        """Wait until there is room for an answer, which who reads slowly has to make after a while."""
        while connection in self._open and size > LARGE:
            unread = {each: each.unread_bytes for each in self if each.unread_bytes}
            if not unread or sum(unread.values()) + size <= self.limits.unread_bytes:
                return
            self._end_one_unread(unread)
            await asyncio.sleep(LOOK_FOR_ROOM_S)

    def _end_one_unread(self, unread: dict[Connection, int]) -> None:
        """Close one of those that have had their time, of the address that holds most."""
        held: Counter[str] = Counter()
        for each, size in unread.items():
            held[each.address] += size
        late = [each for each in unread if time.monotonic() - each.waits_since > ROOM_S]
        if late:
            self.refused("crowded")
            max(late, key=lambda each: (held[each.address], -each.waits_since)).end()

    def _look(self) -> None:
        """Close what has been waited for too long; goes on as long as there are connections."""
        now = time.monotonic()
        unread_s = {connection: connection.look_unread_s(now) for connection in self}
        for connection in [each for each in self if not each.busy]:
            if connection.head_since is not None and now - connection.head_since > self.limits.head_s:
                connection.turn_away(HTTPStatus.REQUEST_TIMEOUT)
            elif now - connection.waits_since > self.limits.idle_s or unread_s[connection] > self.limits.unread_s:
                connection.end()
        again = bool(self._open)
        self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._look) if again else None


class Connection(web.RequestHandler):
    """One connection: aiohttp's, with an end to slow and long headers, and one form for all answers."""

    def __init__(self, server: web.Server, connections: Connections) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # as AppRunner gives it
            keepalive_timeout=connections.limits.idle_s,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_S,
            auto_decompress=False,
        )
        self._connections = connections
        self._answered = 0
        self._sending = False
        self._unsent = 0
        self._read_at = time.monotonic()
        self._body_over: Callable[[], bool] = lambda: True
        self._head_bytes = 0
        self._socket: asyncio.Transport | None = None
        self.address = ""
        self.head_since: float | None = None
        """When the first byte came of a request whose headers are not complete."""
        self.waits_since = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether the gateway, and not the client, is the one that is waited for.

        Requests that came one behind the other wait for the client too while the answer to one of them is not read.
        """
        return self._request_count > self._answered and not self._sending

    @property
    def unread_bytes(self) -> int:
        """What waits here until the client reads."""
        return self._socket.get_write_buffer_size() if self._socket is not None else 0

    def look_unread_s(self, now: float) -> float:
        """Since when, in seconds, the client has read nothing of what waits for it; to be called at each sweep."""
        unsent = self.unread_bytes
        if not unsent or unsent < self._unsent:
            self._read_at = now
        self._unsent = unsent
        return now - self._read_at

    def resume_writing(self) -> None:
        """Go on, for the client has read."""
        self._read_at = time.monotonic()
        super().resume_writing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; when there are too many, another one ends."""
        assert isinstance(transport, asyncio.Transport)
        self.address = (transport.get_extra_info("peername") or ("",))[0]
        self._connections.admit(self)
        self._socket = transport
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Look at how long a request takes to begin, and how large its headers get."""
        before, between = self._request_count, self._request_count <= self._answered and self._body_over()
        super().data_received(data)
        if self._request_count > before:
            self._head_bytes, self.head_since = 0, None
        elif data and between:
            self._head_bytes += len(data)
            if self.head_since is None:
                self.head_since = time.monotonic()
            if self._head_bytes > self._connections.limits.head_bytes:
                self.turn_away(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def turn_away(self, status: HTTPStatus) -> None:
        """Answer what is no request yet, and close."""
        self._connections.refused(REFUSED[status])
        if self._socket is not None and not self._socket.is_closing():
            headers = {**SECURITY_HEADERS, "Connection": "close", "Content-Length": "0"}
            lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
            self._socket.write("\r\n".join([*lines, "", ""]).encode())
        self._connections.leave(self)
        self.force_close()

    def end(self) -> None:
        """Close at once; what the client has not read is lost."""
        self._connections.leave(self)
        if self._socket is not None:
            self._socket.abort()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, each with the headers that bind browsers; from here on the client is waited for."""
        if isinstance(resp, web.HTTPException):
            resp = http_error(request, resp)
        if reason := REFUSED.get(resp.status):
            self._connections.refused(reason)
        if not resp.prepared:
            for name, value in SECURITY_HEADERS.items():
                resp.headers.setdefault(name, value)
            if isinstance(resp, web.Response) and isinstance(resp.body, bytes):
                await self._connections.wait_for_room(self, len(resp.body))
        self._answered += 1
        self._body_over = request.content.is_eof
        self.waits_since = time.monotonic()
        self._sending = True
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._sending = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or to a defect; what the client sent is neither repeated nor logged."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if isinstance(exc, LineTooLong):
            text, fix = "the request line or a header is too long", f"Keep each below {MAX_LINE} bytes"
            answer = error_response(431, "REQUEST_HEADER_FIELDS_TOO_LARGE", text, fix)
        elif isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            # aiohttp's refusal repeats the header, and fails where that is no text.
            answer = error_response(417, "EXPECTATION_FAILED", "`Expect` is no text", "Leave it out, or 100-continue")
        elif status < 500:
            answer = error_response(status, "BAD_REQUEST", "this is no HTTP request", "Send HTTP/1.1, without TLS")
        else:
            log.error("A defect of the gateway", exc_info=exc)
            answer = error_response(status, "INTERNAL_ERROR", "a defect", "Report it with the log lines of this moment")
        answer.force_close()
        return answer


class LimitedSite(web.BaseSite):
    """Where the server listens, (host, port) or a Unix socket, with Connections of ours in place of aiohttp's own."""

    def __init__(self, runner: web.AppRunner, place: tuple[str, int] | Path, connections: Connections) -> None:
        super().__init__(runner)
        assert runner.server is not None
        self._serves = runner.server
        self._place = place
        self._connections = connections

    @property
    def name(self) -> str:
        """Where it listens."""
        place = self._place
        return f"unix:{place}" if isinstance(place, Path) else f"http://{place[0]}:{place[1]}"

    async def start(self) -> None:
        """Listen; raises OSError."""
        await super().start()
        loop = asyncio.get_running_loop()
        if isinstance(self._place, Path):
            self._server = await loop.create_unix_server(self._connection, self._place, backlog=self._backlog)
        else:
            self._server = await loop.create_server(self._connection, *self._place, backlog=self._backlog)

    def _connection(self) -> Connection:
        return Connection(self._serves, self._connections)
