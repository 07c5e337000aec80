"""What a command brings along, before anybody looks what it means: small JSON objects, read within limits."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import CommandRefused
from gateway.schema import unknown_key
from gateway.topics import safe_text

MAX_COMMAND_BYTES = 65_536
MAX_SHOWN = 60
"""Characters of what was given that an answer repeats."""
INVALID_FIX = 'Send {"action": "promote", "model": "<name>", "version": 3}; `version` may be left out'
OFF_FIX = "Set API_TOKEN_FILE at the gateway to a file with a token of your choice"
BODY_LIMIT_S = 10.0
"""For the whole body, which is a few bytes."""
STATUS = {
    "COMMAND_INVALID": 400,
    "UNAUTHORIZED": 401,
    "MODEL_UNKNOWN": 404,
    "VERSION_UNKNOWN": 404,
    "NOT_THE_ROLLER": 409,
    "NOTHING_TO_DO": 409,
    "REQUEST_TIMEOUT": 408,
    "PAYLOAD_TOO_LARGE": 413,
    "TOO_MANY_FAILURES": 429,
    "COMMAND_FAILED": 500,
}
"""HTTP's word for each code of a refusal; without a configured token UNAUTHORIZED is 403."""


async def small_body(request: web.Request, fix: str = INVALID_FIX) -> bytes:
    """The whole body of a command, not much more than the limit held; raises CommandRefused."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            while chunk := await request.content.read(MAX_COMMAND_BYTES):
                body += chunk
                if len(body) > MAX_COMMAND_BYTES:
                    text = f"the body has more than {MAX_COMMAND_BYTES} bytes"
                    raise CommandRefused("PAYLOAD_TOO_LARGE", text, fix=fix)
    except TimeoutError as error:
        text = f"the body did not come within {BODY_LIMIT_S:.0f} s"
        raise CommandRefused("REQUEST_TIMEOUT", text, fix="Send it faster, or none") from error
    except (HttpProcessingError, web.RequestPayloadError) as error:
        text = "the body is damaged, or not coded as its headers say"
        raise CommandRefused("COMMAND_INVALID", text, fix=fix) from error
    return bytes(body)


def read_object(payload: bytes, fix: str = INVALID_FIX) -> dict[str, Any]:
    """The JSON object in a payload; raises CommandRefused."""
    if len(payload) > MAX_COMMAND_BYTES:
        text = f"the command has {len(payload)} bytes, the limit is {MAX_COMMAND_BYTES}"
        raise CommandRefused("COMMAND_INVALID", text, fix=fix)
    try:
        body = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CommandRefused("COMMAND_INVALID", "the command is no JSON", fix=fix) from error
    if not isinstance(body, dict):
        raise CommandRefused("COMMAND_INVALID", "the command is no JSON object", fix=fix)
    return body


def refuse_unknown_keys(body: dict[str, Any], known: tuple[str, ...], fix: str = INVALID_FIX) -> None:
    """Raise CommandRefused for a key with a typo: left out, it would change what the command means."""
    for key in body:
        if key not in known:
            raise CommandRefused("COMMAND_INVALID", safe_text(unknown_key(key[:MAX_SHOWN], known)), fix=fix)
