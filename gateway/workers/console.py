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
import structlog
from aiohttp import web

from gateway.admin.answers import CLIENT_HEADER, json_response
from gateway.admin.console_pages import ConsolePages
from gateway.admin.events import BYE, Stream, Streams, too_many_streams
from gateway.admin.guard import TokenGuard
from gateway.admin.shared_answers import SharedAnswers
from gateway.config import Settings
from gateway.workers import console_merge
from gateway.workers.aggregation import Merged
from gateway.workers.relay import Seat

log = structlog.get_logger(__name__)

SOON_S = 5.0
"""For a worker to answer what it knows by heart."""
ANSWER_S = 20.0
"""For a picture, which waits for its turn there."""
EVENT_BYTES = 256 * 1024
"""Of a worker's events that may wait here; twice as many is the largest event."""
SILENT_S = 30.0
"""Without a word from a worker, which says something more often: it hangs."""
AGAIN_S = 1.0
REFUSED = (401, 429)
"""A worker does not take the token; to ask again would only count as one more guess."""
END = b"\n\n"
"""Of an event."""

AskAll = Callable[..., Awaitable[list[web.Response]]]
Merge = Callable[[Sequence[bytes]], dict[str, Any]]


class WorkersConsole:
    """`ask_all` and `away` are the surface's, `status` makes the body of /api/status out of the metrics of all."""

    def __init__(
        self,
        settings: Settings,
        seats: Sequence[Seat],
        ask_all: AskAll,
        away: Callable[[], web.Response],
        sessions: Sequence[aiohttp.ClientSession],
        status: Callable[[Merged], dict[str, Any]],
        merged: Callable[[], Awaitable[Merged]],
        guard: TokenGuard,
    ) -> None:
        self._off = settings.console == "off"
        self._pages = ConsolePages(settings)
        self._seats = seats
        self._ask_all = ask_all
        self._away = away
        self._sessions = sessions
        self._status = status
        self._merged = merged
        self._streams = Streams(guard.may_read)
        self._shared = SharedAnswers()
        self._started_at = time.monotonic()

    def routes(self) -> list[web.RouteDef]:
        """What is served here; the rest of the console is any worker's."""
        if self._off:
            return self._pages.routes()
        return [
            *self._pages.routes(),
            web.get("/api/events", self._events, allow_head=False),
            web.get("/api/cameras", self._cameras),
            web.get("/api/camera", self._camera),
            web.get("/api/frame", self._frame),
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
        async def make() -> web.Response:
            merged = await self._merged()
            status, began = self._status(merged), self._started_at
            return await self._merged_answer(
                request, lambda bodies: console_merge.health(bodies, status, merged, began, time.time())
            )

        return await self._shared.of(request.path, make)

    async def _merge(self, request: web.Request, merge: Merge) -> web.Response:
        return await self._shared.of(request.path, lambda: self._merged_answer(request, merge))

    async def _merged_answer(self, request: web.Request, merge: Merge) -> web.Response:
        """One answer of those that answer, which says how many are missing in it."""
        answers = await self._ask_all(request, SOON_S)
        good = [body for each in answers if each.status == 200 and (body := _body(each))]
        if not good:
            return answers[0]
        return json_response({**merge(good), "missing": len(self._seats) - len(good)})

    async def _camera(self, request: web.Request) -> web.Response:
        return await self._shared.of(f"camera {request.query.get('id', '')}", lambda: self._newest(request, SOON_S))

    async def _frame(self, request: web.Request) -> web.Response:
        return await self._newest(request, ANSWER_S)

    async def _newest(self, request: web.Request, limit_s: float) -> web.Response:
        """A camera, or a picture, of the worker that has it; of several the one to which it came last.

        Nobody knows what a worker has that does not answer, so without it nothing is said not to be there.
        """
        answers = await self._ask_all(request, limit_s, found_is_enough=True)
        good = [each for each in answers if each.status == 200 and _body(each)]
        if len(good) > 1:
            return max(good, key=lambda each: console_merge.came_at(_body(each)))
        if not good and len(answers) < len(self._seats):
            return self._away()
        # Where none has it, one that knows the camera says more than one that does not.
        return good[0] if good else min(answers, key=lambda each: b"CAMERA_UNKNOWN" in _body(each))

    # --- events ---------------------------------------------------------------------------------------

    async def _events(self, request: web.Request) -> web.StreamResponse:
        with self._streams.take_one(request) as admitted:
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
        """Pass one worker's events on, also after it has been started again.

        Ends when the client has left, or its token holds no more: the worker would count each time as a guess.
        """
        while self._streams.may_read(request):
            if seat.channel is not None:
                try:
                    if await self._pass_on(seat, request, stream) in REFUSED:
                        return
                except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                    if stream.left:
                        return
                    log.debug("A worker's events have ended", worker=seat.index + 1, reason=type(error).__name__)
            await asyncio.sleep(AGAIN_S)

    async def _pass_on(self, seat: Seat, request: web.Request, stream: Stream) -> int:
        """Returns the status with which the worker has answered."""
        headers = {name: request.headers[name] for name in ("Authorization",) if name in request.headers}
        headers[CLIENT_HEADER] = request.remote or ""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=AGAIN_S, sock_read=SILENT_S)
        async with self._sessions[seat.index].get(
            "http://worker/api/events", headers=headers, timeout=timeout, read_bufsize=EVENT_BYTES
        ) as answer:
            while answer.status == 200 and (event := await answer.content.readuntil(END)).endswith(END):
                if event.startswith(b"event: ") and event != BYE:  # its farewell is not that of the others
                    await stream.send(event)
            return answer.status


def _body(answer: web.Response) -> bytes:
    """What a worker has answered."""
    return answer.body if isinstance(answer.body, bytes) else b""
