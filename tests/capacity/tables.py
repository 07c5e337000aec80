"""The tables of docs/capacity.md; a test holds the page against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.capacity.model import (
    ANSWER_BYTES,
    CAMERAS_WITH_SERIES,
    MIB,
    MODELS,
    SCRAPE_S,
    SERIES_PER_CAMERA,
    SERIES_PER_GATEWAY,
    YOLO_N,
    Machine,
    Site,
    most_cameras,
    plan,
    used,
)

SIZES = (10, 100, 1000, 10_000)
FLEETS = (10, 100, 1000)
CAMERAS_OF_A_SITE = 10
MODEL_MB = 50


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [list(head), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings() -> str:
    """What to set, by the number of cameras of a site."""
    head = (
        "cameras at 1/s",
        "replicas of 4 cores",
        "GPUs",
        "`MAX_IN_FLIGHT`",
        "`SHARED_MEMORY_MAX_BYTES`",
        "`QUEUE_MAX_MESSAGES`",
        "`QUEUE_MAX_BYTES`",
        "memory of each",
        "MQTT sessions",
        "series",
        "30 days of them",
    )
    rows = []
    for size in SIZES:
        of = plan(Site(size), YOLO_N)
        rows.append(
            (
                f"{size:,}",
                of.replicas,
                of.instances,
                of.max_in_flight,
                f"{of.shared_memory_bytes // MIB} MiB",
                of.queue_messages,
                f"{of.queue_bytes // MIB} MiB",
                f"{of.memory_mb} MB",
                f"{of.sessions:,}",
                f"{of.series:,}",
                f"{of.prometheus_gb:.1f} GB",
            )
        )
    return table(head, rows)


def load() -> str:
    """What is busy how far, by the number of cameras of a site."""
    head = (
        "cameras at 1/s",
        "gateway, cores",
        "GPUs, busy",
        "broker, cores",
        "into the broker",
        "answers out",
        "tensors, where gateway and Triton are apart",
        "mean wait in the gateway and before Triton",
    )
    rows = []
    for size in SIZES:
        of = plan(Site(size), YOLO_N)
        rows.append(
            (
                f"{size:,}",
                f"{of.gateway_cores:.1f}",
                f"{of.site.rate * YOLO_N.triton_ms / 1000:.1f}",
                f"{of.broker_cores:.2f}",
                f"{of.broker_in_mbit:,.0f} Mbit/s",
                f"{of.site.rate * ANSWER_BYTES * 8 / 1e6:,.1f} Mbit/s",
                f"{of.tensors_mbit:,.0f} Mbit/s",
                f"{of.wait_s * 1000:.2f} ms",
            )
        )
    return table(head, rows)


def one_machine() -> str:
    """How many cameras one machine takes with each model."""
    head = ("model", "Triton, ms", "where", "cameras at 1/s", "full first", "then")
    rows = []
    for model in MODELS:
        most, first = most_cameras(model, Machine())
        then = list(used(Site(most), model, Machine()))[1]
        rows.append((model.name, model.triton_ms, model.placed, most, first, then))
    return table(head, rows)


def fleets() -> str:
    """What comes together of many sites."""
    head = (
        "sites of 10 cameras at 1/s",
        "cameras",
        "series",
        "samples a second",
        "answers, if all are bridged",
        "a model",
    )
    rows = []
    for sites in FLEETS:
        cameras = sites * CAMERAS_OF_A_SITE
        series = sites * (SERIES_PER_GATEWAY + SERIES_PER_CAMERA * min(CAMERAS_OF_A_SITE, CAMERAS_WITH_SERIES))
        rows.append(
            (
                f"{sites:,}",
                f"{cameras:,}",
                f"{series:,}",
                f"{series / SCRAPE_S:,.0f}",
                f"{cameras * ANSWER_BYTES * 8 / 1e6:,.1f} Mbit/s",
                f"{sites * MODEL_MB / 1000:,.1f} GB",
            )
        )
    return table(head, rows)


def every() -> Iterator[tuple[str, str]]:
    """Each table with its heading."""
    yield "One machine: 8 cores, 1 GPU, 1 Gbit/s", one_machine()
    yield "What to set: YOLOv8n, 1080p of 200 kB, TLS", settings()
    yield "What is busy", load()
    yield "Many sites", fleets()
