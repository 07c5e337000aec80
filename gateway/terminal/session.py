"""A person's session with the broker: never silent while it has to wait."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from gateway.errors import BrokerUnavailable
from gateway.ports import Broker

SAY_AFTER_S = 3.0


@contextlib.asynccontextmanager
async def session(broker: Broker, address: str, *, limit_s: float | None = None) -> AsyncIterator[None]:
    """Keep the session up inside the block; raises BrokerUnavailable when it does not come within `limit_s`."""
    running = asyncio.create_task(broker.run(), name="broker")
    try:
        await _until_up(broker, address, limit_s)
        yield
    finally:
        await broker.close()
        running.cancel()
        await asyncio.wait({running})


async def _until_up(broker: Broker, address: str, limit_s: float | None) -> None:
    up = asyncio.create_task(_next_session(broker))
    try:
        await asyncio.wait({up}, timeout=SAY_AFTER_S if limit_s is None else min(SAY_AFTER_S, limit_s))
        if not up.done() and (limit_s is None or limit_s > SAY_AFTER_S):
            ends = "until it comes" if limit_s is None else f"for {limit_s:g} s in all"
            print(f"edge-gateway: still waiting for the broker at {address}, {ends}", file=sys.stderr, flush=True)
            await asyncio.wait({up}, timeout=None if limit_s is None else max(0.0, limit_s - SAY_AFTER_S))
        if not up.done():
            raise BrokerUnavailable(
                f"no session with the broker within {limit_s:g} s",
                where=address,
                fix="Start the broker, or check AIO_BROKER_HOSTNAME, AIO_BROKER_TCP_PORT and how to log in",
            )
    finally:
        up.cancel()


async def _next_session(broker: Broker) -> None:
    async for up in broker.sessions():
        if up:
            return
