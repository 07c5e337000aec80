"""How the variants of each model compare: agreement over time, how long each takes, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.admin.console_entries import pair_of
from gateway.admin.steps import wall_clock_shift
from gateway.flow.agreements import BOUNDS_MS, STEP_S, Agreement
from gateway.flow.gallery import Gallery

OUTCOMES = ("true", "false", "unknown")
MOST_PAIRS = 50
"""Of the latest comparisons of all cameras; each can be as large as a result of either variant."""


def compare_report(gallery: Gallery) -> dict[str, Any]:
    """All of `GET /api/compare`."""
    newest = sorted((each.pair for each in gallery.cameras.values() if each.pair), key=lambda each: -each.number)
    return {
        "models": [model_of(*key, agreement) for key, agreement in gallery.agreements],
        "disagreements": [pair_of(pair, gallery) for pair in gallery.disagreements()],
        "pairs": [pair_of(pair, gallery) for pair in newest[:MOST_PAIRS]],
    }


def model_of(model: str, kind: str, agreement: Agreement) -> dict[str, Any]:
    """One model in one kind of comparison."""
    shift = wall_clock_shift(STEP_S)
    return {
        "model": model,
        "kind": kind,
        "variants": sorted(agreement.latency),
        "agreement": dict(zip(OUTCOMES, agreement.totals, strict=True)),
        "series": [[begins + shift, *counts] for begins, counts in agreement.series],
        "latency": {
            name: latency_of(found.counts, found.total_ms) for name, found in sorted(agreement.latency.items())
        },
    }


def latency_of(counts: Sequence[int], total_ms: float) -> dict[str, Any]:
    """A distribution: counts in the buckets of BOUNDS_MS and one beyond, and the sum of all times."""
    count = sum(counts)
    return {
        "count": count,
        "mean_ms": round(total_ms / count, 3) if count else None,
        "p50_ms": percentile_ms(counts, 0.5),
        "p90_ms": percentile_ms(counts, 0.9),
        "p99_ms": percentile_ms(counts, 0.99),
        "buckets": [[bound, each] for bound, each in zip((*BOUNDS_MS, None), counts, strict=True)],
    }


def percentile_ms(counts: Sequence[int], share: float) -> float | None:
    """The time below which this share lies, as near as the buckets tell; None without any."""
    rank = share * sum(counts)
    if not rank:
        return None
    lower, below = 0.0, 0
    for bound, count in zip(BOUNDS_MS, counts, strict=False):
        if count and below + count >= rank:
            return round(lower + (bound - lower) * (rank - below) / count, 3)
        lower, below = bound, below + count
    return float(BOUNDS_MS[-1])
