"""Answers on their way to the broker: seen through in order to their end, whether or not a place in flight waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import structlog

from gateway.ports import Broker

log = structlog.get_logger(__name__)

MAX_BACKLOG_BYTES = 8 * 2**20
"""Of what waits in memory for a broker that is away; beyond it those who answer wait too, and the queue with them."""
MAX_UNDER_WAY = 2048
"""Answers that nobody waits for, at some kilobytes each, however small they are and wherever they are kept."""
LOOK_S = 0.05


class Outgoing:
    """While the broker is away, answers wait by themselves within bounds, and their places in flight are free.

    So what is in the queue is still answered in its time. With the broker there each place waits for its own answer:
    a broker that is slow holds back the snapshots that way.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._under_way: set[asyncio.Future[None]] = set()

    async def carry(self, delivery: Awaitable[None]) -> None:
        """Return when it is done, or goes on by itself since the broker is away; it deals with its own errors."""
        task = asyncio.ensure_future(delivery)
        self._under_way.add(task)
        task.add_done_callback(self._end)
        while not task.done() and (self._broker.connected or self._full):
            await asyncio.wait({task}, timeout=LOOK_S)

    @property
    def under_way(self) -> int:
        """Answers and ends of alerts that have not come to their end."""
        return len(self._under_way)

    def close(self) -> None:
        """Give up all that are under way; what the broker has taken over stays with it."""
        for task in self._under_way:
            task.cancel()

    @property
    def _full(self) -> bool:
        return self._broker.backlog >= MAX_BACKLOG_BYTES or len(self._under_way) > MAX_UNDER_WAY

    def _end(self, task: asyncio.Future[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A defect of the gateway: an answer was given up", exc_info=error)
