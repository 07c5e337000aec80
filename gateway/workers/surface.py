"""The front's HTTP: what it knows itself, and everything else from a worker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import structlog
import yarl
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.admin.answers import (
    CLIENT_HEADER,
    SECURITY_HEADERS,
    answer_errors,
    error_response,
    json_response,
    token_response,
)
from gateway.admin.command_bodies import OFF_FIX
from gateway.admin.connections import Connections, LimitedSite, Limits
from gateway.admin.guard import TokenGuard, TokenRefused
from gateway.admin.log_api import LogApi
from gateway.admin.reading import guard_reading
from gateway.admin.report import status_body
from gateway.config import Settings
from gateway.errors import ConfigError
from gateway.metrics import Metrics
from gateway.topics import safe_text
from gateway.workers.aggregation import Merged
from gateway.workers.console import WorkersConsole
from gateway.workers.relay import LEAD, Seat
from gateway.workers.standing import Standing

log = structlog.get_logger(__name__)

INFER = "/v1/infer"
HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "trailer", "upgrade", "expect",
    CLIENT_HEADER.lower(),
))  # fmt: skip
"""Headers that concern one connection only, and that of ours which a client could forge."""
OF_BODY = frozenset(("content-length", "content-type"))
"""Headers that go with a body only; Transfer-Encoding is never passed on."""
CONNECT_S = 2.0
ANSWER_S = 3700.0
"""Beyond the longest SNAPSHOT_DEADLINE_MS; a worker answers within its own limits long before."""
READ_S = 30.0
"""The same for what is only read, by a worker that hangs."""
LOG_S = 2.0
"""For the log of a worker; one that hangs has its own in its console output only."""
FOUND_S = 1.0
"""For the other workers, once one has what is looked for."""
CHUNK_BYTES = 64 * 1024


class Surface:
    """One address for all workers: `sockets` are where each of them is asked."""

    def __init__(
        self,
        place: tuple[str, int],
        seats: list[Seat],
        sockets: list[Path],
        standing: Standing,
        metrics: Metrics,
        merged: Callable[[], Awaitable[Merged]],
        settings: Settings,
    ) -> None:
        self._place = place
        self._seats = seats
        self._sockets = sockets
        self._standing = standing
        self._merged = merged
        self._place_of_gateway = settings.place
        self._endpoints = settings.triton_endpoints
        self._guard = TokenGuard(settings.api_token_file, settings.api_read_token_file)
        self._turns = itertools.count()
        self._sessions: list[aiohttp.ClientSession] = []
        log_api = LogApi(self._guard, self._logs_of_workers)
        self._console = WorkersConsole(
            settings, seats, self._ask_all, _away, self._sessions, self._status_of, merged, self._guard
        )
        app = web.Application(middlewares=[answer_errors, guard_reading(self._guard)])
        app.add_routes(
            [
                web.get("/live", self._live),
                web.get("/healthz", self._live),
                web.get("/ready", self._ready),
                web.get("/readyz", self._ready),
                web.get("/v2/health/ready", self._kserve_ready),
                web.get("/startup", self._startup),
                web.get("/metrics", self._metrics_page),
                web.get("/api/status", self._status),
                *log_api.routes(),
                *self._console.routes(),
                web.route("*", "/{tail:.*}", self._pass_on),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        self._connections = Connections(lambda reason: metrics.http_refusals.labels(reason).inc(), Limits())

    async def start(self) -> int:
        """Listen; returns the port. Raises ConfigError."""
        for path in self._sockets:
            connector = aiohttp.UnixConnector(str(path), limit=0)
            timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
            self._sessions.append(
                aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False, trust_env=False)
            )
        await self._runner.setup()
        try:
            await LimitedSite(self._runner, self._place, self._connections).start()
        except OSError as error:
            await self.stop()
            raise ConfigError(
                f"cannot listen on {self._place[0]}:{self._place[1]}: {error.strerror}",
                where="HTTP_HOST and HTTP_PORT",
                fix="Choose a free port with HTTP_PORT, or 0 for any",
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Finish the requests under way and stop listening."""
        self._console.close()
        await self._runner.cleanup()
        for session in self._sessions:
            await session.close()

    # --- what the front knows itself --------------------------------------------------------------

    async def _live(self, _request: web.Request) -> web.Response:
        return json_response({"status": "live"})

    async def _ready(self, _request: web.Request) -> web.Response:
        report = self._standing.report()
        return json_response(report.as_json(), 200 if report.ready else 503)

    async def _kserve_ready(self, _request: web.Request) -> web.Response:
        ready = self._standing.report().ready
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _startup(self, _request: web.Request) -> web.Response:
        report, started = self._standing.report(), self._standing.started
        body = {"status": "started" if started else "starting", "reasons": report.reasons}
        return json_response(body, 200 if started else 503)

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(await self._merged())
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _status(self, _request: web.Request) -> web.Response:
        return json_response(self._status_of(await self._merged()))

    def _status_of(self, merged: Merged) -> dict[str, Any]:
        """What one gateway would say; asks no worker, for it is wanted most while one of them is away."""
        models = self._standing.serving()
        return status_body(self._place_of_gateway, self._standing.report(), merged.value, models, self._endpoints)

    async def _logs_of_workers(self, request: web.Request) -> list[bytes]:
        answers = await self._ask_all(request, LOG_S)
        return [each.body for each in answers if each.status == 200 and isinstance(each.body, bytes)]

    async def _ask_all(
        self, request: web.Request, limit_s: float, *, found_is_enough: bool = False
    ) -> list[web.Response]:
        """What each worker answers to a GET of the same address; at least that all are away.

        One that is away is left out, and so is one that hangs, after `limit_s`; soon after the first that answers
        with 200, where `found_is_enough`.
        """
        headers = passed_on(request, HOP_BY_HOP | OF_BODY)
        answers: dict[int, web.Response] = {}

        async def ask(index: int, limit: asyncio.Timeout) -> None:
            try:
                answers[index] = await self._send(index, "GET", request, headers)
            except (aiohttp.ClientError, TimeoutError):
                return
            if found_is_enough and answers[index].status == 200 and not limit.expired():
                soon = asyncio.get_running_loop().time() + FOUND_S
                limit.reschedule(min(soon, limit.when() or soon))

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s) as limit, asyncio.TaskGroup() as group:
                for seat in self._seats:
                    if seat.channel is not None:
                        group.create_task(ask(seat.index, limit))
        return [answers[index] for index in sorted(answers)] or [_away()]

    # --- what a worker answers ----------------------------------------------------------------------

    async def _pass_on(self, request: web.Request) -> web.Response:
        """Ask the lead, or for an inference one after the other."""
        if (refusal := self._refuse(request)) is not None:
            return refusal
        index = self._next() if request.path == INFER else LEAD
        if self._seats[index].channel is None:
            return _away()
        try:
            async with asyncio.timeout(READ_S if request.method in ("GET", "HEAD") else ANSWER_S):
                return await self._ask(request, index)
        except (aiohttp.ClientError, TimeoutError) as error:
            if request.transport is None:
                raise ConnectionResetError("the client has left") from error
            log.warning("A worker did not answer over HTTP", worker=index + 1, reason=type(error).__name__)
            return _away()

    def _refuse(self, request: web.Request) -> web.Response | None:
        """The answer to who has to give the token and does not.

        Failures are counted here for all: a worker that counted one would refuse what the others still answer.
        """
        off = self._guard.token_file is None
        commands = request.path.startswith("/api/models/" if off else "/api/")
        if request.method != "POST" or not (commands or (request.path == INFER and not off)):
            return None
        try:
            self._guard.admit_request(request, off_fix=OFF_FIX)
        except TokenRefused as error:
            return token_response(429 if error.retry_after_s else 403 if off else 401, error)
        return None

    def _next(self) -> int:
        present = [seat.index for seat in self._seats if seat.channel is not None]
        return present[next(self._turns) % len(present)] if present else LEAD

    async def _ask(self, request: web.Request, index: int) -> web.Response:
        body = _pieces(request) if request.can_read_body else None
        return await self._send(index, request.method, request, passed_on(request, HOP_BY_HOP), body)

    async def _send(
        self,
        index: int,
        method: str,
        request: web.Request,
        headers: list[tuple[str, str]],
        body: AsyncIterator[bytes] | None = None,
    ) -> web.Response:
        """Ask one worker for the address of a request.

        A body goes to one worker only: of two that share it, each gets less than its headers announce, and takes the
        rest out of the next request on the same connection.
        """
        path = request.rel_url.raw_path_qs
        url = f"http://worker{path}" if path.startswith("/") else "http://worker/"
        async with self._sessions[index].request(
            method,
            yarl.URL(url, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        ) as answer:
            content = await answer.read()
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in HOP_BY_HOP | {"content-length", "date"}
        }
        kept.update({name: value for name, value in SECURITY_HEADERS.items() if name not in answer.headers})
        response = web.Response(body=content, status=answer.status, reason=answer.reason, headers=kept)
        if answer.headers.get("Connection", "").lower() == "close":
            response.force_close()
        return response


def passed_on(request: web.Request, dropped: frozenset[str]) -> list[tuple[str, str]]:
    """The headers of a request as a worker gets them, with the address of the client."""
    without = dropped | named_by_connection(request.headers.getall("Connection", ()))
    headers = [
        (name, value)
        for name, value in request.headers.items()
        if name.lower() not in without and safe_text(value) == value
    ]
    return [*headers, (CLIENT_HEADER, request.remote or "")]


def named_by_connection(values: Iterable[str]) -> set[str]:
    """The headers that a client wants to be for this connection only (RFC 9110, 7.6.1), in lower case.

    Save for the body's: without its length, or its kind, the front and the worker would read different requests.
    """
    named = {name.strip().lower() for value in values for name in value.split(",")}
    return named - OF_BODY


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    """A body as it comes, never more of it at once than asyncio's own bounds hold."""
    async for piece in request.content.iter_chunked(CHUNK_BYTES):
        yield piece


def _away() -> web.Response:
    text, fix = "the worker is being started, or does not answer", "Try again soon; /ready says how the workers stand"
    return error_response(503, "WORKER_UNAVAILABLE", text, fix, {"Retry-After": "1"})
