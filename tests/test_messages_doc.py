"""docs/messages.md shows what the gateway really publishes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BackendRejected
from gateway.testing import MemoryTriton
from tests.flow.builders import signature
from tests.harness import NO_HELMET, Site, sees, site, until, write_model

PAGE = (Path(__file__).parent.parent / "docs" / "messages.md").read_text()
EXAMPLES: dict[str, dict[str, Any]] = {
    name: json.loads(text)
    for name, text in re.findall(r"<!-- example: (.+?) -->\n```json\n(.+?)\n```", PAGE, re.DOTALL)
}
MODEL = "industrial-safety"


def shape(value: Any, path: str = "") -> set[str]:
    """Every key as a path; a list counts by its first item, for its items are alike."""
    if isinstance(value, dict):
        return {found for key, item in value.items() for found in {f"{path}.{key}", *shape(item, f"{path}.{key}")}}
    return shape(value[0], f"{path}[]") if isinstance(value, list) and value else set()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    """A gateway with the model of the examples, whose two variants see one person without a helmet."""
    write_model(tmp_path, MODEL)
    triton = MemoryTriton()
    for variant in ("onnx", "torch"):
        triton.add_model(signature(f"{MODEL}-{variant}"), sees(NO_HELMET))
    async with site(tmp_path, triton=triton) as running:
        yield running


def send_example(place: Site) -> None:
    place.snapshot(json.dumps(EXAMPLES["snapshot"]).encode())


def test_every_example_is_marked() -> None:
    assert PAGE.count("```json") == len(EXAMPLES)


async def test_the_snapshot_is_answered_as_shown(place: Site) -> None:
    send_example(place)
    await until(lambda: bool(place.of("dual_backend_comparison") and place.results), "result and comparison")
    (result,), (comparison,) = place.results, place.of("dual_backend_comparison")
    assert shape(result) == shape(EXAMPLES["result"])
    assert shape(comparison) == shape(EXAMPLES["comparison"])
    for key in ("message_type", "timestamp", "device_id", "model_name", "model_version", "backend_used"):
        assert result[key] == EXAMPLES["result"][key]
    for key in ("selection", "alert_triggered", "snapshot", "total_objects_detected"):
        assert result["metadata"][key] == EXAMPLES["result"]["metadata"][key]
    assert len(result["result_id"]) == len(EXAMPLES["result"]["result_id"])
    assert result["result_id"] == comparison["result_id"]


async def test_a_failed_variant_is_compared_as_shown(place: Site) -> None:
    place.triton.fail(f"{MODEL}-torch", BackendRejected("out of memory"))
    send_example(place)
    await until(lambda: bool(place.of("dual_backend_comparison")), "the comparison")
    (comparison,) = place.of("dual_backend_comparison")
    example = EXAMPLES["comparison with one failed variant"]
    assert shape(comparison) == shape(example)
    assert comparison["performance_delta"] == example["performance_delta"]
    for key in ("error", "model_version", "memory_usage_mb"):
        assert comparison["backends"]["torch"][key] == example["backends"]["torch"][key]


async def test_an_error_looks_as_shown(place: Site) -> None:
    example = EXAMPLES["error"]
    place.snapshot(b"", example["input"]["topic"])
    await place.answered(1)
    (error,) = place.errors
    volatile = {"timestamp", "result_id"}
    assert {k: v for k, v in error.items() if k not in volatile} == {
        k: v for k, v in example.items() if k not in volatile
    }
    assert volatile <= set(error)


async def test_status_looks_as_shown_in_life_and_at_the_end(place: Site) -> None:
    await until(lambda: any(body["status"] == "ready" for body in place.of("ai_status")), "the status ready")
    (ready,) = (body for body in place.of("ai_status") if body["status"] == "ready")
    assert shape(ready) == shape(EXAMPLES["status"])
    assert ready["models"] == EXAMPLES["status"]["models"]
    await place.stop()
    await until(lambda: place.of("ai_status")[-1]["status"] == "offline", "the status offline")
    assert shape(place.of("ai_status")[-1]) == shape(EXAMPLES["offline status"])
    assert place.of("ai_status")[-1]["reason"] == EXAMPLES["offline status"]["reason"]


async def test_the_summary_looks_as_shown(place: Site) -> None:
    send_example(place)
    await place.answered(1)
    publication = place.gateway._status._summary()  # every 30 s, too long to wait for
    summary = json.loads(publication.payload)
    assert shape(summary) == shape(EXAMPLES["summary"])
    assert sum(EXAMPLES["summary"]["snapshots"].values()) == EXAMPLES["summary"]["snapshots_received"]


def test_the_topics_are_the_default_ones() -> None:
    from gateway.config import Settings

    shown = set(re.findall(r"^\| (?:in|out).*? \| `(.+?)` \|", PAGE, re.MULTILINE))
    names = ("result_topic", "comparison_topic", "error_topic", "status_topic", "metrics_topic")
    defaults = {Settings.model_fields[name].default for name in names}
    assert shown == defaults | set(Settings.model_fields["mqtt_input_topics"].default)
