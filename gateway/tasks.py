"""The tasks that a process lives of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.ports import Broker

log = structlog.get_logger(__name__)


async def has_failed(work: Coroutine[Any, Any, None], name: str, stop: asyncio.Event) -> bool:
    """Run one task to its end; True, and said in the log, when it should not have ended.

    Only a task that returns once `stop` is set may do so; whoever asks stops in order then, rather than let it quietly
    stay away.
    """
    try:
        await work
    except GatewayError as error:
        log.error("Task ended", task=name, reason=str(error))
    except Exception:
        log.exception("Task failed", task=name)
    else:
        if stop.is_set():
            return False
        log.error("Task ended unexpectedly", task=name)
    return True


async def while_connected(broker: Broker, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """Begin `work` anew with each session of the broker, and cancel it when that is lost; for ever."""
    async for up in broker.sessions():
        if up:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(work(), name=name)
                await _lost(broker)
                task.cancel()


async def _lost(broker: Broker) -> None:
    async for up in broker.sessions():
        if not up:
            return


async def set_within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event for so long, None: for as long as it takes; returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
