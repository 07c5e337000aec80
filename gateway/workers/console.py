"""The console of several workers: each is asked, and their answers are made into one.

Events are passed on from all of them as they come; nothing is kept here but the piece that is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import msgspec
import structlog
from aiohttp import web

from gateway.admin.answers import CLIENT_HEADER, json_response
from gateway.admin.console_pages import ConsolePages
from gateway.admin.events import BYE, Stream, Streams, too_many_streams
from gateway.admin.guard import TokenGuard
from gateway.config import Settings
from gateway.workers import console_merge
from gateway.workers.relay import Seat

log = structlog.get_logger(__name__)

ANSWER_S = 20.0
"""For a worker to answer; pictures wait for their turn there."""
EVENT_BYTES = 256 * 1024
"""Of a worker's events that may wait here; twice as many is the largest event."""
SILENT_S = 30.0
"""Without a word from a worker, which says something more often: it hangs."""
AGAIN_S = 1.0
END = b"\n\n"
"""Of an event."""

AskAll = Callable[[web.Request, float], Awaitable[list[web.Response]]]
Value = Callable[..., float]


class WorkersConsole:
    """`ask_all` asks every worker the same, `status` is the answer of all to /api/status."""

    def __init__(
        self,
        settings: Settings,
        seats: Sequence[Seat],
        ask_all: AskAll,
        sessions: Sequence[aiohttp.ClientSession],
        status: Callable[[web.Request], Awaitable[web.Response]],
        value: Callable[[], Awaitable[Value]],
        guard: TokenGuard,
    ) -> None:
        self._off = settings.console == "off"
        self._pages = ConsolePages(settings)
        self._seats = seats
        self._ask_all = ask_all
        self._sessions = sessions
        self._status = status
        self._value = value
        self._streams = Streams(guard.may_read)
        self._started_at = time.monotonic()

    def routes(self) -> list[web.RouteDef]:
        """What is served here; the rest of the console is any worker's."""
        if self._off:
            return self._pages.routes()
        return [
            *self._pages.routes(),
            web.get("/api/events", self._events, allow_head=False),
            web.get("/api/cameras", self._cameras),
            web.get("/api/camera", self._newest),
            web.get("/api/frame", self._newest),
            web.get("/api/compare", self._compare),
            web.get("/api/health", self._health),
        ]

    def close(self) -> None:
        """Say goodbye to all who look, for the gateway stops."""
        self._streams.close()

    # --- one answer of many -------------------------------------------------------------------------

    async def _cameras(self, request: web.Request) -> web.Response:
        return await self._merge(request, console_merge.cameras)

    async def _compare(self, request: web.Request) -> web.Response:
        return await self._merge(request, console_merge.comparisons)

    async def _health(self, request: web.Request) -> web.Response:
        status = await self._status(request)
        if status.status != 200 or not isinstance(status.body, bytes):
            return status
        told, value = msgspec.json.decode(status.body), await self._value()
        broker = {"connected": bool(value("broker_connected")), "backlog_bytes": int(value("outbox_bytes"))}
        return await self._merge(request, lambda bodies: console_merge.health(bodies, told, broker, self._started_at))

    async def _merge(self, request: web.Request, merge: Callable[[list[Any]], dict[str, Any]]) -> web.Response:
        answers = await self._ask_all(request, ANSWER_S)
        good = [msgspec.json.decode(body) for each in answers if each.status == 200 and (body := _body(each))]
        return json_response(merge(good)) if good else answers[0]

    async def _newest(self, request: web.Request) -> web.Response:
        """A camera, or a picture, of the worker that has it; of several the one to which it came last."""
        answers = await self._ask_all(request, ANSWER_S)
        good = [each for each in answers if each.status == 200 and _body(each)]
        if len(good) > 1:
            return max(good, key=_came_at)
        # Where none has it, one that knows the camera says more than one that does not.
        return good[0] if good else min(answers, key=lambda each: b"CAMERA_UNKNOWN" in _body(each))

    # --- events ---------------------------------------------------------------------------------------

    async def _events(self, request: web.Request) -> web.StreamResponse:
        with self._streams.take_one() as admitted:
            if not admitted:
                return too_many_streams()
            stream = Stream(request, self._streams.may_read)
            response = await stream.open()
            relays = [asyncio.create_task(self._relay(seat, request, stream)) for seat in self._seats]
            try:
                with contextlib.suppress(ConnectionError):
                    await self._stay(stream, relays)
            finally:
                for task in relays:
                    task.cancel()
                await asyncio.gather(*relays, return_exceptions=True)
            return response

    async def _stay(self, stream: Stream, relays: list[asyncio.Task[None]]) -> None:
        while not self._streams.closing and not stream.left and not any(task.done() for task in relays):
            await stream.stay()
            await self._streams.wait()
        if self._streams.closing and not stream.left:
            await stream.send(BYE)

    async def _relay(self, seat: Seat, request: web.Request, stream: Stream) -> None:
        """Pass one worker's events on, also after it has been started again; ends when the client has left."""
        while True:
            if seat.channel is not None:
                try:
                    await self._pass_on(seat, request, stream)
                except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                    if stream.left:
                        return
                    log.debug("A worker's events have ended", worker=seat.index + 1, reason=type(error).__name__)
            await asyncio.sleep(AGAIN_S)

    async def _pass_on(self, seat: Seat, request: web.Request, stream: Stream) -> None:
        headers = {name: request.headers[name] for name in ("Authorization",) if name in request.headers}
        headers[CLIENT_HEADER] = request.remote or ""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=AGAIN_S, sock_read=SILENT_S)
        async with self._sessions[seat.index].get(
            "http://worker/api/events", headers=headers, timeout=timeout, read_bufsize=EVENT_BYTES
        ) as answer:
            while answer.status == 200 and (event := await answer.content.readuntil(END)).endswith(END):
                if event.startswith(b"event: ") and event != BYE:  # its farewell is not that of the others
                    await stream.send(event)


def _body(answer: web.Response) -> bytes:
    """What a worker has answered; empty for HEAD."""
    return answer.body if isinstance(answer.body, bytes) else b""


def _came_at(answer: web.Response) -> float:
    body = msgspec.json.decode(_body(answer))
    return float(body.get("last_at") or body.get("entry", {}).get("at", 0.0))
