"""HTTP: the server with its probes and metrics, also under the Kubernetes-style names; starts first and stops last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.admin.answers import answer_errors, as_the_front_says, json_response
from gateway.admin.api import Api
from gateway.admin.connections import Connections, LimitedSite, Limits
from gateway.admin.guard import TokenGuard
from gateway.admin.health import Health
from gateway.admin.infer import InferApi
from gateway.admin.kserve import KServe
from gateway.admin.reading import guard_reading
from gateway.errors import ConfigError
from gateway.metrics import Metrics


class Pages(Protocol):
    """Further pages."""

    def routes(self) -> list[web.RouteDef]:
        """What is served there."""
        ...


class HttpServer:
    """Serves probes, metrics, the API, `POST /v1/infer`, what KServe's clients ask for, and further pages.

    With a `guard` whoever looks at the API is asked for a token where there is one for that. With `path` it listens on
    that Unix socket in place of the port: there the front is its only client.
    """

    def __init__(
        self,
        host: str,
        port: int,
        health: Health,
        metrics: Metrics,
        api: Api,
        infer: InferApi,
        kserve: KServe,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        path: Path | None = None,
        pages: Sequence[Pages] = (),
        guard: TokenGuard | None = None,
    ) -> None:
        self._place: tuple[str, int] | Path = path or (host, port)
        self._host = host
        self._port = port
        self._health = health
        self._metrics = metrics
        middlewares = [answer_errors] if path is None else [as_the_front_says, answer_errors]
        app = web.Application(middlewares=middlewares if guard is None else [*middlewares, guard_reading(guard)])
        app.add_routes(
            [
                web.get("/live", self._live),
                web.get("/healthz", self._live),
                web.get("/ready", self._ready),
                web.get("/readyz", self._ready),
                web.get("/startup", self._startup),
                web.get("/metrics", self._metrics_page),
                *api.routes(),
                *infer.routes(),
                *kserve.routes(),
                *(route for each in pages for route in each.routes()),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        self.connections = Connections(lambda reason: metrics.http_refusals.labels(reason).inc(), limits)

    async def start(self) -> int:
        """Listen; returns the port, which the system chose where 0 was given; 0 with a `path`. Raises ConfigError."""
        await self._runner.setup()
        try:
            await LimitedSite(self._runner, self._place, self.connections).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}",
                where="HTTP_HOST and HTTP_PORT",
                fix="Choose a free port with HTTP_PORT, or 0 for any",
            ) from error
        return 0 if isinstance(self._place, Path) else int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Finish the requests under way and stop listening."""
        await self._runner.cleanup()

    async def _live(self, _request: web.Request) -> web.Response:
        return json_response({"status": "live"})

    async def _ready(self, _request: web.Request) -> web.Response:
        report = self._health.report()
        return json_response(report.as_json(), 200 if report.ready else 503)

    async def _startup(self, _request: web.Request) -> web.Response:
        report = self._health.report()
        body = {"status": "started" if self._health.started else "starting", "reasons": report.reasons}
        return json_response(body, 200 if self._health.started else 503)

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        self._health.report()
        text = generate_latest(self._metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})
