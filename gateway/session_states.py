"""Tells several listeners about the state of a broker session, every change to each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator


class SessionStates:
    """The state now, and a queue of changes for each listener, so that a slow one misses none."""

    def __init__(self) -> None:
        self.up = False
        self._closed = False
        self._listeners: set[asyncio.Queue[bool | None]] = set()

    def set(self, up: bool) -> None:
        if up != self.up:
            self.up = up
            self._tell(up)

    def close(self) -> None:
        self.set(False)
        if not self._closed:
            self._closed = True
            self._tell(None)

    async def listen(self) -> AsyncIterator[bool]:
        """Yield the state now and at each change, until `close`."""
        if self._closed:
            return
        changes: asyncio.Queue[bool | None] = asyncio.Queue()
        self._listeners.add(changes)
        try:
            state: bool | None = self.up
            while state is not None:
                yield state
                state = await changes.get()
        finally:
            self._listeners.discard(changes)

    def _tell(self, change: bool | None) -> None:
        for changes in self._listeners:
            changes.put_nowait(change)
