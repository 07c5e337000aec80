"""What several workers answer to the console, made into one answer; all bodies are JSON as docs/http.md has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.admin.compare_report import latency_of
from gateway.admin.process_usage import process_usage

MOST_STEPS = 360
MOST_DISAGREEMENTS = 50
STATES = ("closed", "half_open", "open")
"""Of breakers, the one that counts most at the end."""

Body = dict[str, Any]


def cameras(bodies: Sequence[Body]) -> Body:
    """Of GET /api/cameras: each camera once, from the worker that it came to last."""
    newest: dict[str, Body] = {}
    for camera in (each for body in bodies for each in body["cameras"]):
        known = newest.get(camera["camera"])
        if known is None or camera["last_at"] > known["last_at"]:
            newest[camera["camera"]] = camera
    return {"cameras": [newest[name] for name in sorted(newest)]}


def comparisons(bodies: Sequence[Body]) -> Body:
    """Of GET /api/compare."""
    by_model: dict[tuple[str, str], list[Body]] = {}
    for model in (each for body in bodies for each in body["models"]):
        by_model.setdefault((model["model"], model["kind"]), []).append(model)
    return {
        "models": [_one_model(found) for found in by_model.values()],
        "disagreements": _newest_first(bodies, "disagreements")[:MOST_DISAGREEMENTS],
        "pairs": _newest_first(bodies, "pairs"),
    }


def health(bodies: Sequence[Body], status: Body, broker: Body, started_at: float) -> Body:
    """Of GET /api/health; `status`, `broker` and the time of the start are those of the front."""
    first, mine = bodies[0], process_usage(started_at, workers=0)
    return {
        "status": status,
        "rates": _sum(body["rates"] for body in bodies),
        "series": add_series([body["series"] for body in bodies]),
        "drops": _sum(body["drops"] for body in bodies),
        "errors": _sum(body["errors"] for body in bodies),
        "breakers": _breakers(bodies),
        "queue": _sum(body["queue"] for body in bodies),
        "broker": {**first["broker"], **broker},
        "triton": {**first["triton"], "ready": all(body["triton"]["ready"] for body in bodies)},
        "shared_memory": _sum(body["shared_memory"] for body in bodies),
        "process": {**_sum([mine, *(body["process"] for body in bodies)]), "uptime_s": mine["uptime_s"]},
    }


def add_series(series: Iterable[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Rows of a time and its counts; those of the same time are added."""
    rows: dict[float, list[float]] = {}
    for at, *counts in (row for each in series for row in each):
        before = rows.get(at)
        rows[at] = counts if before is None else [one + other for one, other in zip(before, counts, strict=True)]
    return [[at, *rows[at]] for at in sorted(rows)][-MOST_STEPS:]


def _one_model(found: Sequence[Body]) -> Body:
    latency: dict[str, tuple[list[int], float]] = {}
    for variant, each in (pair for model in found for pair in model["latency"].items()):
        counts = [count for _, count in each["buckets"]]
        before, total_ms = latency.get(variant, ([0] * len(counts), 0.0))
        added = [one + other for one, other in zip(before, counts, strict=True)]
        latency[variant] = added, total_ms + (each["mean_ms"] or 0.0) * each["count"]
    return {
        "model": found[0]["model"],
        "kind": found[0]["kind"],
        "variants": sorted(latency),
        "agreement": _sum(model["agreement"] for model in found),
        "series": add_series([model["series"] for model in found]),
        "latency": {variant: latency_of(*latency[variant]) for variant in sorted(latency)},
    }


def _breakers(bodies: Sequence[Body]) -> list[Body]:
    worst: dict[tuple[str, str], Body] = {}
    for each in (breaker for body in bodies for breaker in body["breakers"]):
        known = worst.get(key := (each["model"], each["variant"]))
        if known is None or STATES.index(each["state"]) > STATES.index(known["state"]):
            worst[key] = each
    return [worst[key] for key in sorted(worst)]


def _newest_first(bodies: Sequence[Body], name: str) -> list[Body]:
    return sorted((each for body in bodies for each in body[name]), key=lambda each: -each["at"])


def _sum(bodies: Iterable[Body]) -> Body:
    """The numbers of objects of one form added up, those of the objects in them too."""
    total: Body = {}
    for key, value in (pair for body in bodies for pair in body.items()):
        if isinstance(value, dict):
            total[key] = _sum([total.get(key, {}), value])
        else:
            total[key] = (total.get(key) or 0) + (value or 0)
    return total
