"""In which order the answers about one camera go out: that in which its frames were taken from the queue."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from gateway.flow.lanes import Lane

LONGEST_WAIT_S = 0.25
"""For the answer about the frame before; one that takes longer, since its variant hangs, is overtaken."""


class Order:
    """Ranks the frames in flight of each lane; nothing is kept of a lane without any."""

    def __init__(self) -> None:
        self._last: dict[Lane, Rank] = {}

    def __len__(self) -> int:
        return len(self._last)

    def join(self, lane: Lane) -> Rank:
        """The rank of a frame that has just been taken, behind all of its lane that are in flight."""
        rank = self._last[lane] = Rank(self, lane, self._last.get(lane))
        return rank

    def leave(self, lane: Lane, rank: Rank) -> None:
        """Forget the rank that is over, unless another one stands behind it."""
        if self._last.get(lane) is rank:
            del self._last[lane]


class Rank:
    """Where a frame stands, as a context that ends when its answer is on its way, or will not come."""

    __slots__ = ("_before", "_lane", "_order", "_over", "_waiter")

    def __init__(self, order: Order, lane: Lane, before: Rank | None) -> None:
        self._order = order
        self._lane = lane
        self._before = before
        self._over = False
        self._waiter: asyncio.Event | None = None

    async def reached(self) -> None:
        """Return when the frame before is answered, or has taken too long."""
        before, self._before = self._before, None
        if before is not None:
            await before.over()

    async def over(self) -> None:
        """Return when this frame is answered, or has taken too long; one waits, the frame behind."""
        if self._over:
            return
        self._waiter = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_WAIT_S):
                await self._waiter.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over, self._before = True, None
        if self._waiter is not None:
            self._waiter.set()
        self._order.leave(self._lane, self)
