"""One answer for all who ask for the same page at the same moment.

A page of the console can have a megabyte. Made for each of a hundred readers, it would hold up the loop that also
carries the snapshots for seconds, and be in memory a hundred times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from aiohttp import web

from gateway.admin.answers import error_response

AT_ONCE = 4
"""Pages that are made at the same time."""
WAIT_S = 15.0
"""For a page, at most."""
LONGEST_REST_S = 0.25
"""Between two of the same page; a page rests as long as it took if that is shorter."""

Make = Callable[[], Awaitable[web.Response]]


class SharedAnswers:
    """Makes each page once for all who wait for it.

    Who asks while it is being made waits for the next one, so no answer is older than its question.
    """

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._next: dict[str, asyncio.Task[web.Response]] = {}

    async def of(self, page: str, make: Make) -> web.Response:
        """The answer that `make`, of whoever asked first, gives for `page`; 503 if that takes too long."""
        making = self._next.get(page)
        if making is None:
            making = self._next[page] = asyncio.create_task(self._in_turn(page, make))
        try:
            async with asyncio.timeout(WAIT_S):
                made = await asyncio.shield(making)
        except TimeoutError:
            text, fix = "other pages take too long", "Ask again soon, and for fewer at once"
            return error_response(503, "QUEUE_FULL", text, fix, {"Retry-After": "1"})
        return web.Response(body=made.body, status=made.status, reason=made.reason, headers=made.headers)

    async def _in_turn(self, page: str, make: Make) -> web.Response:
        lock = self._locks.setdefault(page, asyncio.Lock())
        await lock.acquire()
        async with self._turns:
            del self._next[page]
            started = time.monotonic()
            try:
                return await make()
            finally:
                rest_s = min(time.monotonic() - started, LONGEST_REST_S)
                asyncio.get_running_loop().call_later(rest_s, lock.release)
