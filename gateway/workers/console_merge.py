"""What several workers answer to the console, made into one answer; all bodies are JSON as docs/http.md has it.

The messages in them stay the bytes that they are: the event loop that does this also carries MQTT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from gateway.admin.compare_report import MOST_PAIRS, latency_of
from gateway.admin.console_entries import within_limit
from gateway.admin.process_usage import process_usage
from gateway.admin.report import endpoints_in
from gateway.workers.aggregation import Merged

MOST_STEPS = 360
STEP_S = 5
"""Between two rows of the series of /api/health."""
MOST_DISAGREEMENTS = 50
LEFT_OUT = msgspec.Raw(b"null")
STATES = ("closed", "half_open", "open")
"""Of breakers, the one that counts most at the end."""

Body = dict[str, Any]
Row = Sequence[float]


class Camera(msgspec.Struct, gc=False):
    """One of GET /api/cameras."""

    camera: str
    model: str | None
    facility: str
    last_at: float
    rate_per_s: float
    published: int | None
    failed: int | None
    dropped: int | None
    entry: msgspec.Raw


class Cameras(msgspec.Struct):
    """GET /api/cameras."""

    cameras: list[Camera]


class Pair(msgspec.Struct, gc=False):
    """One comparison of GET /api/compare."""

    camera: str
    at: float
    model: str
    result_id: str
    kind: str
    picture: bool
    comparison: msgspec.Raw


class Comparisons(msgspec.Struct):
    """GET /api/compare."""

    models: list[Body]
    disagreements: list[Pair]
    pairs: list[Pair]


class _Entry(msgspec.Struct):
    at: float = 0.0


class _Dated(msgspec.Struct):
    """What GET /api/camera and /api/frame say of when it was; all the rest is skipped."""

    last_at: float = 0.0
    entry: _Entry = msgspec.field(default_factory=_Entry)


Form = TypeVar("Form")


def came_at(body: bytes) -> float:
    """When what GET /api/camera or /api/frame shows has arrived, in epoch seconds."""
    found = msgspec.json.decode(body, type=_Dated)
    return found.last_at or found.entry.at


def cameras(bodies: Sequence[bytes]) -> Body:
    """Of GET /api/cameras: each camera once, from the worker that it came to last."""
    newest: dict[str, Camera] = {}
    for camera in (each for body in _decoded(bodies, Cameras) for each in body.cameras):
        known = newest.get(camera.camera)
        if known is None or camera.last_at > known.last_at:
            newest[camera.camera] = camera
    shown = within_limit((each.last_at, each.camera, len(bytes(each.entry))) for each in newest.values())
    for name in newest.keys() - shown:
        newest[name].entry = LEFT_OUT
    return {"cameras": [newest[name] for name in sorted(newest)]}


def comparisons(bodies: Sequence[bytes]) -> Body:
    """Of GET /api/compare."""
    told = _decoded(bodies, Comparisons)
    by_model: dict[tuple[str, str], list[Body]] = {}
    for model in (each for body in told for each in body.models):
        by_model.setdefault((model["model"], model["kind"]), []).append(model)
    return {
        "models": [_one_model(found) for found in by_model.values()],
        "disagreements": _newest_first(pair for body in told for pair in body.disagreements)[:MOST_DISAGREEMENTS],
        "pairs": _latest_of_cameras(pair for body in told for pair in body.pairs)[:MOST_PAIRS],
    }


def health(bodies: Sequence[bytes], status: Body, merged: Merged, started_at: float, now: float) -> Body:
    """Of GET /api/health; `status` and the start are those of the front, `now` is in epoch seconds.

    What has been counted since the start is taken from the `merged` metrics, which know it of workers that have ended.
    """
    told: list[Body] = [msgspec.json.decode(body) for body in bodies]
    first, mine, value = told[0], process_usage(started_at, workers=0), merged.value
    broker = {"connected": bool(value("broker_connected")), "backlog_bytes": int(value("outbox_bytes"))}
    return {
        "status": status,
        "rates": _sum(body["rates"] for body in told),
        "series": settled([body["series"] for body in told], now),
        "drops": {name: int(value("snapshots_total", outcome=name)) for name in first["drops"]},
        "errors": merged.by_label("snapshot_errors_total"),
        "breakers": _breakers(told),
        "queue": _sum(body["queue"] for body in told),
        "broker": {**first["broker"], **broker},
        "triton": {
            **first["triton"],
            "ready": all(body["triton"]["ready"] for body in told),
            "endpoints": endpoints_in(
                merged.by_label("triton_endpoint_up"), merged.by_label("triton_endpoint_outstanding")
            ),
        },
        "shared_memory": {
            "bytes": int(value("shared_memory_bytes")),
            "max_bytes": sum(body["shared_memory"]["max_bytes"] for body in told),
            "slots": merged.by_label("shared_memory_slots"),
            "transfers": merged.by_label("tensor_transfers_total"),
            "fallbacks": merged.by_label("shared_memory_fallbacks_total"),
        },
        "process": {**_sum([mine, *(body["process"] for body in told)]), "uptime_s": mine["uptime_s"]},
    }


def add_series(series: Iterable[Sequence[Row]]) -> list[list[float]]:
    """Rows of a time and its counts; those of the same time are added."""
    rows: dict[float, list[float]] = {}
    for at, *counts in (row for each in series for row in each):
        before = rows.get(at)
        rows[at] = counts if before is None else [one + other for one, other in zip(before, counts, strict=True)]
    return [[at, *rows[at]] for at in sorted(rows)][-MOST_STEPS:]


def settled(series: Sequence[Sequence[Row]], now: float) -> list[list[float]]:
    """The same without the newest row until all have it: each looks by a clock of its own.

    One that has missed a step keeps it from nobody for longer than until the next.
    """
    having = Counter(row[0] for each in series for row in each)
    return [row for row in add_series(series) if having[row[0]] == len(series) or row[0] + STEP_S < now]


def _decoded(bodies: Iterable[bytes], form: type[Form]) -> list[Form]:
    return [msgspec.json.decode(body, type=form) for body in bodies]


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


def _newest_first(pairs: Iterable[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: -pair.at)


def _latest_of_cameras(pairs: Iterable[Pair]) -> list[Pair]:
    """Newest first; a camera that has gone from one worker to another is there once."""
    latest: dict[str, Pair] = {}
    for pair in _newest_first(pairs):
        latest.setdefault(pair.camera, pair)
    return list(latest.values())


def _sum(bodies: Iterable[Body]) -> Body:
    """The numbers of objects of one form added up."""
    total: Body = {}
    for key, value in (pair for body in bodies for pair in body.items()):
        total[key] = (total.get(key) or 0) + (value or 0)
    return total
