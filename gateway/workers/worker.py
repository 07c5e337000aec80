"""A worker's own part: it tells the front how it stands, and gives it its metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from gateway.admin.health import Health
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.workers.aggregation import families
from gateway.workers.frames import Samples, WorkerState
from gateway.workers.relayed_broker import RelayedBroker

LOOK_S = 0.1
ALIVE_EVERY_S = 0.5
"""The front hears as often that this worker's loop turns."""


async def tell_the_front(
    broker: RelayedBroker, health: Health, live: Live, serving: Callable[[], dict[str, dict[str, Any]]]
) -> None:
    """Say how this worker stands, at each change and as a sign of life, for ever."""
    said: WorkerState | None = None
    said_at = 0.0
    while True:
        report, settings = health.report(), live.current
        state = WorkerState(
            report.ready,
            health.started,
            report.reasons,
            report.degraded,
            serving(),
            settings.rate_limit_per_topic,
            settings.drain_timeout_s,
            settings.log_level,
            settings.log_format,
        )
        if state != said or time.monotonic() - said_at >= ALIVE_EVERY_S:
            broker.channel.send(state)
            said, said_at = state, time.monotonic()
        await asyncio.sleep(LOOK_S)


def give_metrics(broker: RelayedBroker, metrics: Metrics) -> None:
    """Answer the front, which asks for all metrics."""
    broker.channel.send(Samples(families(metrics.registry)))
