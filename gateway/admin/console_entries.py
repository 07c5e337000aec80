"""Results, alerts and comparisons of the gallery as the console gets them; messages go in as the bytes they are."""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgspec

from gateway.camera_counts import CameraCounts, CameraTotals
from gateway.flow.gallery import Camera, Entry, Gallery, Pair

MAX_ALERTS = 20


def entry_of(entry: Entry, gallery: Gallery) -> dict[str, Any]:
    """A result or an error; `picture` says whether its picture can be fetched now."""
    message = msgspec.Raw(entry.payload)
    return {
        "camera": entry.camera,
        "at": gallery.epoch(entry.received_at),
        "picture": not entry.failed and gallery.pictures.of_result(entry.camera, entry.result_id) is not None,
        **({"error": message} if entry.failed else {"result": message}),
    }


def pair_of(pair: Pair, gallery: Gallery) -> dict[str, Any]:
    """A comparison of two variants or two versions."""
    return {
        **disagreement_of(pair, gallery),
        "kind": pair.kind,
        "picture": gallery.pictures.of_result(pair.camera, pair.result_id) is not None,
        "comparison": msgspec.Raw(pair.payload),
    }


def disagreement_of(pair: Pair, gallery: Gallery) -> dict[str, Any]:
    """Where two did not agree, in short."""
    at = gallery.epoch(pair.received_at)
    return {"camera": pair.camera, "at": at, "model": pair.model, "result_id": pair.result_id}


def camera_of(camera: Camera, gallery: Gallery, counts: CameraCounts, now: float) -> dict[str, Any]:
    """How a camera stands, with its latest entry; `now` of `time.monotonic()`.

    The numbers of its snapshots are None for one that `counts` does not tell apart.
    """
    latest, totals = camera.history[-1], counts.totals(camera.name)
    return {
        "camera": camera.name,
        "model": camera.model,
        "facility": camera.facility,
        "last_at": gallery.epoch(latest.received_at),
        "rate_per_s": round(camera.rate_per_s(now), 3),
        **dict(zip(CameraTotals._fields, totals or (None, None, None), strict=True)),
        "entry": entry_of(latest, gallery),
    }


def whole_camera_of(camera: Camera, gallery: Gallery, counts: CameraCounts, now: float) -> dict[str, Any]:
    """The same with its last results and alerts, newest first."""
    alerts = islice(gallery.alerts(camera=camera.name), MAX_ALERTS)
    return {
        **camera_of(camera, gallery, counts, now),
        "history": [entry_of(entry, gallery) for entry in reversed(camera.history)],
        "alerts": [msgspec.Raw(alarm.payload) for alarm in alerts],
    }
