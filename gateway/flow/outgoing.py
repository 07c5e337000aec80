"""Answers on their way to the broker: seen through in order to their end, whether or not a place in flight waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from gateway.ports import Broker

log = structlog.get_logger(__name__)

MAX_BACKLOG_BYTES = 8 * 2**20
"""Of what waits in memory for a broker that is away; beyond it those who answer wait too, and the queue with them."""
MAX_UNDER_WAY = 2048
"""Answers that nobody waits for, at some kilobytes each, however small they are and wherever they are kept."""
MAX_AT_ONCE = 64
"""Answers that a broker which is there may still have to acknowledge; beyond it those who answer wait too."""
LOOK_S = 0.05


class Outgoing:
    """Answers wait for the broker by themselves within bounds, and their places in flight are free.

    So what is in the queue is answered in its time, whether the broker takes a while to acknowledge or is away. Beyond
    the bounds each place waits for its own answer: a broker that is slow holds back the snapshots that way.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._under_way: set[asyncio.Future[None]] = set()

    async def carry(self, delivery: Coroutine[Any, Any, None], *, seen_through: bool = False) -> None:
        """Return when it is done, or goes on by itself as there is room for it; it deals with its own errors.

        With `seen_through` not before it is done while the broker is there.
        """
        task = asyncio.create_task(delivery)
        self._under_way.add(task)
        task.add_done_callback(self._end)
        while not task.done() and (self._full or (seen_through and self._broker.connected)):
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
        most = MAX_AT_ONCE if self._broker.connected else MAX_UNDER_WAY
        return len(self._under_way) > most or self._broker.backlog >= MAX_BACKLOG_BYTES

    def _end(self, task: asyncio.Future[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A defect of the gateway: an answer was given up", exc_info=error)
