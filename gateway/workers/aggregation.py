"""One set of metrics of several processes, as if they were one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from gateway.metrics import CATALOGUE, PREFIX
from gateway.workers.frames import Family

Rule = Literal["sum", "min", "max", "front"]

RULES: dict[str, Rule] = {
    "inference_in_flight": "sum",
    "inference_concurrency_limit": "sum",
    "shared_memory_slots": "sum",
    "shared_memory_bytes": "sum",
    "circuit_breaker_state": "max",
    "queue_messages": "sum",
    "queue_bytes": "sum",
    "unacknowledged_messages": "sum",
    "outbox_bytes": "front",
    "spool_messages": "front",
    "spool_bytes": "front",
    "broker_connected": "front",
    "certificate_expiry_timestamp_seconds": "front",
    "triton_ready": "min",
    "triton_endpoint_up": "min",
    "triton_endpoint_outstanding": "sum",
    "model_ready": "min",
    "model_version": "max",
    "rollout_percent": "max",
    "roller": "max",
    "config_last_reload_successful": "min",
    "config_last_reload_success_timestamp_seconds": "min",
    "camera_last_snapshot_timestamp_seconds": "max",
    "ready": "front",
    "workers": "front",
    "build_info": "max",
}
"""What becomes of each gauge; `front`: the front's own, for it alone knows. Counters and histograms are added up."""
FRONT_COUNTERS = frozenset(("http_refusals", "broker_events", "spool_events", "worker_restarts"))
"""Counted by the front for all: an answer of a worker passes it, and would count twice."""
_OF_CAMERAS = {PREFIX + each.name.removesuffix("_total") for each in CATALOGUE if each.of_camera}
_PROCESS: dict[str, Rule] = {"process_start_time_seconds": "min", "process_max_fds": "min", "python_info": "max"}

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its labels, in the order in which the metric has them."""


def families(registry: CollectorRegistry) -> list[Family]:
    """All metrics of one process, as they are sent to the front."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(each.name, dict(each.labels), float(each.value)) for each in metric.samples],
        )
        for metric in registry.collect()
    ]


def counted(given: Iterable[Family]) -> list[Family]:
    """What of a process that has ended still counts, so that no sum ever goes back.

    But for those of each camera, which are bounded in a process that lives; they begin anew.
    """
    return [family for family in given if family.kind in ("counter", "histogram") and family.name not in _OF_CAMERAS]


class Merged:
    """The metrics of the front and of its workers; a collector for prometheus_client, each metric once."""

    def __init__(self, front: Sequence[Family], workers: Iterable[Sequence[Family]]) -> None:
        self._kinds: dict[str, Family] = {}
        self._values: dict[str, dict[Sample, float]] = {}
        for family in front:
            if self._rule(family) == "front" or not _is_own_gauge(family):
                self._add(family)
        for family in itertools.chain.from_iterable(workers):
            if self._rule(family) != "front":
                self._add(family)

    @staticmethod
    def _rule(family: Family) -> Rule:
        name = family.name.removeprefix(PREFIX)
        if family.kind in ("counter", "histogram"):
            return "front" if name in FRONT_COUNTERS else "sum"
        return RULES.get(name) or _PROCESS.get(family.name, "sum")

    def _add(self, family: Family) -> None:
        self._kinds.setdefault(family.name, family)
        rule, values = self._rule(family), self._values.setdefault(family.name, {})
        for name, labels, value in family.samples:
            key = name, tuple(labels.items())
            before = values.get(key)
            if before is None:
                values[key] = value
            elif rule == "min":
                values[key] = min(before, value)
            else:
                values[key] = max(before, value) if rule == "max" else before + value

    def collect(self) -> Iterator[Metric]:
        """One metric after the other."""
        for name, family in self._kinds.items():
            metric = Metric(name, family.documentation, family.kind)
            for (sample, labels), value in self._values[name].items():
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def value(self, name: str, **labels: str) -> float:
        """The value of one sample, 0 when there is none; `name` without the prefix."""
        wanted = (PREFIX + name, tuple(labels.items()))
        return next((found[wanted] for found in self._values.values() if wanted in found), 0.0)

    def by_label(self, name: str) -> dict[str, int]:
        """The values of a metric of one label, by that label; `name` without the prefix."""
        family = self._values.get(PREFIX + name.removesuffix("_total"), {})
        return {labels[0][1]: int(value) for (sample, labels), value in family.items() if sample == PREFIX + name}


def _is_own_gauge(family: Family) -> bool:
    """Whether it is one of the gateway's, of which the front's registry has no more than its beginning."""
    return family.name.startswith(PREFIX) and family.kind == "gauge"
