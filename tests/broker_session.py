"""What tests of brokers share: a client that runs, and waiting with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from gateway.messages import Message
from gateway.ports import Broker

DEADLINE_S = 30.0


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


class Running:
    """A Broker whose `run` runs."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.task = asyncio.create_task(broker.run())
        self._messages = broker.messages()

    async def next(self) -> Message:
        async with asyncio.timeout(DEADLINE_S):
            return await anext(self._messages)

    async def take(self, count: int) -> list[Message]:
        return [await self.next() for _ in range(count)]

    async def connected(self) -> None:
        await until(lambda: self.broker.connected or self.task.done())
        if self.task.done():
            self.task.result()

    async def crash(self) -> None:
        """End without a word to the broker."""
        self.task.cancel()
        await asyncio.wait({self.task})

    async def close(self) -> None:
        await self.broker.close()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait({self.task})


@contextlib.asynccontextmanager
async def running(broker: Broker) -> AsyncIterator[Running]:
    """Run it until the block ends; the block starts when it is connected."""
    session = Running(broker)
    try:
        await session.connected()
        yield session
    finally:
        await session.close()
