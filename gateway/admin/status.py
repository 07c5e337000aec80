"""What the gateway says of itself over MQTT: retained status with a last will, and a summary every 30 s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway import __version__
from gateway.admin.report import Report
from gateway.config import Settings
from gateway.errors import BrokerError, Outcome
from gateway.messages import JSON_TYPE, Publication
from gateway.ports import Broker
from gateway.tasks import while_connected
from gateway.topics import fill

if TYPE_CHECKING:  # the front of several workers has no catalogue
    from gateway.models.catalog import Models

CHECK_INTERVAL_S = 1.0
SUMMARY_INTERVAL_S = 30.0


def status_publication(settings: Settings, status: str, **more: Any) -> Publication:
    """The retained status message; `status` is ready, not_ready or offline."""
    body = {
        "message_type": "ai_status",
        "status": status,
        "timestamp": round(time.time(), 3),
        "gateway_id": settings.gateway_id,
        "version": __version__,
        **more,
    }
    topic = fill(settings.status_topic, settings.place)
    return Publication(topic=topic, payload=msgspec.json.encode(body), retain=True, content_type=JSON_TYPE)


class Values(Protocol):
    """The metrics of the gateway, of all its processes."""

    def value(self, name: str, **labels: str) -> float:
        """The current value of one sample, 0 when it has not been seen."""
        ...


Serving = dict[str, dict[str, Any]]
"""For each model the version of each variant that has one."""


class StatusPublisher:
    """Publishes the status at each change and at each new session, and the summary of the metrics.

    `report` says how the gateway stands, `serving` with which models, `values` reads its metrics.
    """

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        report: Callable[[], Report],
        serving: Callable[[], Serving],
        values: Callable[[], Awaitable[Values]],
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._report = report
        self._serving = serving
        self._values = values

    async def run(self) -> None:
        """Publish for ever."""
        await while_connected(self._broker, self._while_up, "status while connected")

    async def _while_up(self) -> None:
        published: tuple[object, ...] | None = None
        next_summary = time.monotonic() + SUMMARY_INTERVAL_S
        while True:
            report = self._report()
            state = (report.ready, report.reasons, report.degraded)
            if state != published:
                status = "ready" if report.ready else "not_ready"
                more = {"reasons": report.reasons, "degraded": report.degraded, "models": self._serving()}
                await self._publish(status_publication(self._settings, status, **more))
                published = state
            if time.monotonic() >= next_summary:
                next_summary += SUMMARY_INTERVAL_S
                await self._publish(self._summary(await self._values()))
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _publish(self, publication: Publication) -> None:
        try:
            await self._broker.publish(publication)
        except BrokerError:
            return  # the broker adapter has logged why; the next change tries again

    def _summary(self, values: Values) -> Publication:
        value = values.value
        body = {
            "message_type": "ai_metrics",
            "timestamp": round(time.time(), 3),
            "gateway_id": self._settings.gateway_id,
            "snapshots_received": int(value("snapshots_received_total")),
            "snapshots": {str(outcome): int(value("snapshots_total", outcome=str(outcome))) for outcome in Outcome},
            "queue_messages": int(value("queue_messages")),
            "spool_messages": int(value("spool_messages")),
            "mean_ms": {name: _mean_ms(values, name) for name in self._serving()},
        }
        topic = fill(self._settings.metrics_topic, self._settings.place)
        return Publication(topic=topic, payload=msgspec.json.encode(body), content_type=JSON_TYPE)


def serving(models: Models) -> Serving:
    """What this process serves."""
    return {
        name: {variant.name: variant.version for variant in model.variants.values() if variant.version}
        for name, model in models.current.models.items()
    }


def _mean_ms(values: Values, model: str) -> float | None:
    count = values.value("snapshot_duration_seconds_count", model=model)
    total = values.value("snapshot_duration_seconds_sum", model=model)
    return round(total / count * 1000, 3) if count else None
