"""An orderly way out of a shared subscription: the others take over, and what is here already is finished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from gateway.ports import Broker

log = structlog.get_logger(__name__)

QUIET_S = 0.5
"""So long nothing of a group has come, and what came before is done: the broker holds none of it any more."""
POLL_S = 0.02


async def leave_groups(broker: Broker, finished: Callable[[float], bool], limit_s: float) -> None:
    """End the `$share` subscriptions; return when all that the broker had for them is done, or after `limit_s`.

    `finished` tells whether nothing is open that came up to a moment. Topics without a group go on all the while: what
    counts is that nothing of a group came for QUIET_S, and that the broker has room to send, since all before is done.
    What is left after `limit_s` stays in the session, as it does without this.
    """
    log.info("Leaving the shared subscriptions to the others", limit_s=limit_s)
    try:
        async with asyncio.timeout(limit_s):
            await broker.leave_groups()
            quiet_since = time.monotonic()
            while time.monotonic() - quiet_since < QUIET_S or not finished(quiet_since):
                await asyncio.sleep(POLL_S)
                quiet_since = max(quiet_since, broker.dealt_at)
    except TimeoutError:
        log.info("Not everything was finished before leaving; the rest stays with the broker", limit_s=limit_s)
