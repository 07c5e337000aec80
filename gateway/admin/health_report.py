"""`GET /api/health`: how the gateway stands and how it went in the last half hour, out of its own metrics."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from gateway.admin.model_report import CLOSED
from gateway.admin.process_usage import process_usage
from gateway.admin.report import endpoints_in
from gateway.admin.steps import wall_clock_shift
from gateway.camera_counts import FAILED
from gateway.errors import DROPPED, Outcome
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.ports import Broker

STEP_S = 5
STEPS = 360
"""The last 30 minutes."""
RATE_STEPS = 2
"""Steps back to which a rate goes."""
COUNTED = ("received", "published", "failed", "dropped", "windowed")


class Counts(NamedTuple):
    """Snapshots since the start."""

    received: int
    published: int
    failed: int
    dropped: int
    windowed: int
    """In the rates alone: neither answered nor lost, and a sensor's business rather than the gateway's."""


class HealthReport:
    """Looks at the metrics every STEP_S; `status` is what GET /api/status says."""

    def __init__(
        self, live: Live, broker: Broker, models: Models, metrics: Metrics, status: Callable[[], dict[str, Any]]
    ) -> None:
        self._live = live
        self._broker = broker
        self._models = models
        self._metrics = metrics
        self._status = status
        self._series: deque[list[float]] = deque(maxlen=STEPS)
        self._started_at = time.monotonic()
        self._past: deque[tuple[float, Counts]] = deque([(self._started_at, self._counts())], maxlen=RATE_STEPS)

    def look(self, at: int) -> None:
        """Add what came since the last look; `at` is the second of `time.monotonic()` at which the step ends."""
        now, before = self._counts(), self._past[-1][1]
        steps = [float(each - former) for each, former in zip(now, before, strict=True)]
        self._series.append([at, *steps[: COUNTED.index("windowed")], self._metrics.value("queue_messages")])
        self._past.append((time.monotonic(), now))

    def report(self) -> dict[str, Any]:
        """All of it."""
        settings, value = self._live.current, self._metrics.value
        outcomes, shift = self._outcomes(), wall_clock_shift(STEP_S)
        return {
            "status": self._status(),
            "rates": self._rates(),
            "series": [[at + shift, *counts] for at, *counts in self._series],
            "drops": {str(each): outcomes[each] for each in DROPPED},
            "errors": self._labelled("snapshot_errors", "code"),
            "breakers": self._breakers(),
            "queue": {
                "messages": int(value("queue_messages")),
                "bytes": int(value("queue_bytes")),
                "max_messages": settings.queue_max_messages,
                "max_bytes": settings.queue_max_bytes,
            },
            "broker": {
                "connected": self._broker.connected,
                "backlog_bytes": self._broker.backlog,
                "address": f"{settings.aio_broker_hostname}:{settings.aio_broker_tcp_port}",
            },
            "triton": {
                "ready": bool(value("triton_ready")),
                "address": settings.triton_grpc_url,
                "endpoints": endpoints_in(
                    self._labelled("triton_endpoint_up", "endpoint"),
                    self._labelled("triton_endpoint_outstanding", "endpoint"),
                ),
            },
            "shared_memory": {
                "bytes": int(value("shared_memory_bytes")),
                "max_bytes": settings.shared_memory_max_bytes,
                "slots": self._labelled("shared_memory_slots", "state"),
                "transfers": self._labelled("tensor_transfers", "transport"),
                "fallbacks": self._labelled("shared_memory_fallbacks", "reason"),
            },
            "process": process_usage(self._started_at, workers=1),
        }

    def _rates(self) -> dict[str, float]:
        began, before = self._past[0]
        passed_s = max(time.monotonic() - began, 1.0)
        pairs = zip(COUNTED, self._counts(), before, strict=True)
        return {f"{name}_per_s": round((now - former) / passed_s, 3) for name, now, former in pairs}

    def _breakers(self) -> list[dict[str, str]]:
        return [
            {"model": name, "variant": variant, "state": found.state, "reason": found.reason}
            for name, model in sorted(self._models.current.models.items())
            for variant in model.variants
            for found in (self._models.given_up.get((name, variant), CLOSED),)
        ]

    def _outcomes(self) -> dict[Outcome, int]:
        counted = self._labelled("snapshots", "outcome")
        return {each: counted.get(each.value, 0) for each in Outcome}

    def _counts(self) -> Counts:
        counted = self._outcomes()
        return Counts(
            int(self._metrics.value("snapshots_received_total")),
            counted[Outcome.PUBLISHED],
            sum(counted[each] for each in FAILED),
            sum(counted[each] for each in DROPPED),
            counted[Outcome.WINDOWED],
        )

    def _labelled(self, metric: str, label: str) -> dict[str, int]:
        """The values of a metric by its one label."""
        samples = (sample for found in getattr(self._metrics, metric).collect() for sample in found.samples)
        return {each.labels[label]: int(each.value) for each in samples}
