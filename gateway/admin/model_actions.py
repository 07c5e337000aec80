"""`POST /api/models/{model}/{action}`: promote, rollback, load and unload, for those who know the token."""

from __future__ import annotations

from aiohttp import web

from gateway.admin.answers import error_response, json_response, token_response
from gateway.admin.command_bodies import OFF_FIX, STATUS, read_object, refuse_unknown_keys, small_body
from gateway.admin.command_desk import CommandDesk, version_of
from gateway.admin.guard import TokenGuard, TokenRefused
from gateway.errors import CommandRefused
from gateway.rollout.commands import Action, Command


class ModelActions:
    """The only part of the HTTP side that changes something; off while no token is configured."""

    def __init__(self, guard: TokenGuard, desk: CommandDesk) -> None:
        self._guard = guard
        self._desk = desk

    def routes(self) -> list[web.RouteDef]:
        """What is served here."""
        actions = "|".join(Action)
        return [web.post(f"/api/models/{{model}}/{{action:{actions}}}", self._act)]

    async def _act(self, request: web.Request) -> web.Response:
        action, by = Action(request.match_info["action"]), f"HTTP from {request.remote or 'somewhere'}"
        try:
            self._guard.admit_request(request, off_fix=OFF_FIX)
            version = await _version(request)
        except CommandRefused as error:
            self._desk.refused(error, by, action)
            return self._refusal(error)
        try:
            message = await self._desk.carry_out(Command(action, request.match_info["model"], version, by))
        except CommandRefused as error:
            return self._refusal(error)
        return json_response({"message": message}, 202)

    def _refusal(self, error: CommandRefused) -> web.Response:
        status = STATUS.get(error.code, 500)
        if isinstance(error, TokenRefused):
            off = status == 401 and self._guard.token_file is None
            return token_response(403 if off else status, error)
        return error_response(status, error.code, error.message, error.fix)


async def _version(request: web.Request) -> int | None:
    """The version in the body or the query; raises CommandRefused."""
    body = await small_body(request)
    given = read_object(body) if body else {}
    refuse_unknown_keys(given, ("version",))
    asked = request.query.getall("version", [])
    if unknown := [name for name in request.query if name != "version"]:
        raise CommandRefused("COMMAND_INVALID", f"unknown parameter '{unknown[0][:60]}'", fix="Known: version")
    if len(asked) + ("version" in given) > 1:
        raise CommandRefused("COMMAND_INVALID", "the version is given twice", fix="Give it once")
    if not asked:
        return version_of(given.get("version"))
    text = asked[0]
    return version_of(int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else text)
