"""Pictures for whoever looks, made small in the threads that decode: one at a time, and at rest most of the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from gateway.errors import QueueFull
from gateway.flow.glimpse import Glimpse, glimpse
from gateway.live import Live

MAX_WAITING = 32
REST = 20
"""Times that a picture took until the next one is begun: looking costs the flow little of its threads."""


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

        Raises QueueFull when too many wait, ConnectionResetError when `left` says that nobody waits for it any more,
        ImageUndecodable and ImageTooLarge, and what `read` raises.
        """
        if self._waiting >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} pictures are waited for", fix="Ask again soon, and for fewer at once")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._draw(read, width, left)
        finally:
            self._waiting -= 1

    async def _draw(self, read: Callable[[], bytes], width: int, left: Callable[[], bool]) -> Glimpse:
        loop, most = asyncio.get_running_loop(), self._live.current.max_image_pixels
        await asyncio.sleep(self._next_at - loop.time())
        if left():
            raise ConnectionResetError("the client has left")
        if self._closed:
            raise QueueFull("the gateway is stopping", fix="Try again soon")
        made = await loop.run_in_executor(self._threads, lambda: glimpse(read(), width, most))
        self._next_at = loop.time() + REST * made.took_s
        return made
