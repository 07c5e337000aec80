"""Models that are removed, asleep, unloaded, or of which a variant is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.errors import BackendUnavailable
from gateway.models.catalog import State
from tests.flow.trial_site import (
    INSIDE,
    OUTSIDE,
    flow,
    release,
    triton_name,
)
from tests.harness import NO_HELMET, sees, until


async def test_a_model_that_is_removed_answers_what_still_waits_for_it() -> None:
    async with flow(1, max_in_flight=1) as place:
        place.models.put(release(1, onnx=State.LOADING, torch=State.LOADING))
        place.send(INSIDE)
        await until(lambda: place.metrics.value("queue_messages") == 1, "a snapshot that waits")
        place.models.remove("detector")
        place.send(INSIDE, model_name="detector")
        await place.answered(2)
    assert {body["error"]["code"] for body in place.errors} == {"MODEL_UNKNOWN"}
    assert place.outcomes() == {"rejected": 2}


async def test_a_snapshot_whose_time_runs_out_after_its_model_was_removed() -> None:
    async with flow(1, max_in_flight=1) as place:
        place.models.put(release(1))
        place.triton.hold(triton_name("onnx", 1))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 1))
        place.send(OUTSIDE, deadline_ms=100)
        await until(lambda: place.metrics.value("queue_messages") == 1, "a snapshot that waits")
        place.models.remove("detector")
        await until(lambda: len(place.errors) == 1, "the deadline")
        place.triton.release(triton_name("onnx", 1))
        await place.answered(2)
    assert place.errors[0]["error"]["code"] == "MODEL_UNKNOWN"
    assert place.outcomes() == {"published": 1, "rejected": 1}


@pytest.mark.parametrize("deadline_ms", [50, 5_000], ids=["its time runs out", "at once"])
async def test_a_model_that_is_removed_while_triton_is_away(deadline_ms: int) -> None:
    async with flow(1) as place:
        for variant in ("onnx", "torch"):
            place.triton.fail(triton_name(variant, 1), BackendUnavailable("gone"))
            place.triton.hold(triton_name(variant, 1))
        place.models.put(release(1))
        place.send(INSIDE, deadline_ms=deadline_ms)
        await place.triton.wait_until_held(triton_name("onnx", 1))
        place.models.remove("detector")
        for variant in ("onnx", "torch"):
            place.triton.release(triton_name(variant, 1))
        await place.answered(1)
    assert sum(place.outcomes().values()) == 1
    assert deadline_ms == 50 or place.errors[0]["error"]["code"] == "MODEL_UNKNOWN"


async def test_the_alerts_of_a_removed_model_end() -> None:
    async with flow() as place:
        await place.add(1, sees(NO_HELMET))
        place.models.put(release(1))
        place.send(INSIDE)
        await place.answered(1)
        place.models.remove("detector")
        await place.pipeline.end_model("other")
        assert place.pipeline.alerts_pending == 1
        await place.pipeline.end_model("detector")
        await until(lambda: len(place.of("ai_alert")) == 2, "the end")
        assert place.pipeline.alerts_pending == 0
    assert [(body["event"], body["reason"]) for body in place.of("ai_alert")] == [
        ("start", None),
        ("end", "model_removed"),
    ]


async def test_a_snapshot_for_a_model_that_is_asleep_wakes_it_and_waits() -> None:
    async with flow(1) as place:
        place.models.put(release(1, onnx=State.ASLEEP, torch=State.ABSENT))
        place.send(INSIDE)
        await until(lambda: place.models.wanted == {"detector"}, "the wish to have it loaded")
        assert not place.results
        place.models.put(release(1))
        await place.answered(1)
    assert place.outcomes() == {"published": 1}


async def test_a_model_that_falls_asleep_while_a_snapshot_waits_is_woken() -> None:
    async with flow(1) as place:
        place.models.put(release(1, onnx=State.LOADING, torch=State.LOADING))
        place.send(INSIDE)
        await until(lambda: place.metrics.value("queue_messages") == 1, "a snapshot that waits")
        assert not place.models.wanted
        place.models.put(release(1, onnx=State.ASLEEP, torch=State.ASLEEP))
        await until(lambda: place.models.wanted == {"detector"}, "the wish to have it loaded")


async def test_a_model_unloaded_by_command_says_so_at_once_and_how_to_have_it_back() -> None:
    async with flow(1) as place:
        place.models.put(release(1, onnx=State.UNLOADED, torch=State.ABSENT))
        place.send(INSIDE)
        await place.answered(1)
    error = place.errors[0]["error"]
    assert (error["code"], error["message"]) == ("MODEL_UNAVAILABLE", "model 'detector' was unloaded by command")
    assert "edge-gateway models load detector" in error["fix"]
    assert not place.models.wanted


async def test_in_dual_mode_the_comparison_says_why_a_variant_is_absent() -> None:
    model = release(2, torch=State.ABSENT)
    model = model.with_variant(replace(model.variants["torch"], reason="version 2 does not bring it"))
    async with flow(2) as place:
        place.models.put(model)
        place.send(INSIDE, backend_preference="dual")
        await place.answered(1)
        await until(lambda: bool(place.of("dual_backend_comparison")), "the comparison")
    said = place.of("dual_backend_comparison")[0]["backends"]["torch"]["error"]
    assert "does not bring it" in said["message"]
