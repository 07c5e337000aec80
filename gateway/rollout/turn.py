"""Whose turn it is to run the rollouts, of the gateways on one model volume."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.models.loader import Loader

LET_GO_AFTER_S = 15.0
"""Seconds without Triton after which the lease is given back: longer than a Triton that has crashed takes to come back,
which a rollout outlives, and short for gateways that wait for their first models."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How a gateway stood to the lease when it looked last."""

    contends: bool = False
    """Whether it may have the lease: only where Triton can be reached, or no version could be tried."""
    held: bool = False
    acting: bool = False
    """Whether it runs the rollouts: it holds the lease, or nobody can have it."""


def stays_away(loader: Loader) -> bool:
    """Whether Triton has been away for so long that another gateway is to run the rollouts."""
    return loader.away_s >= LET_GO_AFTER_S
