"""The API of a running gateway as the command line sees it; every failure is a UserError with its fix."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from gateway.addresses import shown
from gateway.errors import CommandRefused, ConfigError, UserError

COMMAND_LIMIT_S = 900.0
"""For the answer to a command, which may have to wait for a model to be loaded."""
LOOK_LIMIT_S = 20.0
MAX_ANSWER_BYTES = 4 * 2**20

T = TypeVar("T")


class GatewayUnreachable(UserError):
    """Nothing answers at the address, or no longer."""


class DoneStep(msgspec.Struct, frozen=True):
    """A step of a rollout that is done."""

    step: str
    seconds: float
    note: str


class Rollout(msgspec.Struct, frozen=True):
    """The rollout under way or the last one, as far as it matters to who waits for it."""

    version: int
    step: str
    ending: str
    percent: int
    progress: str
    reason: str
    fix: str
    started_at: float
    steps: list[DoneStep]


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What the API says of a model; `body` is all of it, as it came."""

    rollout: Rollout | None
    body: dict[str, Any]


class _Model(msgspec.Struct, frozen=True):
    rollout: Rollout | None


class _Failure(msgspec.Struct, frozen=True):
    code: str
    message: str
    fix: str


class _Accepted(msgspec.Struct, frozen=True):
    message: str


class GatewayApi:
    """A visit to one gateway; `token` goes with commands alone."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._token = token
        # Straight to the gateway: a proxy of the environment would be shown the token.
        secure = ssl.create_default_context() if self._url.lower().startswith("https:") else False
        self._client = httpx.Client(verify=secure, trust_env=False)

    def close(self) -> None:
        """Free the connection."""
        self._client.close()

    def model(self, name: str) -> ModelAnswer:
        """How a model stands; raises UserError."""
        status, body = self._ask("GET", f"/api/models/{quote(name, safe='')}", LOOK_LIMIT_S)
        if status != 200:
            raise self._refusal(status, body)
        return ModelAnswer(self._convert(body, _Model, status).rollout, body)

    def command(self, name: str, action: str, version: int | None) -> str:
        """Send a command; what happens now, in one line. Raises CommandRefused and other UserErrors."""
        path = f"/api/models/{quote(name, safe='')}/{action}"
        status, body = self._ask("POST", path, COMMAND_LIMIT_S, {} if version is None else {"version": version})
        if status != 202:
            raise self._refusal(status, body)
        return _one_line(self._convert(body, _Accepted, status).message)

    def _ask(self, method: str, path: str, limit_s: float, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        headers = {}
        if body is not None:
            headers["Content-Type"] = "application/json"
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token}"
        content = None if body is None else msgspec.json.encode(body)
        times = httpx.Timeout(10.0, read=limit_s)
        try:
            with self._client.stream(
                method, self._url + path, headers=headers, content=content, timeout=times
            ) as response:
                return response.status_code, self._decode(response)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            fix = "Start the gateway, or name its address with --url"
            raise GatewayUnreachable(
                f"no gateway answers: {_one_line(reason)}", where=shown(self._url), fix=fix
            ) from error

    def _decode(self, response: httpx.Response) -> Any:
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                raise self._stranger(response.status_code)
        try:
            return msgspec.json.decode(bytes(content))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise self._stranger(response.status_code) from error

    def _convert(self, body: Any, kind: type[T], status: int) -> T:
        try:
            return msgspec.convert(body, kind)
        except msgspec.ValidationError as error:
            raise self._stranger(status) from error

    def _refusal(self, status: int, body: Any) -> UserError:
        error = body.get("error") if isinstance(body, dict) else None
        failure = self._convert(error, _Failure, status)
        message, fix = _one_line(failure.message), _one_line(failure.fix)
        if status == 401:
            message, fix = "the gateway wants its token", "Name the file that holds it with --token-file"
        return CommandRefused(_one_line(failure.code), message, fix=fix)

    def _stranger(self, status: int) -> UserError:
        text = f"status {status} and an answer that is not a gateway's"
        return ConfigError(text, where=shown(self._url), fix="Name the address of the gateway's HTTP_PORT with --url")


def _one_line(text: str) -> str:
    """What a terminal shows in one line, whatever the other side wrote."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:2000])
