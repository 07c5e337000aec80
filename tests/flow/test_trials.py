"""A new version answers its share of the cameras, and no snapshot pays for its failures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from gateway.errors import BackendRejected, BackendUnavailable, ModelUnavailable
from gateway.layouts.binding import BoundOutput
from gateway.layouts.custom import load_custom_layouts
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.catalog import ServedModel, ServedVariant, State, bucket
from gateway.models.input_plan import WindowPlan
from gateway.models.trial import Observation
from tests.flow.builders import message, sensor_spec, signature, snapshot_json, spec
from tests.flow.trial_site import (
    CAMERAS,
    HALF,
    INSIDE,
    JPEG,
    OUTSIDE,
    Witness,
    flow,
    on_trial,
    release,
    triton_name,
)
from tests.harness import HELMET, sees, until


def selection(body: dict[str, Any]) -> tuple[str, str]:
    chosen = body["metadata"]["selection"]
    return chosen["policy"], chosen["reason"]


# --- who answers ------------------------------------------------------------------------------------------


async def test_a_candidate_answers_its_share_of_the_cameras_and_says_so() -> None:
    jury = Witness()
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        for camera in CAMERAS:
            place.send(camera)
        await place.answered(len(CAMERAS))
    by_version = {body["device_id"]: body["model_version"] for body in place.results}
    assert by_version == {name: "2" if bucket("detector", name) < HALF else "1" for name in CAMERAS}
    assert set(by_version.values()) == {"1", "2"}
    for body in place.results:
        policy, reason = selection(body)
        said = ("canary", "version 2 answers 50 % of the cameras") if body["model_version"] == "2" else None
        assert (policy, reason) == (said or ("single", "default"))
    for seen in jury.seen:
        mine, others = (seen.candidate, seen.stable) if seen.published_by_candidate else (seen.stable, seen.candidate)
        assert (mine["onnx"].error, others) == (None, {})
    assert sum(seen.published_by_candidate for seen in jury.seen) == list(by_version.values()).count("2")


async def test_a_candidate_is_served_by_its_own_spec_and_labels() -> None:
    candidate = release(2, spec(labels=["bear", "wolf", "elk"]))
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), candidate, Witness(), HALF))
        place.send(INSIDE)
        place.send(OUTSIDE)
        await place.answered(2)
    found = {body["device_id"]: body["predictions"][0]["class"] for body in place.results}
    assert found == {INSIDE: "bear", OUTSIDE: "person_with_helmet"}


async def test_a_wish_of_the_message_holds_within_the_candidate() -> None:
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), release(2), Witness(), HALF))
        place.send(INSIDE, backend_preference="torch")
        place.send(INSIDE, backend_preference="dual")
        await place.answered(2)
        await until(lambda: bool(place.of("dual_backend_comparison")), "the comparison")
    both = {selection(body)[0]: body for body in place.results}
    assert both["canary"]["backend_used"] == "torch"
    assert selection(both["dual"])[1] == "message; version 2 answers 50 % of the cameras"
    assert set(place.asked(2)) == {triton_name("torch", 2), triton_name("onnx", 2)}
    assert not place.asked(1)


async def test_a_candidate_that_does_not_serve_yet_leaves_its_cameras_to_the_stable_version() -> None:
    jury = Witness()
    candidate = release(2, onnx=State.LOADING, torch=State.LOADING)
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), candidate, jury, HALF))
        place.send(INSIDE)
        await place.answered(1)
    assert place.results[0]["model_version"] == "1"
    policy, reason = selection(place.results[0])
    assert policy == "fallback"
    assert reason.startswith("version 2 does not serve: onnx is loading")
    assert [dict(seen.candidate) for seen in jury.seen] == [{}]


async def test_triton_is_asked_for_the_very_version_of_a_pinned_variant() -> None:
    async with flow() as place:
        for number in (1, 2):
            place.triton.add_model(replace(signature("detector-onnx"), version=str(number)), sees(HELMET))
        await place.triton.load("detector-onnx", (1, 2))
        stable, candidate = (release(number, spec(variants={"onnx": "detector-onnx"})) for number in (1, 2))
        stable, candidate = (
            model.with_variant(replace(model.variants["onnx"], triton_model="detector-onnx", pinned=True))
            for model in (stable, candidate)
        )
        place.models.put(on_trial(stable, candidate, Witness(), HALF))
        place.send(INSIDE)
        place.send(OUTSIDE)
        await place.answered(2)
        loose = stable.with_variant(replace(stable.variants["onnx"], pinned=False))
        place.models.put(loose)
        place.send(OUTSIDE)
        await place.answered(3)
    assert (place.versions_of(INSIDE), place.versions_of(OUTSIDE)) == (["2"], ["1", "2"])
    assert sorted(request.version for request in place.triton.requests) == ["", "1", "2"]


async def test_one_who_asks_directly_is_answered_by_the_candidate_too() -> None:
    jury = Witness(pairs=1)
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        reply = await place.pipeline.intake.ask(message(snapshot_json(JPEG, device_id=INSIDE)))
        await until(lambda: bool(jury.seen), "the pair")
    assert msgspec.json.decode(reply.payload)["model_version"] == "2"
    assert (list(jury.seen[0].candidate), list(jury.seen[0].stable)) == (["onnx"], ["onnx"])
    assert not place.seen


# --- a candidate that fails -------------------------------------------------------------------------------


async def test_where_the_candidate_fails_the_stable_version_answers() -> None:
    jury = Witness()
    async with flow(1, 2) as place:
        for variant in ("onnx", "torch"):
            place.triton.fail(triton_name(variant, 2), BackendRejected("out of memory"))
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        place.send(INSIDE)
        await place.answered(1)
    assert place.outcomes() == {"published": 1}
    assert place.results[0]["model_version"] == "1"
    assert selection(place.results[0]) == ("fallback", "version 2 failed: BACKEND_REJECTED")
    assert place.metrics.value("fallbacks_total", model="detector", variant="onnx") == 1
    (seen,) = jury.seen
    assert isinstance(seen.candidate["onnx"].error, BackendRejected)
    assert seen.stable["onnx"].error is None
    assert not seen.published_by_candidate


async def test_a_variant_of_the_candidate_that_fails_is_seen_though_the_other_answers() -> None:
    jury = Witness()
    async with flow(1, 2) as place:
        place.triton.fail(triton_name("onnx", 2), BackendRejected("no"))
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        place.send(INSIDE)
        await place.answered(1)
    assert (place.results[0]["model_version"], place.results[0]["backend_used"]) == ("2", "torch")
    assert selection(place.results[0]) == (
        "fallback",
        "onnx failed: BACKEND_REJECTED; version 2 answers 50 % of the cameras",
    )
    (seen,) = jury.seen
    assert seen.published_by_candidate
    assert {name: result.error and result.error.code for name, result in seen.candidate.items()} == {
        "onnx": "BACKEND_REJECTED",
        "torch": None,
    }


async def test_a_candidate_that_hangs_leaves_time_for_the_stable_version() -> None:
    jury = Witness()
    async with flow(1, 2) as place:
        for variant in ("onnx", "torch"):
            place.triton.hold(triton_name(variant, 2))
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        place.send(INSIDE, deadline_ms=600)
        await place.answered(1)
    assert place.outcomes() == {"published": 1}
    assert selection(place.results[0]) == ("fallback", "version 2 failed: DEADLINE_EXCEEDED")
    assert place.results[0]["model_version"] == "1"
    error = jury.seen[0].candidate["onnx"].error
    assert error is not None
    assert error.code == "DEADLINE_EXCEEDED"


async def test_an_answer_of_the_candidate_that_makes_no_sense_is_its_fault() -> None:
    def defect(_inputs: object) -> dict[str, Any]:
        raise RuntimeError("a defect")

    for scene in (defect, sees((32.0, 32.0, 20.0, 40.0, 0, float("nan")))):
        jury = Witness()
        with capture_logs() as logs:  # a traceback in colours takes seconds
            async with flow(1) as place:
                await place.add(2, scene)
                place.models.put(on_trial(release(1), release(2), jury, HALF))
                place.send(INSIDE)
                await place.answered(1)
        assert place.outcomes() == {"published": 1}
        assert place.results[0]["model_version"] == "1"
        assert jury.seen[0].candidate["onnx"].error is not None
        assert ("A defect with a new version" in {line["event"] for line in logs}) is (scene is defect)


async def test_a_damaged_picture_is_nobodys_fault() -> None:
    jury = Witness(pairs=9)
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        for camera in (INSIDE, OUTSIDE):
            place.send(camera, JPEG[:-300])
        await place.answered(2)
    assert [body["error"]["code"] for body in place.errors] == ["IMAGE_UNDECODABLE"] * 2
    assert (place.triton.requests, jury.seen) == ([], [])


async def test_a_triton_that_is_away_is_nobodys_fault_and_waited_for() -> None:
    jury = Witness()
    async with flow(1, 2) as place:
        names = [triton_name(variant, version) for variant in ("onnx", "torch") for version in (1, 2)]
        for name in names:
            place.triton.fail(name, BackendUnavailable("gone"))
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        place.send(INSIDE)
        failed = {"model": "detector", "variant": "torch", "code": "BACKEND_UNAVAILABLE"}
        await until(lambda: bool(place.metrics.value("inference_errors_total", **failed)), "the first try")
        for name in names:
            place.triton.fail(name, None)
        await place.answered(1)
    assert place.results[0]["model_version"] == "2"
    assert [seen.published_by_candidate for seen in jury.seen] == [True]
    assert jury.seen[0].candidate["onnx"].error is None


async def test_a_candidate_gone_from_triton_is_at_fault_only_while_it_is_said_to_serve() -> None:
    jury = Witness()
    candidate = release(2)
    gone = release(2, onnx=State.LOADING, torch=State.LOADING)
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), candidate, jury, HALF))
        for variant in ("onnx", "torch"):
            place.triton.fail(triton_name(variant, 2), ModelUnavailable("not found"))
        place.send(INSIDE)
        await place.answered(1)
        place.triton.hold(triton_name("onnx", 2))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 2))
        place.models.put(on_trial(release(1), gone, jury, HALF))
        place.triton.release(triton_name("onnx", 2))
        await place.answered(2)
    assert place.outcomes() == {"published": 2}
    assert [list(seen.candidate) for seen in jury.seen] == [["onnx"], []]


async def test_a_stable_version_that_fails_during_a_trial_is_observed_too() -> None:
    jury = Witness()
    async with flow(1, 2) as place:
        for variant in ("onnx", "torch"):
            place.triton.fail(triton_name(variant, 1), BackendRejected("no"))
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        place.send(OUTSIDE)
        await place.answered(1)
    assert place.outcomes() == {"failed": 1}
    assert [(dict(seen.candidate), list(seen.stable)) for seen in jury.seen] == [({}, ["onnx"])]


async def test_a_jury_with_a_defect_costs_no_snapshot_its_answer() -> None:
    class Defective:
        @property
        def wants_pairs(self) -> bool:
            raise RuntimeError("a defect")

        def saw(self, observation: Observation) -> None:
            raise RuntimeError("a defect")

    with capture_logs() as logs:
        async with flow(1, 2) as place:
            for share in (0.0, HALF):
                place.models.put(on_trial(release(1), release(2), Defective(), share))
                place.send(INSIDE)
                await place.answered(1 + bool(share))
    assert place.outcomes() == {"published": 2}
    assert not place.errors
    assert [line["event"] for line in logs].count("A defect in judging a new version") == 4


def thermometer(version: int, window: int) -> ServedModel:
    """One version of a model on readings."""
    model = sensor_spec("detector", variants={"onnx": "x"}, sensor={"window": window, "stride": 1})
    variant = ServedVariant(
        "onnx",
        triton_name("onnx", version),
        State.READY,
        version=str(version),
        plan=WindowPlan("window", (window, 1)),
        outputs={"reconstruction": BoundOutput("reconstruction", batch_axis=True)},
    )
    return ServedModel(model, ("normal", "anomaly"), {"onnx": variant}, version=version)


def zeros(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"reconstruction": np.zeros_like(inputs["window"])}


@pytest.mark.parametrize(("window", "answers"), [(4, "2"), (9, "1")], ids=["the same windows", "others"])
async def test_windows_of_readings_go_to_a_candidate_that_takes_them(window: int, answers: str) -> None:
    jury = Witness()
    async with flow() as place:
        for version, size in ((1, 4), (2, window)):
            shape = (-1, size, 1)
            inputs, outputs = (TensorSpec("window", "FP32", shape),), (TensorSpec("reconstruction", "FP32", shape),)
            name = triton_name("onnx", version)
            place.triton.add_model(ModelSignature(name, str(version), inputs, outputs, 8), zeros)
            await place.triton.load(name)
        place.models.put(on_trial(thermometer(1, 4), thermometer(2, window), jury, 1.0))
        body = {"sensor_id": "t-1", "timestamp": 1_697_385_600, "values": [0.0, 0.0, 0.0, 2.0]}
        place.broker.publish("edge-ai/bu/plant/gw/sensors/t-1", msgspec.json.encode(body))
        await place.answered(1)
    policy, reason = selection(place.results[0])
    assert place.results[0]["model_version"] == answers
    assert policy == ("canary" if answers == "2" else "fallback")
    assert answers == "2" or reason == "version 2 does not serve: it takes something else"
    assert [seen.published_by_candidate for seen in jury.seen] == [answers == "2"]


LAYOUTS = '''
import threading
import numpy as np
from gateway.layouts import Detections, layout

release = threading.Event()

@layout("trial-sees", task="object-detection", outputs={"output": ("rows", "N")})
def sees(outputs, head):
    """Sees nothing."""
    return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))

@layout("trial-sleeps", task="object-detection", outputs={"output": ("rows", "N")})
def sleeps(outputs, head):
    """Does not come back."""
    release.wait(60)
    raise ValueError("too late")
'''


async def test_a_layout_that_never_ends_and_comes_with_a_candidate_holds_up_none_of_the_stable_version(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(LAYOUTS)
    load_custom_layouts(tmp_path)
    stable, candidate = (
        release(number, spec(inference={"output": f"trial-{what}"})) for number, what in ((1, "sees"), (2, "sleeps"))
    )
    async with flow(1, 2) as place:
        place.models.put(on_trial(stable, candidate, Witness(), HALF))
        for number in range(8):
            place.send((INSIDE, OUTSIDE)[number % 2], deadline_ms=1000)
        await place.answered(8)
        assert place.pipeline.stuck
        sys.modules[f"layout file {tmp_path / 'mine.py'}"].release.set()
        await until(lambda: not place.pipeline.stuck, "the end of the layout")
    assert place.outcomes() == {"published": 8}
    assert place.versions_of(INSIDE) == ["1"] * 4
