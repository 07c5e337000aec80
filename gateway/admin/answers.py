"""How HTTP answers look: JSON, and errors with what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A body as JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json", headers=headers)


def error_response(
    status: int, code: str, message: str, fix: str, headers: dict[str, str] | None = None
) -> web.Response:
    """An error in the form of the messages on the error topic."""
    return json_response({"error": {"code": code, "message": message, "fix": fix}}, status, headers)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What aiohttp refuses by itself (no such page, method not allowed) in the form of all other errors."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        fix = "GET /openapi.json lists what there is"
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        code = error.reason.upper().replace(" ", "_")
        return error_response(
            error.status, code, f"{request.method} {request.path[:200]}: {error.reason}", fix, allowed
        )
    except Exception as error:
        log.error("A defect of the gateway", path=request.path[:200], exc_info=error)
        fix = "Report it with the log lines of this moment"
        return error_response(500, "INTERNAL_ERROR", f"unexpected {type(error).__name__}", fix)
