"""Whether the gateway is ready; apart from who finds out, for the front of several workers loads no models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway import __version__
from gateway.errors import Outcome


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of /ready: why not, and what is degraded without making it unready."""

    ready: bool
    reasons: tuple[str, ...]
    degraded: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """In one word, and why; for JSON."""
        return {
            "status": "ready" if self.ready else "not_ready",
            "reasons": self.reasons,
            "degraded": self.degraded,
        }


class Value(Protocol):
    """Reads one sample of the metrics, by its name without the prefix."""

    def __call__(self, name: str, **labels: str) -> float: ...


def status_body(
    place: Mapping[str, str], report: Report, value: Value, models: Iterable[str], endpoints: Sequence[str]
) -> dict[str, Any]:
    """What `/api/status` says; `value` is that of one process or of all together, `endpoints` are those of Triton."""
    several = endpoints if len(endpoints) > 1 else ()
    return {
        "version": __version__,
        **place,
        **report.as_json(),
        "broker_connected": bool(value("broker_connected")),
        "triton_ready": bool(value("triton_ready")),
        "triton_endpoints": {each: bool(value("triton_endpoint_up", endpoint=each)) for each in several},
        "snapshots_received": int(value("snapshots_received_total")),
        "snapshots": {str(each): int(value("snapshots_total", outcome=str(each))) for each in Outcome},
        "queue": {"messages": int(value("queue_messages")), "bytes": int(value("queue_bytes"))},
        "models": sorted(models),
    }


def endpoints_in(up: Mapping[str, int], outstanding: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each of several Tritons by its address: whether it takes requests, and how many it has under way."""
    return [{"address": each, "up": bool(is_up), "outstanding": outstanding[each]} for each, is_up in up.items()]
