"""What the console shows of cameras, pictures and variants; see docs/http.md."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web

from gateway.admin.answers import error_response, json_response
from gateway.admin.compare_report import compare_report
from gateway.admin.console_entries import cameras_of, entry_of, whole_camera_of
from gateway.admin.events import Events, Streams
from gateway.admin.frames import Frames
from gateway.admin.health_report import HealthReport
from gateway.admin.shared_answers import SharedAnswers
from gateway.camera_counts import CameraCounts
from gateway.errors import ConfigError, SnapshotError
from gateway.flow.gallery import Gallery
from gateway.flow.glimpse import Glimpse
from gateway.live import Live
from gateway.models.catalog import Models
from gateway.rollout.golden import Example, read_golden, read_picture

WIDTHS = 64, 1920
WIDTH = 480
STATUS = {"QUEUE_FULL": 503, "IMAGE_UNDECODABLE": 422, "IMAGE_TOO_LARGE": 413}


class Folders(Protocol):
    """Who knows where models lie."""

    def folder(self, model: str) -> Path | None:
        """Where the model.yaml of a model lies; None where it is not served."""
        ...


class ConsoleApi:
    """Reads the gallery; nothing here changes anything but whether pictures are kept."""

    def __init__(
        self,
        live: Live,
        gallery: Gallery,
        counts: CameraCounts,
        frames: Frames,
        streams: Streams,
        health: HealthReport,
        models: Models,
        folders: Folders,
    ) -> None:
        self._live = live
        self._gallery = gallery
        self._counts = counts
        self._frames = frames
        self._events = Events(gallery, streams)
        self._health = health
        self._models = models
        self._folders = folders
        self._shared = SharedAnswers()

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        return [
            web.get("/api/events", self._events.serve, allow_head=False),
            web.get("/api/cameras", self._cameras),
            web.get("/api/camera", self._camera),
            web.get("/api/frame", self._frame),
            web.get("/api/compare", self._compare),
            web.get("/api/health", self._health_page),
            web.get("/api/golden", self._golden),
            web.get("/api/golden/picture", self._golden_picture),
        ]

    async def _cameras(self, _request: web.Request) -> web.Response:
        async def make() -> web.Response:
            return json_response({"cameras": cameras_of(self._gallery, self._counts, time.monotonic())})

        return await self._shared.of("cameras", make)

    async def _camera(self, request: web.Request) -> web.Response:
        name = request.query.get("id", "")
        camera = self._gallery.cameras.get(name)
        if camera is None:
            return _no_camera(name)

        async def make() -> web.Response:
            return json_response(whole_camera_of(camera, self._gallery, self._counts, time.monotonic()))

        return await self._shared.of(f"camera {name}", make)

    async def _compare(self, _request: web.Request) -> web.Response:
        async def make() -> web.Response:
            return json_response(compare_report(self._gallery))

        return await self._shared.of("compare", make)

    async def _health_page(self, _request: web.Request) -> web.Response:
        return json_response(self._health.report())

    # --- pictures -------------------------------------------------------------------------------------

    async def _frame(self, request: web.Request) -> web.Response:
        width = _width(request)
        if width is None:
            return _wrong_width()
        name, result_id = request.query.get("id"), request.query.get("result")
        if (name is None) == (result_id is None):
            return error_response(400, "PAYLOAD_INVALID", "give either `id` or `result`", "GET /api/frame?id=CAMERA")
        pictures = self._gallery.pictures
        if name is not None and name not in self._gallery.cameras:
            return _no_camera(name)
        pictures.look(name)
        kept = pictures.of_camera(name) if name is not None else pictures.find(result_id or "")
        if kept is None:
            return self._no_picture()
        entry, image = kept
        drawn = await self._draw(request, lambda: image, width)
        if isinstance(drawn, web.Response):
            return drawn
        pair = self._gallery.pair_of(entry)
        body: dict[str, Any] = {
            "entry": {**entry_of(entry, self._gallery), "picture": True},
            "comparison": None if pair is None else msgspec.Raw(pair.payload),
            "width": drawn.width,
            "height": drawn.height,
            "jpeg": drawn.text,
        }
        return json_response(body)

    async def _draw(self, request: web.Request, read: Callable[[], bytes], width: int) -> Glimpse | web.Response:
        try:
            return await self._frames.draw(read, width, lambda: request.transport is None)
        except SnapshotError as error:
            again = {"Retry-After": "1"} if error.retryable else None
            return error_response(STATUS.get(error.code, 500), error.code, error.message, error.fix, again)
        except ConfigError as error:
            return _golden_error(error)

    def _no_picture(self) -> web.Response:
        if self._live.current.console != "pictures":
            return _no_pictures_at_all()
        text, fix = "no picture of it is kept", "Pictures are kept while somebody looks: ask again after the next one"
        return error_response(404, "PICTURE_UNKNOWN", text, fix)

    # --- golden examples ------------------------------------------------------------------------------

    async def _golden(self, request: web.Request) -> web.Response:
        name = request.query.get("model", "")
        found = await self._examples(name)
        if isinstance(found, web.Response):
            return found
        model = self._models.current.models.get(name)
        rollout = None if model is None else model.spec.rollout
        tolerance = None if rollout is None else {"confidence": rollout.golden_confidence, "iou": rollout.golden_iou}
        listed = [
            {
                "name": each.name,
                "picture": each.expected.image is not None,
                "expected": each.expected.predictions or (),
                "tolerance": tolerance,
            }
            for each in found
        ]
        return json_response({"golden": listed})

    async def _golden_picture(self, request: web.Request) -> web.Response:
        width = _width(request)
        if width is None:
            return _wrong_width()
        if self._live.current.console != "pictures":
            return _no_pictures_at_all()
        found = await self._examples(request.query.get("model", ""))
        if isinstance(found, web.Response):
            return found
        name, limit = request.query.get("name", ""), self._live.current.max_payload_bytes
        example = next((each for each in found if each.name == name and each.expected.image is not None), None)
        if example is None:
            fix = "GET /api/golden?model= lists them"
            return error_response(404, "PICTURE_UNKNOWN", f"no golden picture '{name[:100]}'", fix)
        drawn = await self._draw(request, lambda: read_picture(example, limit), width)
        if isinstance(drawn, web.Response):
            return drawn
        size = {"X-Picture-Size": f"{drawn.width}x{drawn.height}"}  # of the file: the boxes that are expected are in it
        return web.Response(body=drawn.jpeg, content_type="image/jpeg", headers=size)

    async def _examples(self, model: str) -> tuple[Example, ...] | web.Response:
        folder = self._folders.folder(model)
        if folder is None:
            return error_response(404, "MODEL_UNKNOWN", f"no model '{model[:100]}'", "GET /api/models lists them")
        try:
            return await asyncio.to_thread(read_golden, folder)
        except ConfigError as error:
            return _golden_error(error)


def _width(request: web.Request) -> int | None:
    """The width that is asked for; None where it is none that there may be."""
    text = request.query.get("width", str(WIDTH))
    if not text.isascii() or not text.isdecimal() or len(text) > 4:
        return None
    return width if WIDTHS[0] <= (width := int(text)) <= WIDTHS[1] else None


def _wrong_width() -> web.Response:
    text = f"`width` is a number of pixels, {WIDTHS[0]} to {WIDTHS[1]}"
    return error_response(400, "PAYLOAD_INVALID", text, f"Leave it out for {WIDTH}")


def _no_camera(name: str) -> web.Response:
    fix = "GET /api/cameras lists them"
    return error_response(404, "CAMERA_UNKNOWN", f"nothing has come from camera '{name[:100]}' of late", fix)


def _no_pictures_at_all() -> web.Response:
    return error_response(404, "PICTURE_UNKNOWN", "this gateway shows no pictures", "Set CONSOLE=pictures")


def _golden_error(error: ConfigError) -> web.Response:
    return error_response(422, "GOLDEN_INVALID", error.message, error.fix)
