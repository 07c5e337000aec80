"""Whether the gateway is ready; apart from who finds out, for the front of several workers loads no models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of /ready: why not, and what is degraded without making it unready."""

    ready: bool
    reasons: tuple[str, ...]
    degraded: tuple[str, ...]
