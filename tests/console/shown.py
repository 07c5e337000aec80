"""A site in memory for a browser to look at: two variants that disagree, a camera and a class with hostile names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, Request

from gateway.testing import MemoryTriton
from tests.flow.builders import LABELS, jpeg, signature, snapshot_json
from tests.harness import HELMET, NO_HELMET, Site, sees, site, write_model

HOSTILE = '<img src=x onerror="window.hacked=true">'
CAMERAS = ("camera-01", "camera-02", HOSTILE)
EVERY_S = 0.1
READ_TOKEN = "reader-of-the-console"
ACTION_TOKEN = "commander-of-models"
FORKLIFT = (20.0, 20.0, 24.0, 16.0, 2, 0.7)
"""Of the class with the hostile name."""


@dataclass
class Visit:
    """A page that somebody has opened, and all that it asked for and complained about."""

    page: Page
    base: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Take down requests, and what lands in the browser's console."""

        def asked(request: Request) -> None:
            if not request.url.startswith(("data:", "blob:")):
                self.requests.append(request.url)

        self.page.on("request", asked)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))

    async def go(self, view: str) -> None:
        """Open a view by its address."""
        await self.page.goto(f"{self.base}/#{view}")

    def asked_for(self, path: str) -> int:
        """How many requests there were for a path."""
        return sum(url.removeprefix(self.base).startswith(path) for url in self.requests)


@dataclass
class Shown:
    """The site and its visitors."""

    place: Site
    sending: asyncio.Task[None] | None = None

    @property
    def base(self) -> str:
        """The address of the console."""
        return f"http://127.0.0.1:{self.place.gateway.http_port}"

    def send_all_the_time(self) -> None:
        """Let each camera send a frame ten times a second."""
        self.sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        pictures = [jpeg(320, 180, seed) for seed in range(3)]
        number = 0
        while True:
            for camera in CAMERAS:
                number += 1
                self.place.snapshot(snapshot_json(pictures[number % 3], device_id=camera))
            await asyncio.sleep(EVERY_S)

    @contextlib.asynccontextmanager
    async def visit(self, browser: Browser, **context: Any) -> AsyncIterator[Visit]:
        """A browser tab with storage of its own."""
        opened = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
        opened.set_default_timeout(5000)
        try:
            visit = Visit(await opened.new_page(), self.base)
            visit.watch()
            yield visit
        finally:
            await opened.close()


@contextlib.asynccontextmanager
async def shown_site(
    folder: Path, *, read_token: bool = False, triton: MemoryTriton | None = None, **settings: Any
) -> AsyncIterator[Shown]:
    """Dual throughout; API_TOKEN_FILE is set, API_READ_TOKEN_FILE if asked for. `triton` may know other models."""
    models, command, read = folder / "models", folder / "command", folder / "read"
    labels = write_model(models, alerts={"hold_off_s": 600}) / "labels.txt"
    labels.write_text("\n".join([*LABELS[:2], HOSTILE]))
    command.write_text(ACTION_TOKEN)
    read.write_text(READ_TOKEN)
    triton = triton or MemoryTriton()
    triton.add_model(signature("detector-onnx"), sees(NO_HELMET, FORKLIFT))
    triton.add_model(signature("detector-torch"), sees(HELMET, FORKLIFT))
    tokens: dict[str, Any] = {"api_token_file": command, "api_read_token_file": read if read_token else None}
    async with site(models, triton=triton, enable_dual_backend=True, **tokens, **settings) as place:
        shown = Shown(place)
        try:
            yield shown
        finally:
            if shown.sending is not None:
                shown.sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await shown.sending
