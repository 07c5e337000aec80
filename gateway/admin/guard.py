"""Who may look, and who may change something: those who know the token; who fails too often has to wait."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path

import structlog
from aiohttp import web

from gateway.admin.token import bearer, token_matches
from gateway.errors import CommandRefused

log = structlog.get_logger(__name__)

PERIOD_S = 60.0
FAILURES = 10
"""Failures of one address, or on one topic, in PERIOD_S; after them it waits, whatever token it gives."""
FAILURES_IN_ALL = 100
"""Failures in PERIOD_S after which each address has one try in place of FAILURES."""
ADDRESSES = 1024
"""Addresses that are remembered; beyond them the one is forgotten that has not failed for longest."""
TOKEN_FIX = "Send `Authorization: Bearer` with the token of API_TOKEN_FILE"  # noqa: S105 - says where it is  # nosec B105
READ_FIX = "Send `Authorization: Bearer` with the token of API_READ_TOKEN_FILE, or that of API_TOKEN_FILE"


class TokenRefused(CommandRefused):
    """The token was not given, or too many have failed to give it; `retry_after_s` is 0 where waiting does not help."""

    def __init__(self, code: str, message: str, *, fix: str, retry_after_s: int = 0) -> None:
        super().__init__(code, message, fix=fix)
        self.retry_after_s = retry_after_s


class Failures:
    """Failed tries of the last minute, by who failed; bounded, whoever tries from however many addresses.

    Who has not failed never waits, whatever others do: an attack must not lock out the one who has the token.

    Times are seconds of one clock, given by the caller, and do not go back.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=FAILURES_IN_ALL)

    def __len__(self) -> int:
        return len(self._of)

    def wait_s(self, who: str, now: float) -> float:
        """Seconds until the next try is allowed; 0 when it is now."""
        times = self._of.get(who, ())
        allowed = 1 if self._many(now) else FAILURES
        return max(0.0, times[-allowed] + PERIOD_S - now) if len(times) >= allowed else 0.0

    def add(self, who: str, now: float) -> None:
        """Remember a failure."""
        while self._of and next(iter(self._of.values()))[-1] + PERIOD_S <= now:
            self._of.popitem(last=False)
        self._of.setdefault(who, deque(maxlen=FAILURES)).append(now)
        self._of.move_to_end(who)
        if len(self._of) > ADDRESSES:
            self._of.popitem(last=False)
        self._all.append(now)

    def _many(self, now: float) -> bool:
        return len(self._all) == FAILURES_IN_ALL and self._all[0] + PERIOD_S > now


class TokenGuard:
    """Asks for the token of API_TOKEN_FILE; one for all ways into the gateway, so that guesses count together.

    Where there is a `read_token_file`, whoever looks is asked for its token, or for that of API_TOKEN_FILE.
    """

    def __init__(self, token_file: Path | None, read_token_file: Path | None = None) -> None:
        self.token_file = token_file
        self.read_token_file = read_token_file
        self._failures = Failures()

    def admit(self, who: str, given: Sequence[str], *, off_fix: str, fix: str = TOKEN_FIX) -> None:
        """Raise TokenRefused unless the token was given, as often as one likes but always the same.

        `who` is whom failures are counted for. `off_fix` tells how to set a token where the gateway has none.
        """
        if self._is_right(who, given, self.token_file):
            return
        if self.token_file is None:
            raise TokenRefused("UNAUTHORIZED", "commands are off while the gateway has no token", fix=off_fix)
        raise TokenRefused("UNAUTHORIZED", "this needs the token of API_TOKEN_FILE", fix=fix)

    def admit_request(self, request: web.Request, *, off_fix: str = "") -> None:
        """Raise TokenRefused unless the one `Authorization` header of a request has the token."""
        self.admit(client_of(request), _given_by(request), off_fix=off_fix)

    def admit_reader(self, request: web.Request) -> None:
        """Raise TokenRefused where looking wants a token and the request has neither of the two.

        Who gives none guesses nothing and is not counted: a page that asks again and again would lock out all who come
        by the same proxy.
        """
        if self.read_token_file is None:
            return
        files = self.read_token_file, self.token_file
        guesses = "Authorization" in request.headers
        if not guesses or not self._is_right(client_of(request), _given_by(request), *files):
            raise TokenRefused("UNAUTHORIZED", "looking needs the token of API_READ_TOKEN_FILE", fix=READ_FIX)

    def may_read(self, request: web.Request) -> bool:
        """Whether what a request gave when it began would still be let in; counts nothing."""
        given = _given_by(request)
        files = [file for file in (self.read_token_file, self.token_file) if file is not None]
        return self.read_token_file is None or any(token_matches(text, file) for text in given for file in files)

    def _is_right(self, who: str, given: Sequence[str], *files: Path | None) -> bool:
        """Whether one token is given, and is that of one of the files; counts a failure. Raises TokenRefused."""
        now = time.monotonic()
        if wait_s := self._failures.wait_s(who, now):
            seconds = math.ceil(wait_s)
            text = f"too many tries without the right token; the next one is heard in {seconds} s"
            raise TokenRefused("TOO_MANY_FAILURES", text, fix="Wait, then send the token", retry_after_s=seconds)
        # All files are asked, so that the time does not tell which token was nearly right.
        right = [token_matches(given[0], file) for file in files if file is not None and len(set(given)) == 1]
        if any(right):
            return True
        self._failures.add(who, now)
        if wait_s := self._failures.wait_s(who, now):
            log.warning("Too many tries without the right token", by=who, wait_s=math.ceil(wait_s))
        return False


def _given_by(request: web.Request) -> list[str]:
    headers = request.headers.getall("Authorization", [])
    return [bearer(headers[0])] if len(headers) == 1 else []  # of two, a proxy may have looked at the other


def client_of(request: web.Request) -> str:
    """The address that failures are counted for: of IPv6 the first 64 bits, for whoever has them has all the rest."""
    text = request.remote or "somewhere"
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
