"""The console's page and its files: a fixed set, read once from the package; and what the page has to know first."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from aiohttp import web

from gateway import __version__
from gateway.admin.answers import SECURITY_HEADERS, error_response, json_response
from gateway.config import Settings

PAGE = "index.html"
FOLDER = "console"
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
"""What is served of the folder, by the ends of names."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads nothing from elsewhere, and runs nothing that stands in it: texts of cameras are texts."""
HEADERS = {**SECURITY_HEADERS, "Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
OFF_FIX = "Set CONSOLE=results, or CONSOLE=pictures"


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is served."""

    content: bytes
    kind: str
    tag: str
    """Its ETag."""


def console_files() -> dict[str, PageFile]:
    """All files of the console by name; no other name leads anywhere."""
    folder = resources.files("gateway.admin") / FOLDER
    found = {}
    for each in folder.iterdir() if folder.is_dir() else ():
        kind = KINDS.get("." + each.name.rpartition(".")[2])
        if kind is not None and each.is_file():
            content = each.read_bytes()
            found[each.name] = PageFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


class ConsolePages:
    """`/`, `/console/{file}` and `/api/console`; with CONSOLE=off they say how to have one."""

    def __init__(self, settings: Settings) -> None:
        self._files = {} if settings.console == "off" else console_files()
        self._about: dict[str, Any] = {
            "console": settings.console,
            "token_required": settings.api_read_token_file is not None,
            "actions": settings.api_token_file is not None,
            "version": __version__,
            **settings.place,
        }

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        pages = {"/": self._page, "/console/{file}": self._file, "/api/console": self._console}
        off = self._about["console"] == "off"
        return [web.get(path, say_off if off else handler) for path, handler in pages.items()]

    async def _page(self, request: web.Request) -> web.Response:
        return self._answer(request, PAGE)

    async def _file(self, request: web.Request) -> web.Response:
        return self._answer(request, request.match_info["file"])

    async def _console(self, _request: web.Request) -> web.Response:
        return json_response(self._about)

    def _answer(self, request: web.Request, name: str) -> web.Response:
        file = self._files.get(name)
        if file is None:
            return error_response(404, "NOT_FOUND", f"the console has no file '{name[:100]}'", "GET / is its page")
        headers = {**HEADERS, "ETag": file.tag}
        known = {each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")}
        if file.tag in known:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.content, headers={**headers, "Content-Type": file.kind})


async def say_off(_request: web.Request) -> web.StreamResponse:
    """In place of every page of a console that is off."""
    return error_response(404, "CONSOLE_OFF", "this gateway has no console", OFF_FIX)
