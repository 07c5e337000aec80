"""What the gateway says of itself over MQTT: retained status with a last will, and a summary every 30 s."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from gateway import __version__
from gateway.admin.health import Health
from gateway.config import Settings
from gateway.errors import BrokerError, Outcome
from gateway.messages import JSON_TYPE, Publication
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.ports import Broker
from gateway.topics import fill

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


class StatusPublisher:
    """Publishes the status at each change and at each new session, and the summary of the metrics."""

    def __init__(self, settings: Settings, broker: Broker, health: Health, models: Models, metrics: Metrics) -> None:
        self._settings = settings
        self._broker = broker
        self._health = health
        self._models = models
        self._metrics = metrics

    async def run(self) -> None:
        """Publish for ever."""
        async for up in self._broker.sessions():
            if up:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(self._while_up(), name="status while connected")
                    await self._lost()
                    watch.cancel()

    async def _lost(self) -> None:
        async for up in self._broker.sessions():
            if not up:
                return

    async def _while_up(self) -> None:
        published: tuple[object, ...] | None = None
        next_summary = time.monotonic() + SUMMARY_INTERVAL_S
        while True:
            report = self._health.report()
            state = (report.ready, report.reasons, report.degraded)
            if state != published:
                status = "ready" if report.ready else "not_ready"
                more = {"reasons": report.reasons, "degraded": report.degraded, "models": self._serving()}
                await self._publish(status_publication(self._settings, status, **more))
                published = state
            if time.monotonic() >= next_summary:
                next_summary += SUMMARY_INTERVAL_S
                await self._publish(self._summary())
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _publish(self, publication: Publication) -> None:
        try:
            await self._broker.publish(publication)
        except BrokerError:
            return  # the broker adapter has logged why; the next change tries again

    def _serving(self) -> dict[str, Any]:
        return {
            name: {variant.name: variant.version for variant in model.variants.values() if variant.version}
            for name, model in self._models.current.models.items()
        }

    def _summary(self) -> Publication:
        value = self._metrics.value
        body = {
            "message_type": "ai_metrics",
            "timestamp": round(time.time(), 3),
            "gateway_id": self._settings.gateway_id,
            "snapshots_received": int(value("snapshots_received_total")),
            "snapshots": {str(outcome): int(value("snapshots_total", outcome=str(outcome))) for outcome in Outcome},
            "queue_messages": int(value("queue_messages")),
            "spool_messages": int(value("spool_messages")),
            "mean_ms": {name: self._mean_ms(name) for name in self._models.current.models},
        }
        topic = fill(self._settings.metrics_topic, self._settings.place)
        return Publication(topic=topic, payload=msgspec.json.encode(body), content_type=JSON_TYPE)

    def _mean_ms(self, model: str) -> float | None:
        count = self._metrics.value("snapshot_duration_seconds_count", model=model)
        total = self._metrics.value("snapshot_duration_seconds_sum", model=model)
        return round(total / count * 1000, 3) if count else None
