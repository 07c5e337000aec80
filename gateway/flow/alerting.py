"""The alerts of what was published: started with a result, ended by silence, a removed model or the end."""

from __future__ import annotations

import asyncio
import time

import structlog

from gateway.errors import BrokerUnavailable, PublishRefused
from gateway.flow.alerts import Alert, AlertBook, alert_publication
from gateway.flow.observer import Observer
from gateway.flow.outgoing import Outgoing
from gateway.messages import Predicted, Publication
from gateway.metrics import Metrics
from gateway.ports import Broker

log = structlog.get_logger(__name__)

INTERVAL_S = 0.5
AT_ONCE = 64
"""Ends of alerts that are published together."""


class Alerting:
    """Keeps the book of alerts, and publishes their ends; while the broker is away the ends wait with the answers."""

    def __init__(self, broker: Broker, outgoing: Outgoing, metrics: Metrics, observer: Observer) -> None:
        self._broker = broker
        self._outgoing = outgoing
        self._metrics = metrics
        self._observer = observer
        self._book = AlertBook()

    def see(self, predicted: Predicted) -> list[Alert]:
        """The alerts that start with this result; some that its camera has not shown for long end.

        Whoever publishes them says so with `said`.
        """
        job, model = predicted.job, predicted.job.model.spec
        origin, now = job.snapshot.origin, time.monotonic()
        classes = model.inference.alert_classes
        if not classes:
            return []
        before = self._book.forgotten
        alerts = self._book.see(
            origin, model.name, job.topics.alert, model.alerts, classes, predicted.primary.predictions, now
        )
        self._metrics.forgotten.labels("alert").inc(self._book.forgotten - before)
        return alerts

    def said(self, alert: Alert, message: Publication) -> None:
        """It is published, by this message."""
        self._book.said(alert)
        self._metrics.alerts.labels(alert.model_name, alert.event).inc()
        self._observer.alerted(alert, message)

    async def watch(self) -> None:
        """End the alerts whose class has not been seen for long, for ever."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self._publish(self._book.expire(time.monotonic()))

    @property
    def pending(self) -> int:
        """Alerts whose end is still to be said."""
        return self._book.pending

    async def end_all(self) -> None:
        """End every alert, for nobody will see how it goes on."""
        await self._publish(self._book.end_all("gateway_stopped"))

    async def end_model(self, model_name: str) -> None:
        """End every alert of a model that is no longer there."""
        await self._publish(self._book.end_model(model_name))

    async def _publish(self, alerts: list[Alert]) -> None:
        for start in range(0, len(alerts), AT_ONCE):
            some = (self._publish_one(alert) for alert in alerts[start : start + AT_ONCE])
            await asyncio.gather(*(self._outgoing.carry(end, seen_through=True) for end in some))

    async def _publish_one(self, alert: Alert) -> None:
        message = alert_publication(alert)
        try:
            await self._broker.publish(message)
        except PublishRefused as refusal:
            log.error("The broker refused an alert", topic=alert.topic, reason=refusal.message, fix=refusal.fix)
            self._book.said(alert)  # it would be refused again
        except BrokerUnavailable:
            return  # closing; `end_all` says it again
        else:
            self.said(alert, message)
