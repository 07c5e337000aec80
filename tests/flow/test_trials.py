"""A new version is tried in the way of the snapshots, and no snapshot pays for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BackendRejected, BackendUnavailable, ModelUnavailable
from gateway.layouts.binding import BoundOutput
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.catalog import ServedModel, ServedVariant, State, bucket
from gateway.models.input_plan import WindowPlan
from gateway.models.trial import Observation
from tests.flow.builders import sensor_spec, signature, spec
from tests.flow.trial_site import JPEG, Flow, Witness, flow, on_trial, release, triton_name
from tests.harness import HELMET, NO_HELMET, sees, until

CAMERAS = tuple(f"camera-{number:02}" for number in range(8))
HALF = 0.5
INSIDE = next(name for name in CAMERAS if bucket("detector", name) < HALF)
OUTSIDE = next(name for name in CAMERAS if bucket("detector", name) >= HALF)


def selection(body: dict[str, Any]) -> tuple[str, str]:
    chosen = body["metadata"]["selection"]
    return chosen["policy"], chosen["reason"]


def versions_of(place: Flow, device: str) -> list[str]:
    return [body["model_version"] for body in place.results if body["device_id"] == device]


# --- who answers -----------------------------------------------------------------------------------------


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
    assert (versions_of(place, INSIDE), versions_of(place, OUTSIDE)) == (["2"], ["1", "2"])
    assert sorted(request.version for request in place.triton.requests) == ["", "1", "2"]


# --- a candidate that fails ------------------------------------------------------------------------------


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
        async with flow(1) as place:
            await place.add(2, scene)
            place.models.put(on_trial(release(1), release(2), jury, HALF))
            place.send(INSIDE)
            await place.answered(1)
        assert place.outcomes() == {"published": 1}
        assert place.results[0]["model_version"] == "1"
        assert jury.seen[0].candidate["onnx"].error is not None


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
        await until(lambda: bool(place.asked(2)), "the first try")
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

    async with flow(1, 2) as place:
        for share in (0.0, HALF):
            place.models.put(on_trial(release(1), release(2), Defective(), share))
            place.send(INSIDE)
        await place.answered(2)
    assert place.outcomes() == {"published": 2}
    assert not place.errors


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
        await until(lambda: bool(place.results), "the answer")
    policy, reason = selection(place.results[0])
    assert place.results[0]["model_version"] == answers
    assert policy == ("canary" if answers == "2" else "fallback")
    assert answers == "2" or reason == "version 2 does not serve: it takes something else"
    assert [seen.published_by_candidate for seen in jury.seen] == [answers == "2"]


# --- in shadow -------------------------------------------------------------------------------------------


async def test_in_shadow_every_variant_of_the_candidate_is_asked_and_nothing_of_it_is_published() -> None:
    jury = Witness(pairs=1)
    async with flow(1) as place:
        await place.add(2, sees(NO_HELMET))
        place.models.put(on_trial(release(1), release(2), jury))
        place.send(INSIDE)
        await until(lambda: bool(jury.seen), "the pair")
        await place.answered(1)
        place.send(INSIDE)
        await place.answered(2)
        await until(lambda: len(jury.seen) == 2, "the second observation")
    assert place.asked(2) == [triton_name("onnx", 2), triton_name("torch", 2)], "one pair, as the jury wants"
    assert versions_of(place, INSIDE) == ["1", "1"]
    assert not place.of("ai_alert"), "the candidate has seen somebody without a helmet"
    first, second = jury.seen
    assert (list(first.stable), list(first.candidate)) == (["onnx"], ["onnx", "torch"])
    assert first.candidate["torch"].predictions[0].class_name == "person_without_helmet"
    assert (list(second.stable), dict(second.candidate)) == (["onnx"], {})
    counted = place.metrics.value("inference_duration_seconds_count", model="detector", variant="torch")
    assert counted == 0
    assert place.metrics.value("predictions_total", model="detector", **{"class": "person_without_helmet"}) == 0


async def test_a_candidate_that_fails_in_shadow_is_observed_with_its_error() -> None:
    jury = Witness(pairs=1)
    async with flow(1, 2) as place:
        place.triton.fail(triton_name("torch", 2), BackendRejected("no"))
        place.models.put(on_trial(release(1), release(2), jury))
        place.send(INSIDE)
        await until(lambda: bool(jury.seen), "the pair")
    errors = {name: result.error and result.error.code for name, result in jury.seen[0].candidate.items()}
    assert errors == {"onnx": None, "torch": "BACKEND_REJECTED"}
    assert (
        place.metrics.value("inference_errors_total", model="detector", variant="torch", code="BACKEND_REJECTED") == 0
    )


async def test_shadow_work_neither_delays_nor_outlives_what_it_needs() -> None:
    jury = Witness(pairs=9)
    async with flow(1, 2) as place:
        place.triton.hold(triton_name("onnx", 2))
        place.models.put(on_trial(release(1), release(2), jury))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 2))
        assert versions_of(place, INSIDE) == ["1"], "published before the candidate is asked"
        for _ in range(5):
            place.send(INSIDE)
        await place.answered(6)
        assert len(place.asked(2)) == 1, "one at a time"
        assert place.pipeline.in_flight("detector", 2) == 1
        assert place.pipeline.in_flight("detector", 1) == 0
        place.triton.release(triton_name("onnx", 2))
        await until(lambda: place.pipeline.in_flight("detector", 2) == 0, "the shadow to end")
        await until(lambda: len(jury.seen) == 6, "an observation of each")


async def test_a_trial_that_is_over_sends_nothing_more_to_its_candidate() -> None:
    jury = Witness(pairs=9)
    async with flow(1, 2) as place:
        place.triton.hold(triton_name("onnx", 1))
        place.models.put(on_trial(release(1), release(2), jury))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 1))
        place.models.put(release(1))
        place.triton.release(triton_name("onnx", 1))
        await place.answered(1)
        await until(lambda: len(jury.seen) == 1, "the observation")
        assert place.pipeline.in_flight("detector", 2) == 0
    assert not place.asked(2)


async def test_in_a_canary_the_stable_version_is_asked_for_the_same_variant() -> None:
    jury = Witness(pairs=1)
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        place.send(INSIDE, backend_preference="torch")
        await until(lambda: bool(jury.seen), "the pair")
        place.send(OUTSIDE)
        await until(lambda: len(jury.seen) == 2, "the other camera")
    assert place.asked(1) == [triton_name("torch", 1), triton_name("onnx", 1)]
    first = jury.seen[0]
    assert (list(first.candidate), list(first.stable), first.published_by_candidate) == (["torch"], ["torch"], True)


async def test_shadow_work_waits_while_many_snapshots_do_but_not_for_ever() -> None:
    jury = Witness(pairs=1000)
    async with flow(1, 2, max_in_flight=1, queue_max_messages=100) as place:
        place.models.put(on_trial(release(1), release(2), jury))
        place.triton.hold(triton_name("onnx", 1))
        for number in range(60):
            place.send(CAMERAS[number % 8])
        await until(lambda: place.metrics.value("queue_messages") == 59, "a full queue")
        place.triton.release(triton_name("onnx", 1))
        await until(lambda: place.metrics.value("queue_messages") < 30, "half of it")
        assert 1 <= sum(name == triton_name("onnx", 2) for name in place.asked(2)) <= 2
        await place.answered(60)


async def test_a_gateway_that_stops_begins_no_shadow_work() -> None:
    jury = Witness(pairs=9)
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), release(2), jury))
        place.pipeline.wind_down()
        place.send(INSIDE)
        await place.answered(1)
        await until(lambda: len(jury.seen) == 1, "the observation")
        assert place.pipeline.idle
    assert not place.asked(2)


async def test_shadow_work_under_way_at_the_end_is_given_up() -> None:
    async with flow(1, 2) as place:
        place.triton.hold(triton_name("onnx", 2))
        place.models.put(on_trial(release(1), release(2), Witness(pairs=9)))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 2))
        place.pipeline.close()
        await until(lambda: place.pipeline.in_flight("detector", 2) == 0, "nothing in flight")


# --- in order --------------------------------------------------------------------------------------------


async def test_a_new_version_waits_until_the_one_before_has_answered_its_camera() -> None:
    async with flow(1, 2) as place:
        place.models.put(release(1))
        place.triton.hold(triton_name("onnx", 1))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 1))
        place.models.put(release(2))
        place.send(INSIDE)
        place.send(OUTSIDE)
        await until(lambda: versions_of(place, OUTSIDE) == ["2"], "a camera that waits for nothing")
        assert place.pipeline.in_flight("detector", 1) == 1
        assert not versions_of(place, INSIDE)
        place.triton.release(triton_name("onnx", 1))
        await place.answered(3)
        assert place.pipeline.in_flight("detector", 1) == place.pipeline.in_flight("detector", 2) == 0
    assert versions_of(place, INSIDE) == ["1", "2"]


async def test_one_that_waits_for_its_turn_has_its_deadline_all_the_same() -> None:
    async with flow(1, 2) as place:
        place.models.put(release(1))
        place.triton.hold(triton_name("onnx", 1))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 1))
        place.models.put(release(2))
        place.send(INSIDE, deadline_ms=100)
        await until(lambda: len(place.errors) == 1, "the deadline")
        place.triton.release(triton_name("onnx", 1))
        await place.answered(2)
    assert place.errors[0]["error"]["code"] == "DEADLINE_EXCEEDED"


def idle(place: Flow, version: int) -> bool:
    return not place.pipeline.in_flight("detector", version)


def _steps(candidate: int) -> list[ServedModel]:
    """The catalogue's entries of one rollout, in order."""
    stable, new, jury = release(candidate - 1), release(candidate), Witness(pairs=5)
    return [on_trial(stable, new, jury, share) for share in (0.0, 0.3, 0.6, 1.0)] + [new]


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_versions_never_go_back_and_each_snapshot_has_one_outcome_whatever_is_switched_when(
    rng: random.Random, in_flight: int
) -> None:
    async def run() -> None:
        async with flow(1, 2, 3, max_in_flight=in_flight, queue_max_messages=1000) as place:
            place.models.put(release(1))
            entries = [*_steps(2), *_steps(3)]
            sent = 0
            for entry in entries:
                for _ in range(rng.randrange(1, 12)):
                    place.send(rng.choice(CAMERAS[:5]))
                    sent += 1
                    if rng.random() < 0.3:
                        name = triton_name("onnx", rng.randrange(1, 4))
                        rng.choice([place.triton.hold, place.triton.release])(name)
                    for _ in range(rng.randrange(6)):
                        await asyncio.sleep(0)
                place.models.put(entry)
            for number in (1, 2, 3):
                place.triton.release(triton_name("onnx", number))
            await place.answered(sent)
            for number in (1, 2, 3):
                await until(partial(idle, place, number), f"version {number} to be idle")
            assert place.outcomes() == {"published": sent}
            assert len({body["result_id"] for body in place.results}) == len(place.results) == sent
            for camera in CAMERAS[:5]:
                seen = versions_of(place, camera)
                assert seen == sorted(seen), f"{camera} went back: {seen}"

    asyncio.run(run())


async def test_a_candidate_that_fails_at_random_under_load_costs_no_snapshot_its_answer() -> None:
    rng, jury = random.Random(7), Witness(pairs=20)

    def moody(_inputs: object) -> dict[str, Any]:
        if rng.random() < 0.4:
            raise BackendRejected("a bad moment")
        return dict(sees(HELMET)({}))

    async with flow(1, queue_max_messages=1000) as place:
        await place.add(2, moody)
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        for number in range(200):
            place.send(CAMERAS[number % 5])
        await place.answered(200)
        await until(lambda: len(jury.seen) == 200, "an observation of each snapshot")
    assert place.outcomes() == {"published": 200}
    assert any(result.error for seen in jury.seen for result in seen.candidate.values())


# --- models that come and go -----------------------------------------------------------------------------


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
