"""An orderly way out of a shared subscription: the others take over, and what is here already is finished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from gateway.ports import Broker

log = structlog.get_logger(__name__)

QUIET_S = 0.5
"""So long nothing has come and nothing is under way: the broker holds nothing for this gateway any more."""
POLL_S = 0.02


async def leave_groups(broker: Broker, idle: Callable[[], bool], limit_s: float) -> None:
    """End the `$share` subscriptions; return when all that the broker had for them is done, or after `limit_s`.

    What is left then stays in the session, as it does without this.
    """
    log.info("Leaving the shared subscriptions to the others", limit_s=limit_s)
    try:
        async with asyncio.timeout(limit_s):
            await broker.leave_groups()
            quiet_since = time.monotonic()
            while time.monotonic() - quiet_since < QUIET_S:
                await asyncio.sleep(POLL_S)
                if not idle():
                    quiet_since = time.monotonic()
    except TimeoutError:
        log.info("Not everything was finished before leaving; the rest stays with the broker", limit_s=limit_s)
