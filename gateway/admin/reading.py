"""Who may look: with API_READ_TOKEN_FILE what `/api` says is for those who give a token."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.admin.answers import Handler, token_response
from gateway.admin.guard import TokenGuard, TokenRefused

OPEN = "/api/console"
"""Tells whether a token is wanted, so it cannot want one itself."""


def guard_reading(guard: TokenGuard) -> Middleware:
    """A middleware that asks for the token before anything below `/api/` is read."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method in ("GET", "HEAD") and _is_guarded(request):
            try:
                guard.admit_reader(request)
            except TokenRefused as error:
                return token_response(429 if error.retry_after_s else 401, error)
        return await handler(request)

    return check


def _is_guarded(request: web.Request) -> bool:
    """By the page that the router found, however its path was written; by the path where the front passes all on."""
    resource = request.match_info.route.resource
    page = "" if resource is None else resource.canonical
    return any(path.startswith("/api/") and path != OPEN for path in (page, request.path))
