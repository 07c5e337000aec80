"""`/api/log` and `/api/log-level`: the last lines of the log, and how much of it there is."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web

from gateway.admin.answers import error_response, json_response, token_response
from gateway.admin.command_bodies import MAX_SHOWN, OFF_FIX, STATUS, read_object, refuse_unknown_keys, small_body
from gateway.admin.guard import TokenGuard, TokenRefused
from gateway.errors import CommandRefused
from gateway.log_level import MAX_FOR_S
from gateway.log_memory import EVENTS, LEVELS
from gateway.logs import LEVEL, MEMORY
from gateway.topics import safe_text

LIMIT = 200
MIN_FOR_S = 1.0
MAX_CONTAINS = 200
LEVEL_FIX = 'Send {"level": "debug", "for_s": 600}, or {"level": null} for the configured one; `for_s` may be left out'
_TIMESTAMP = re.compile(r'"timestamp": "([^"\\]*)"')

Others = Callable[[web.Request], Awaitable[list[bytes]]]
"""What other processes that belong to this one answer to the same request."""


class LogApi:
    """The log of this process; with `others` those of further ones are put in between by time."""

    def __init__(self, guard: TokenGuard, others: Others | None = None) -> None:
        self._guard = guard
        self._others = others

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        return [web.get("/api/log", self._log), web.post("/api/log-level", self._choose)]

    async def _log(self, request: web.Request) -> web.Response:
        try:
            level, contains, limit = _asked(request)
        except CommandRefused as error:
            return error_response(400, error.code, error.message, error.fix)
        lines = MEMORY.read(level, contains, limit)
        if self._others is not None:
            lines = merged([lines, *map(events_in, await self._others(request))], limit)
        state = msgspec.json.encode(_state()).removesuffix(b"}")
        events = ",\n".join(lines).encode()  # one a line, which `events_in` goes by
        return web.Response(body=state + b',"events":[\n' + events + b"\n]}\n", content_type="application/json")

    async def _choose(self, request: web.Request) -> web.Response:
        try:
            self._guard.admit_request(request, off_fix=OFF_FIX)
            level, for_s = _chosen(read_object(await small_body(request, LEVEL_FIX), LEVEL_FIX))
        except TokenRefused as error:
            return token_response(STATUS[error.code] if self._guard.token_file else 403, error)
        except CommandRefused as error:
            return error_response(STATUS[error.code], error.code, error.message, error.fix)
        LEVEL.choose(level, for_s, f"HTTP from {request.remote or 'somewhere'}")
        return json_response(_state())


def _state() -> dict[str, Any]:
    return {"level": LEVEL.current, "configured": LEVEL.configured, "until": LEVEL.until}


def _asked(request: web.Request) -> tuple[str, str, int]:
    """Level, text and limit; raises CommandRefused."""
    query = request.query
    if wrong := [name for name in query if name not in ("level", "contains", "limit") or len(query.getall(name)) > 1]:
        text = f"parameter '{safe_text(wrong[0][:MAX_SHOWN])}' is unknown or given twice"
        raise CommandRefused("COMMAND_INVALID", text, fix="Known: level, contains, limit")
    level, contains, limit = query.get("level", LEVELS[0]), query.get("contains", ""), query.get("limit", str(LIMIT))
    if level not in LEVELS:
        raise CommandRefused("COMMAND_INVALID", f"'level' is one of {', '.join(LEVELS)}", fix="Name one of these")
    if len(contains) > MAX_CONTAINS:
        text = f"'contains' has {len(contains)} characters, at most {MAX_CONTAINS} are looked for"
        raise CommandRefused("COMMAND_INVALID", text, fix="Look for less")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and 1 <= int(limit) <= EVENTS):
        raise CommandRefused("COMMAND_INVALID", f"'limit' is a whole number from 1 to {EVENTS}", fix="Correct it")
    return level, contains, int(limit)


def _chosen(body: dict[str, Any]) -> tuple[str | None, float | None]:
    """The level that is to hold and for how many seconds; raises CommandRefused."""
    refuse_unknown_keys(body, ("level", "for_s"), LEVEL_FIX)
    level, for_s = body.get("level", ""), body.get("for_s")
    if level is not None and level not in LEVELS:
        raise CommandRefused("COMMAND_INVALID", f"'level' is one of {', '.join(LEVELS)}, or null", fix=LEVEL_FIX)
    if for_s is not None and (type(for_s) not in (int, float) or not MIN_FOR_S <= for_s <= MAX_FOR_S):
        text = f"'for_s' is a number from {MIN_FOR_S:g} to {MAX_FOR_S:.0f}"
        raise CommandRefused("COMMAND_INVALID", text, fix=LEVEL_FIX)
    return level, for_s


def events_in(body: bytes) -> list[str]:
    """The lines with events in what `/api/log` of another process has answered."""
    lines = body.decode(errors="replace").split("\n")[1:]
    return [line.removesuffix(",") for line in lines if line.startswith("{")]


def merged(logs: Iterable[list[str]], limit: int) -> list[str]:
    """The newest `limit` lines of several processes, by time."""
    return sorted((line for lines in logs for line in lines), key=_timestamp)[-limit:]


def _timestamp(line: str) -> str:
    found = _TIMESTAMP.search(line)
    return found[1] if found else ""
