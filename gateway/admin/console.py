"""The console's parts, put together; there is none with CONSOLE=off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Protocol

from aiohttp import web

from gateway.admin.console_api import ConsoleApi, Folders
from gateway.admin.console_pages import ConsolePages, say_off
from gateway.admin.events import Streams
from gateway.admin.frames import Frames
from gateway.admin.guard import TokenGuard
from gateway.admin.health_report import STEP_S, HealthReport
from gateway.flow.gallery import Gallery
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.ports import Broker

LOOK_S = 1.0
PATHS = ("events", "cameras", "camera", "frame", "compare", "health", "golden", "golden/picture")
"""What is below /api/ because of the console."""


class Flow(Protocol):
    """What it looks into."""

    @property
    def gallery(self) -> Gallery | None:
        """What the flow shows; None where the console is off."""
        ...

    @property
    def decoders(self) -> Executor:
        """The threads that decode."""
        ...


class Console:
    """The page, what it asks for, and the clock behind both."""

    def __init__(
        self,
        live: Live,
        flow: Flow,
        broker: Broker,
        models: Models,
        metrics: Metrics,
        folders: Folders,
        status: Callable[[], dict[str, Any]],
        guard: TokenGuard,
    ) -> None:
        self._pages = ConsolePages(live.current)
        self._gallery = gallery = flow.gallery
        self._health = HealthReport(live, broker, models, metrics, status)
        self._streams = Streams(guard.may_read)
        self._frames = frames = Frames(flow.decoders, live)
        self._api: ConsoleApi | None = None
        if gallery is not None:
            self._api = ConsoleApi(live, gallery, metrics.cameras, frames, self._streams, self._health, models, folders)

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        if self._api is None:
            return [*self._pages.routes(), *(web.get(f"/api/{path}", say_off) for path in PATHS)]
        return [*self._pages.routes(), *self._api.routes()]

    async def run(self) -> None:
        """Let go what nobody looks at or what is long ago, and remember how it went, for ever."""
        step = int(time.monotonic()) // STEP_S
        while True:
            await asyncio.sleep(LOOK_S)
            if self._gallery is not None:
                self._gallery.tidy(time.monotonic())
            if (now := int(time.monotonic()) // STEP_S) != step:
                step = now
                self._health.look(step * STEP_S)

    def close(self) -> None:
        """Say goodbye to all who look, for the gateway stops."""
        self._streams.close()
        self._frames.close()
