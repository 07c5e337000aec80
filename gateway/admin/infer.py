"""`POST /v1/infer`: one picture, or one window of numbers, takes the way of a snapshot; its result is the answer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.admin.answers import error_response, token_response
from gateway.admin.bodies import Room, read_body
from gateway.admin.guard import TokenGuard, TokenRefused
from gateway.errors import SnapshotError
from gateway.flow.replies import Reply
from gateway.live import Live
from gateway.messages import JSON_TYPE, Message, MessageProperties

Ask = Callable[[Message], Awaitable[Reply]]

TOPIC = "http/v1/infer"
MAX_AT_ONCE = 8
"""Requests whose bodies are held at the same time; one more is asked to come back."""
LARGEST_HELD = 2
"""As many of the largest size may be held at the same time; more of smaller ones."""
BODY_LIMIT_S = 10.0
"""For the whole body, so that one who sends it byte by byte holds no place for ever."""

STATUS = {
    "PAYLOAD_TOO_LARGE": 413,
    "PAYLOAD_INVALID": 400,
    "IMAGE_UNDECODABLE": 422,
    "IMAGE_TOO_LARGE": 413,
    "MODEL_UNKNOWN": 404,
    "VARIANT_UNKNOWN": 404,
    "QUEUE_FULL": 503,
    "RATE_LIMITED": 429,
    "DEADLINE_EXCEEDED": 504,
    "MODEL_UNAVAILABLE": 503,
    "BACKEND_UNAVAILABLE": 503,
    "BACKEND_REJECTED": 502,
    "BACKEND_INVALID_RESPONSE": 502,
}
"""HTTP's word for each code; any other is 500."""

PARAMETERS = {"model": "model_name", "variant": "backend_preference", "device": "device_id"}
"""Parameters of the query, and what a message calls them."""


class InferApi:
    """Answers whoever asks directly; nothing of it is published over MQTT, and it raises no alert."""

    def __init__(self, live: Live, ask: Ask, guard: TokenGuard) -> None:
        self._live = live
        self._ask = ask
        self._guard = guard
        self._at_once = 0
        self._room = Room()

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        return [web.post("/v1/infer", self._infer)]

    async def _infer(self, request: web.Request) -> web.Response:
        if self._guard.token_file is not None:
            try:
                self._guard.admit_request(request)
            except TokenRefused as error:
                return token_response(429 if error.retry_after_s else 401, error)
        if unknown := [name for name in request.query if name not in PARAMETERS]:
            known = ", ".join(PARAMETERS)
            return error_response(400, "PAYLOAD_INVALID", f"unknown parameter '{unknown[0][:60]}'", f"Known: {known}")
        if len(request.query) != len(set(request.query)):
            return error_response(400, "PAYLOAD_INVALID", "a parameter is given twice", "Give each once")
        if self._at_once >= MAX_AT_ONCE:
            fix = "Try again, or send pictures over MQTT, where they may wait"
            text = f"{MAX_AT_ONCE} requests are under way"
            return error_response(503, "QUEUE_FULL", text, fix, {"Retry-After": "1"})
        self._at_once += 1
        try:
            return await self._answer(request)
        finally:
            self._at_once -= 1

    async def _answer(self, request: web.Request) -> web.Response:
        limit = self._live.current.max_payload_bytes
        with self._room.share(LARGEST_HELD * limit) as take:
            return await self._read_and_ask(request, limit, take)

    async def _read_and_ask(self, request: web.Request, limit: int, take: Callable[[int], None]) -> web.Response:
        try:
            async with asyncio.timeout(BODY_LIMIT_S):
                body = await read_body(request, limit, take)
        except TimeoutError:
            text = f"the body did not come within {BODY_LIMIT_S:.0f} s"
            return error_response(408, "REQUEST_TIMEOUT", text, "Send it faster", {"Connection": "close"})
        except SnapshotError as error:
            status = STATUS[error.code]
            return error_response(status, error.code, error.message, error.fix, _come_back(status))
        except (HttpProcessingError, web.RequestPayloadError):
            text, fix = "the body is damaged, or not coded as its headers say", "Send a picture, JSON or a form"
            return error_response(400, "PAYLOAD_INVALID", text, fix, {"Connection": "close"})
        reply = await self._ask(_message(request, body))
        status = 200 if reply.error is None else STATUS.get(reply.error.code, 500)
        return web.Response(body=reply.payload, status=status, content_type=JSON_TYPE, headers=_come_back(status))


def _come_back(status: int) -> dict[str, str] | None:
    return {"Retry-After": "1"} if status in (429, 503) else None


def _message(request: web.Request, body: bytes) -> Message:
    """The request as a message; a number of its own keeps two with the same picture apart."""
    asked = [(PARAMETERS[name], value) for name, value in request.query.items()]
    trace = [(name, request.headers[name]) for name in ("traceparent", "tracestate") if name in request.headers]
    properties = MessageProperties(
        content_type=request.content_type,
        correlation_data=uuid.uuid4().bytes,
        user_properties=(("device_id", "http"), *asked, *trace),
    )
    return Message(topic=TOPIC, payload=body, received_at=time.monotonic(), properties=properties)
