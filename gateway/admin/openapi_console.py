"""The console's part of the description of the HTTP side."""

from __future__ import annotations

from typing import Any

from gateway.admin.openapi_forms import (
    MAYBE_NUMBER,
    MAYBE_TEXT,
    NUMBER,
    TEXT,
    get,
    in_path,
    json_of,
    object_of,
    query,
    ref,
)

_COUNT = {"type": "integer", "minimum": 0}
_MAYBE_COUNT = {"type": ["integer", "null"], "minimum": 0}
_COUNTS = {"type": "object", "additionalProperties": _COUNT}
_YES_OR_NO = {"type": "boolean"}
_MISSING = {**_COUNT, "description": "With several workers: how many of them did not answer and are left out"}
_SERIES = {"type": "array", "items": {"type": "array", "items": NUMBER}}
_WIDTH = {"type": "integer", "minimum": 64, "maximum": 1920, "default": 480}
_KINDS = ("text/html", "text/css", "text/javascript", "image/svg+xml", "image/png", "application/manifest+json")
_OFF = "CONSOLE=off"
_BUSY = {
    "503": json_of("Too much is asked at once, or no worker answers; Retry-After says when to come back", ref("Error"))
}


def console_paths() -> dict[str, Any]:
    """The page, its files and what it asks for."""
    off = {"404": json_of(_OFF, ref("Error"))}
    return {**_pages(off), **_cameras(off), **_pictures(), **_rest(off)}


def console_schemas() -> dict[str, Any]:
    """What the answers are made of."""
    entry = object_of(camera=TEXT, at=NUMBER, picture=_YES_OR_NO, result=ref("Result"), error={"type": "object"})
    camera = object_of(
        camera=TEXT, model=MAYBE_TEXT, facility=TEXT, last_at=NUMBER, rate_per_s=NUMBER, published=_MAYBE_COUNT,
        failed=_MAYBE_COUNT, dropped=_MAYBE_COUNT, entry={"anyOf": [ref("Entry"), {"type": "null"}]},
    )  # fmt: skip
    pair = object_of(
        camera=TEXT, at=NUMBER, model=TEXT, result_id=TEXT, kind={"enum": ["dual", "shadow"]}, picture=_YES_OR_NO,
        comparison={"type": "object"},
    )  # fmt: skip
    latency = object_of(
        count=_COUNT, mean_ms=MAYBE_NUMBER, p50_ms=MAYBE_NUMBER, p90_ms=MAYBE_NUMBER, p99_ms=MAYBE_NUMBER,
        buckets={"type": "array", "items": {"type": "array", "items": MAYBE_NUMBER}},
    )  # fmt: skip
    compared = object_of(
        model=TEXT, kind={"enum": ["dual", "shadow"]}, variants={"type": "array", "items": TEXT}, agreement=_COUNTS,
        series=_SERIES, latency={"type": "object", "additionalProperties": latency},
    )  # fmt: skip
    return {"Entry": entry, "Camera": camera, "Pair": pair, "Compared": compared, "Health": _health()}


def _health() -> dict[str, Any]:
    breaker = object_of(model=TEXT, variant=TEXT, state={"enum": ["closed", "open", "half_open"]}, reason=TEXT)
    return object_of(
        status=ref("Status"), rates={"type": "object", "additionalProperties": NUMBER}, series=_SERIES, drops=_COUNTS,
        errors=_COUNTS, breakers={"type": "array", "items": breaker}, queue=_COUNTS,
        broker=object_of(connected=_YES_OR_NO, backlog_bytes=_COUNT, address=TEXT),
        triton=object_of(
            ready=_YES_OR_NO, address=TEXT,
            endpoints={"type": "array", "items": object_of(address=TEXT, up=_YES_OR_NO, outstanding=_COUNT)},
        ),
        shared_memory=object_of(bytes=_COUNT, max_bytes=_COUNT, slots=_COUNTS, transfers=_COUNTS, fallbacks=_COUNTS),
        process=object_of(resident_bytes=MAYBE_NUMBER, cpu_seconds=NUMBER, uptime_s=NUMBER, workers=_COUNT),
        missing=_MISSING,
    )  # fmt: skip


