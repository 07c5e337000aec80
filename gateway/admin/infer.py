"""`POST /v1/infer`: one picture, or one window of numbers, takes the way of a snapshot; its result is the answer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.admin.answers import error_response
from gateway.admin.token import bearer, token_matches
from gateway.errors import PayloadInvalid, PayloadTooLarge, SnapshotError
from gateway.flow.replies import Reply
from gateway.live import Live
from gateway.messages import JSON_TYPE, Message, MessageProperties

Ask = Callable[[Message], Awaitable[Reply]]

TOPIC = "http/v1/infer"
MAX_AT_ONCE = 8
"""Requests whose bodies are held at the same time; one more is asked to come back."""
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

    def __init__(self, live: Live, ask: Ask) -> None:
        self._live = live
        self._ask = ask
        self._at_once = 0

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        return [web.post("/v1/infer", self._infer)]

    async def _infer(self, request: web.Request) -> web.Response:
        if not allowed(request, self._live.current.api_token_file):
            header = {"WWW-Authenticate": "Bearer"}
            fix = "Send `Authorization: Bearer` with the token of API_TOKEN_FILE"
            return error_response(401, "UNAUTHORIZED", "this needs a token", fix, header)
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
        try:
            async with asyncio.timeout(BODY_LIMIT_S):
                body = await read_body(request, self._live.current.max_payload_bytes)
        except TimeoutError:
            text = f"the body did not come within {BODY_LIMIT_S:.0f} s"
            return error_response(408, "REQUEST_TIMEOUT", text, "Send it faster", {"Connection": "close"})
        except SnapshotError as error:
            return error_response(STATUS[error.code], error.code, error.message, error.fix)
        except (HttpProcessingError, web.RequestPayloadError):
            text, fix = "the body is damaged, or not coded as its headers say", "Send a picture, JSON or a form"
            return error_response(400, "PAYLOAD_INVALID", text, fix, {"Connection": "close"})
        reply = await self._ask(_message(request, body))
        status = 200 if reply.error is None else STATUS.get(reply.error.code, 500)
        headers = {"Retry-After": "1"} if status == 503 else None
        return web.Response(body=reply.payload, status=status, content_type=JSON_TYPE, headers=headers)


def allowed(request: web.Request, token_file: Path | None) -> bool:
    """Whether the request carries the token, where one is wanted."""
    return token_file is None or token_matches(bearer(request.headers.get("Authorization", "")), token_file)


async def read_body(request: web.Request, limit: int) -> bytes:
    """The picture or JSON of a request, out of a form if need be; raises PayloadTooLarge and PayloadInvalid."""
    if request.content_length is not None and request.content_length > limit + 4096:
        raise PayloadTooLarge(f"the body has {request.content_length} bytes, the limit is {limit}")
    if not request.content_type.startswith("multipart/"):
        return await _read(request.content.read, limit)
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and (part.filename or part.name in ("image", "file")):
                return await _read(part.read_chunk, limit)
    except (ValueError, AssertionError, HttpProcessingError) as error:
        raise PayloadInvalid("the form cannot be read", fix="Send multipart/form-data with a part `image`") from error
    raise PayloadInvalid("the form has no picture", fix="Send it as the part `image`: curl -F image=@picture.jpg")


async def _read(read: Callable[[int], Awaitable[bytes]], limit: int) -> bytes:
    body = bytearray()
    while chunk := await read(65_536):
        body += chunk
        if len(body) > limit:
            raise PayloadTooLarge(f"the body has more than {limit} bytes")
    return bytes(body)


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
