"""Pictures for whoever looks, made small in the threads that decode: one at a time, and at rest most of the time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from gateway.errors import QueueFull
from gateway.flow.glimpse import Glimpse, glimpse
from gateway.live import Live

MAX_WAITING = 32
WAIT_S = 10.0
"""For a turn, at most; the front of several workers waits somewhat longer for their answers."""
REST = 20
"""Times that a thread worked for a picture until the next one is begun: looking costs the flow little of them."""
LONGEST_REST_S = 1.0
"""However large a picture is: others are waited for."""


class Frames:
    """Makes pictures small, in the order in which they are asked for."""

    def __init__(self, threads: Executor, live: Live) -> None:
        self._threads = threads
        self._live = live
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._closed = False
        self._next_at = 0.0

    def close(self) -> None:
        """Begin no other one, for the threads end."""
        self._closed = True

    async def draw(self, read: Callable[[], bytes], width: int, left: Callable[[], bool]) -> Glimpse:
        """The picture that `read`, in a thread, gives; at most `width` pixels across.

        Raises QueueFull when too many wait or it takes too long, ConnectionResetError when `left` says that nobody
        waits for it any more, ImageUndecodable and ImageTooLarge, and what `read` raises.
        """
        if self._waiting >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} pictures are waited for", fix="Ask again soon, and for fewer at once")
        self._waiting += 1
        try:
            async with self._one_by_one():
                if left():
                    raise ConnectionResetError("the client has left")
                if self._closed:
                    raise QueueFull("the gateway is stopping", fix="Try again soon")
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, lambda: self._make(read, width))
        finally:
            self._waiting -= 1

    @contextlib.asynccontextmanager
    async def _one_by_one(self) -> AsyncIterator[None]:
        """A turn, after the rest that the one before has earned."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turn.acquire()
        except TimeoutError as error:
            raise QueueFull("other pictures take too long", fix="Ask again soon, and for fewer at once") from error
        try:
            await asyncio.sleep(self._next_at - time.monotonic())
            yield
        finally:
            self._turn.release()

    def _make(self, read: Callable[[], bytes], width: int) -> Glimpse:
        """In a thread: its work counts, also for a picture that cannot be shown; what it waits for does not."""
        started = time.thread_time()
        try:
            return glimpse(read(), width, self._live.current.max_image_pixels)
        finally:
            rest_s = min(REST * (time.thread_time() - started), LONGEST_REST_S)
            self._next_at = time.monotonic() + rest_s