def _pages(off: dict[str, Any]) -> dict[str, Any]:
    same = {"304": {"description": "It is the file that If-None-Match names"}}
    page = {"200": {"description": "The page", "content": {"text/html": {"schema": TEXT}}}, **same, **off}
    file = {
        "200": {"description": "The file", "content": {kind: {"schema": TEXT} for kind in _KINDS}},
        **same,
        "404": json_of(f"There is no such file, or {_OFF}", ref("Error")),
    }
    about = object_of(
        console={"enum": ["pictures", "results"]}, token_required=_YES_OR_NO, actions=_YES_OR_NO, version=TEXT,
        business_unit=TEXT, facility=TEXT, gateway_id=TEXT,
    )  # fmt: skip
    names = [in_path("file", "Name of a file of the page")]
    known = {"200": json_of("What the page has to know first", about), **off}
    return {
        "/": get("console", "The console", page, "console"),
        "/console/{file}": get("console-file", "A file of the console", file, "console", names),
        "/api/console": get("console-about", "What it shows, and to whom", known, "console"),
    }


def _cameras(off: dict[str, Any]) -> dict[str, Any]:
    listed = {"200": json_of("All cameras", object_of(cameras=_list("Camera"), missing=_MISSING)), **_BUSY, **off}
    whole = {"allOf": [ref("Camera"), object_of(history=_list("Entry"), alerts={"type": "array"})]}
    unknown = json_of("Nothing has come from this camera of late", ref("Error"))
    one = {"200": json_of("The camera, its last results and alerts", whole), "404": unknown, **_BUSY}
    stream = {
        "200": {"description": "Events `results`, `alerts`, `disagreement` and `bye`",
                "content": {"text/event-stream": {"schema": TEXT}}},
        "503": json_of("Too many look at once", ref("Error")),
        **off,
    }  # fmt: skip
    return {
        "/api/events": get("events", "What happens, as server-sent events without end", stream, "console"),
        "/api/cameras": get("cameras", "The cameras with their latest results", listed, "console"),
        "/api/camera": get("camera", "One camera", one, "console", [query("id", "Its device_id")]),
    }


def _pictures() -> dict[str, Any]:
    refused = {
        "404": json_of("There is no such camera, model or picture, or none is kept now", ref("Error")),
        "413": json_of("The picture is too large", ref("Error")),
        "422": json_of("The picture, or expected.json, cannot be read", ref("Error")),
        "503": json_of(
            "Too many pictures are waited for, or the worker that may have it does not answer", ref("Error")
        ),
    }
    comparison = {"type": ["object", "null"]}
    frame = object_of(entry=ref("Entry"), comparison=comparison, width=_COUNT, height=_COUNT, jpeg=TEXT)
    width = query("width", "Most pixels across", _WIDTH)
    which = [query("id", "device_id of a camera"), query("result", "result_id of a result"), width]
    example = object_of(
        name=TEXT, picture=_YES_OR_NO, expected={"type": "array"}, tolerance={"type": ["object", "null"]}
    )
    listed = json_of("The examples", object_of(golden={"type": "array", "items": example}))
    picture = {"description": "The picture", "content": {"image/jpeg": {"schema": {"type": "string"}}}}
    model = query("model", "Name of a logical model")
    named = [model, query("name", "Name of an example"), width]
    both, examples, drawn = ({"200": each, **refused} for each in (json_of("Both", frame), listed, picture))
    return {
        "/api/frame": get("frame", "A picture with its result", both, "console", which),
        "/api/golden": get("golden", "Golden examples of a model", examples, "console", [model]),
        "/api/golden/picture": get("golden-picture", "A golden picture", drawn, "console", named),
    }


def _rest(off: dict[str, Any]) -> dict[str, Any]:
    parts = {"models": _list("Compared"), "disagreements": _list("Pair"), "pairs": _list("Pair")}
    compared = object_of(**parts, missing=_MISSING)
    compare = {"200": json_of("Agreement, times and disagreements", compared), **_BUSY, **off}
    health = {"200": json_of("State, rates and the last half hour", ref("Health")), **_BUSY, **off}
    return {
        "/api/compare": get("compare", "How variants and versions compare", compare, "console"),
        "/api/health": get("health", "How the gateway fares", health, "console"),
    }


def _list(schema: str) -> dict[str, Any]:
    return {"type": "array", "items": ref(schema)}
