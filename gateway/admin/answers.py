"""How HTTP answers look: JSON, errors with what is wrong and how to mend it, and headers that bind browsers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web

from gateway.admin.guard import TokenRefused
from gateway.topics import safe_text

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "edge-gateway",  # in place of aiohttp's, which tells versions
}
"""Of every answer that does not say otherwise itself. There are no CORS headers: no page of another site may read."""
CLIENT_HEADER = "X-Edge-Gateway-Client"
"""The address of the client, from the front to a worker; the front takes it from nobody else."""
REFUSED = {401: "unauthorized", 403: "unauthorized", 429: "limited", 413: "too_large", 431: "too_large", 408: "slow"}
"""Reason in `http_refusals_total` for each status that is one."""


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A body as JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json", headers=headers)


def error_response(
    status: int, code: str, message: str, fix: str, headers: dict[str, str] | None = None
) -> web.Response:
    """An error in the form of the messages on the error topic."""
    error = {"code": code, "message": safe_text(message), "fix": fix}
    return json_response({"error": error}, status, headers)


def token_response(status: int, error: TokenRefused) -> web.Response:
    """The answer to who did not give the token; the header says how to, or when to come back."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": str(error.retry_after_s)}}
    return error_response(status, error.code, error.message, error.fix, headers.get(status))


def http_error(request: web.BaseRequest, error: web.HTTPException) -> web.StreamResponse:
    """What aiohttp refuses by itself (no such page, method not allowed) in the form of all other errors."""
    if error.status < 400:
        return error
    allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    code = error.reason.upper().replace(" ", "_")
    text = f"{request.method} {request.path[:200]}: {error.reason}"
    return error_response(error.status, code, text, "GET /openapi.json lists what there is", allowed)


@web.middleware
async def as_the_front_says(request: web.Request, handler: Handler) -> web.StreamResponse:
    """In a worker: the client is the one whom the front names, so that failures are counted for him."""
    return await handler(request.clone(remote=request.headers.get(CLIENT_HEADER, "")))


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what no page takes, and answer a defect without telling what is inside."""
    if comes_from_another_site(request):
        fix = "Send it from a page of this gateway, or without a browser"
        return error_response(403, "CROSS_SITE", "a page of another site sends this", fix)
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        # A few bytes can unpack to gigabytes; nobody needs it, for pictures are packed already.
        text, fix = "the body is compressed", "Send it as it is, without Content-Encoding"
        return error_response(415, "UNSUPPORTED_MEDIA_TYPE", text, fix)
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as error:
        if isinstance(error, ConnectionError) and request.transport is None:
            return error_response(400, "BAD_REQUEST", "the client has left", "Stay for the answer")  # nobody reads it
        log.error("A defect of the gateway", path=request.path[:200], exc_info=error)
        fix = "Report it with the log lines of this moment"
        return error_response(500, "INTERNAL_ERROR", f"unexpected {type(error).__name__}", fix)


def comes_from_another_site(request: web.Request) -> bool:
    """Whether a browser sends it for a page that is not the gateway's own, and it is no mere look.

    Old browsers, and all of them over plain HTTP to another machine, say it by `Origin` alone.
    """
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return False
    if (site := request.headers.get("Sec-Fetch-Site")) is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2].lower() != request.headers.get("Host", "").lower()
