"""Results, alerts and comparisons of the gallery as the console gets them; messages go in as the bytes they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.camera_counts import CameraCounts, CameraTotals
from gateway.flow.gallery import Camera, Entry, Gallery, Pair

MAX_ALERTS = 20
MAX_SHOWN_BYTES = 512 * 1024
"""Of the entries in one list of cameras; GET /api/camera and the events have those that are left out."""


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


def within_limit(latest: Iterable[tuple[float, str, int]]) -> set[str]:
    """The cameras whose entries are in a list of all, given when each came, its camera and its size; newest first."""
    shown, size = set(), 0
    for _, camera, added in sorted(latest, reverse=True):
        size += added
        if size > MAX_SHOWN_BYTES:
            break
        shown.add(camera)
    return shown


def cameras_of(gallery: Gallery, counts: CameraCounts, now: float) -> list[dict[str, Any]]:
    """All cameras by name; `now` of `time.monotonic()`. `entry` is None where those of newer ones are too many."""
    cameras = gallery.cameras
    latest = {name: camera.history[-1] for name, camera in cameras.items()}
    shown = within_limit((entry.received_at, name, len(entry.payload)) for name, entry in latest.items())
    listed = (camera_of(cameras[name], gallery, counts, now) for name in sorted(cameras))
    return [each if each["camera"] in shown else {**each, "entry": None} for each in listed]


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
    alerts = reversed(gallery.latest_alerts(MAX_ALERTS, camera.name))
    return {
        **camera_of(camera, gallery, counts, now),
        "history": [entry_of(entry, gallery) for entry in reversed(camera.history)],
        "alerts": [msgspec.Raw(alarm.payload) for alarm in alerts],
    }
