"""Variants that fail, hang or answer garbage: the other one answers, and nobody waits for them twice."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog.testing
from numpy.typing import NDArray

from gateway.errors import (
    BackendRejected,
    BackendUnavailable,
    InternalError,
    ModelCrashed,
    SnapshotError,
)
from gateway.flow.breakers import Attempt, Breakers
from gateway.live import Live
from gateway.messages import Prepared
from gateway.metrics import Metrics
from gateway.models.catalog import Catalog, Models, State
from gateway.testing import MemoryTriton
from tests import harness
from tests.flow.builders import jpeg, settings, signature, spec
from tests.flow.test_sensor_flow import SENSOR, TOPIC, reading, thermometer
from tests.flow.test_variants import chosen
from tests.flow.trial_site import A_HELMET, CAMERAS, Flow, Witness, flow, on_trial, release
from tests.harness import TIMEOUT_S, alive, until

ONNX, TORCH = "detector-onnx-1", "detector-torch-1"
FAILURES = 3
NEVER_S = 600.0
REJECTED = BackendRejected("CUDA error")


@contextlib.asynccontextmanager
async def site(**environment: Any) -> AsyncIterator[Flow]:
    """A detector with two variants, of which onnx is asked; opens after three failures."""
    async with flow(1, **{"breaker_failures": FAILURES, "breaker_open_s": NEVER_S, **environment}) as place:
        place.models.put(release(1))
        await until(lambda: standing(place) == "closed")
        yield place


def standing(place: Flow, variant: str = "onnx") -> str:
    """The one state that the metrics show."""
    (state,) = [
        state
        for state in ("closed", "open", "half_open")
        if place.metrics.value("circuit_breaker_state", model="detector", variant=variant, state=state)
    ] or ["none"]
    return state


def opened(place: Flow, variant: str = "onnx") -> float:
    return place.metrics.value("circuit_breaker_opened_total", model="detector", variant=variant)


async def send(place: Flow, count: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Snapshots one after the other; their answers."""
    before = len(place.results) + len(place.errors)
    for number in range(count):
        place.send(CAMERAS[number % len(CAMERAS)], **more)
        await place.answered(before + number + 1)
    return place.results[-count:]


async def send_until(place: Flow, condition: Callable[[], bool]) -> list[dict[str, Any]]:
    """Snapshots one after the other until it holds; their answers."""
    deadline, before = time.monotonic() + TIMEOUT_S, len(place.results)
    while not condition():
        assert time.monotonic() < deadline, "sent snapshots in vain"
        await send(place)
    return place.results[before:]


def onnx_asked(place: Flow) -> int:
    return place.asked(1).count(ONNX)


async def add_other(place: Flow) -> None:
    """Have a second model that serves."""
    other = release(7, spec("other"))
    for variant in other.variants.values():
        place.triton.add_model(replace(signature(variant.triton_model), version="7"), A_HELMET)
        await place.triton.load(variant.triton_model)
    place.models.put(other)


async def open_onnx(place: Flow, error: SnapshotError = REJECTED) -> None:
    place.triton.fail(ONNX, error)
    await send(place, FAILURES)
    assert standing(place) == "open"


async def test_a_variant_that_fails_in_a_row_is_not_asked_and_the_other_one_answers() -> None:
    with structlog.testing.capture_logs() as lines:
        async with site() as place:
            place.triton.fail(ONNX, REJECTED)
            await send(place, FAILURES - 1)
            assert standing(place) == "closed"
            await send(place)
            assert (standing(place), opened(place), onnx_asked(place)) == ("open", 1, FAILURES)
            (body,) = await send(place)
            await send(place, 5)
            assert onnx_asked(place) == FAILURES
            assert place.outcomes() == {"published": FAILURES + 6}
            assert body["backend_used"] == "torch"
            selection = body["metadata"]["selection"]
            assert selection["policy"] == "fallback"
            assert selection["reason"].startswith("onnx is not asked: it has failed 3 times in a row")
            assert place.metrics.value("fallbacks_total", model="detector", variant="torch") == FAILURES + 6
            assert place.models.given_up["detector", "onnx"].state == "open"
    said = [line for line in lines if "not asked for now" in line["event"]]
    assert [(line["variant"], line["reason"]) for line in said] == [("onnx", "CUDA error")]


async def test_failures_with_answers_in_between_do_not_add_up() -> None:
    async with site() as place:
        for _ in range(3):
            place.triton.fail(ONNX, REJECTED)
            await send(place, FAILURES - 1)
            place.triton.fail(ONNX, None)
            await send(place)
        assert (standing(place), opened(place)) == ("closed", 0)


def garbage(what: str) -> Any:
    def answer(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        output = np.array(A_HELMET(inputs)["output0"])
        match what:
            case "nan" | "inf":
                output[0, 5, 3] = float(what)
            case "shape":
                output = output[:, :3]
            case "batch":
                output = np.repeat(output, 2, axis=0)
            case "no batch axis":
                output = np.array(1.0, np.float32)
            case "empty":
                output = output[:, :, :0]
        return {"output0": output} if what != "missing" else {"other": output}

    return answer


@pytest.mark.parametrize("what", ["nan", "inf", "shape", "batch", "no batch axis", "missing"])
async def test_garbage_is_a_failure_that_names_the_tensor(what: str) -> None:
    async with site() as place:
        place.triton.add_model(signature(ONNX), garbage(what))
        await place.triton.load(ONNX)
        with structlog.testing.capture_logs() as lines:
            results = await send(place, FAILURES)
        assert standing(place) == "open"
        assert {body["backend_used"] for body in results} == {"torch"}
        assert "BACKEND_INVALID_RESPONSE" in results[0]["metadata"]["selection"]["reason"]
        (line,) = [line for line in lines if "not asked for now" in line["event"]]
        assert "output" in line["reason"]
        if what in ("nan", "inf"):
            assert "output0" in line["reason"]


async def test_what_every_variant_refuses_may_be_the_pictures_fault() -> None:
    async with site() as place:
        for model in (ONNX, TORCH):
            place.triton.fail(model, REJECTED)
        await send(place, 2 * FAILURES)
        assert (standing(place), standing(place, "torch")) == ("closed", "closed")
        assert onnx_asked(place) == 2 * FAILURES
        assert place.outcomes() == {"failed": 2 * FAILURES}


@pytest.mark.parametrize("what", ["nan", "shape"])
@pytest.mark.parametrize("variants", [("onnx",), ("onnx", "torch"), ("onnx", "torch", "tensorrt")], ids=len)
async def test_garbage_is_the_models_fault_though_no_variant_answers_and_each_is_asked_once(
    tmp_path: Path, variants: tuple[str, ...], what: str
) -> None:
    triton = MemoryTriton()
    for name in variants:
        triton.add_model(signature(f"detector-{name}"), garbage(what))
    harness.write_model(tmp_path, variants={name: f"detector-{name}" for name in variants})
    more: dict[str, Any] = {"breaker_failures": FAILURES, "breaker_open_s": NEVER_S, "snapshot_deadline_ms": 1000}
    async with harness.site(tmp_path, triton=triton, **more) as place:
        for count in range(1, FAILURES + 1):
            place.snapshot(jpeg(seed=count))
            await place.answered(count)
            assert len(triton.requests) == count * len(variants)
        assert {key[1] for key in place.gateway.models.given_up} == set(variants)
        place.snapshot(jpeg(seed=0))
        await place.answered(FAILURES + 1)
        assert len(triton.requests) == FAILURES * len(variants)
    assert {body["error"]["code"] for body in place.errors} == {"BACKEND_INVALID_RESPONSE"}


async def test_numbers_without_bounds_may_make_a_sound_model_answer_nan(tmp_path: Path) -> None:
    """Readings are the sender's: one who sends absurd ones must not take the model from the other sensors."""
    triton = thermometer(answer=lambda inputs: {"reconstruction": inputs["window"] * np.nan})
    harness.write_model(tmp_path, **SENSOR)
    async with harness.site(tmp_path, triton=triton, breaker_failures=1) as place:
        for number in range(8):
            place.snapshot(reading(number), topic=TOPIC)
        await until(lambda: len(place.errors) >= 2)
        assert {body["error"]["code"] for body in place.errors} == {"BACKEND_INVALID_RESPONSE"}
        assert not place.gateway.models.given_up


async def test_nothing_of_a_snapshot_stays_when_its_variants_are_given_up(tmp_path: Path) -> None:
    def crash(inputs: object) -> Any:
        raise ModelCrashed("the process of the model has ended")

    triton = MemoryTriton()
    for name in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(name), crash)
    more: dict[str, Any] = {"breaker_failures": 1, "breaker_open_s": NEVER_S, "snapshot_deadline_ms": 400}
    async with harness.site(tmp_path, triton=triton, **more) as place:
        before = alive(Prepared)
        place.snapshot(jpeg())
        await place.answered(1)
        await until(lambda: alive(Prepared) <= before, "the end of the snapshot")


def test_a_snapshot_asks_a_variant_once() -> None:
    models = Models()
    models.put(release(1))
    breakers = Breakers(Live(settings()), models, Metrics())
    breakers.follow(models.current)
    model = models.current.models["detector"]
    with Attempt(breakers, model) as attempt:
        attempt.begin("onnx", needed=True)
        with pytest.raises(InternalError, match="asked twice"):
            attempt.begin("onnx", needed=True)
    breaker = breakers.of(model, "onnx")
    assert breaker is not None
    assert breaker.asked == 0


async def test_damaged_pictures_and_impatient_senders_open_nothing() -> None:
    async with site() as place:
        for number in range(2 * FAILURES):
            place.send(image=b"\xff\xd8 no picture %d" % number)
        await place.answered(2 * FAILURES)
        place.triton.hold(ONNX)
        place.triton.hold(TORCH)
        await send(place, 2 * FAILURES, deadline_ms=30)
        assert (standing(place), standing(place, "torch")) == ("closed", "closed")


async def test_a_triton_that_is_away_opens_nothing_and_is_asked_again_as_soon_as_it_is_back() -> None:
    async with site(snapshot_deadline_ms=20_000) as place:
        for model in (ONNX, TORCH):
            place.triton.fail(model, BackendUnavailable("connection refused"))
        for number in range(2 * FAILURES):
            place.send(CAMERAS[number])
        await until(lambda: onnx_asked(place) >= 2 * FAILURES)
        assert standing(place) == standing(place, "torch") == "closed"
        for model in (ONNX, TORCH):
            place.triton.fail(model, None)
        await place.answered(2 * FAILURES)
        assert place.outcomes() == {"published": 2 * FAILURES}


async def test_one_variant_alone_that_cannot_be_reached_is_given_up() -> None:
    async with site() as place:
        await open_onnx(place, BackendUnavailable("no route to this instance"))


async def test_a_variant_that_hangs_is_waited_for_a_bounded_number_of_times() -> None:
    async with site(infer_timeout_ms=100, max_in_flight=2) as place:
        place.triton.hold(ONNX)
        for number in range(20):
            place.send(CAMERAS[number % 8])
        await place.answered(20)
        assert onnx_asked(place) == FAILURES
        assert {body["backend_used"] for body in place.results} == {"torch"}
        await send(place, 5)
        assert onnx_asked(place) == FAILURES, "no snapshot pays the time-out any more"


async def test_in_dual_mode_the_comparison_says_at_once_why_it_is_missing() -> None:
    async with site(infer_timeout_ms=60, enable_dual_backend=True) as place:
        place.triton.hold(ONNX)
        await send(place, FAILURES)
        place.seen.clear()
        place.send()
        await until(lambda: bool(place.of("dual_backend_comparison") and place.results))
    (result,) = place.results
    assert (result["backend_used"], result["metadata"]["selection"]["policy"]) == ("torch", "dual")
    assert "onnx is not asked" in result["metadata"]["selection"]["reason"]
    assert result["metadata"]["timings_ms"]["infer"] < 60
    assert "has failed 3 times in a row" in str(place.of("dual_backend_comparison")[0])


async def test_one_snapshot_at_a_time_tries_it_again_and_waits_for_nothing() -> None:
    async with site(breaker_open_s=0.05, infer_timeout_ms=60_000, snapshot_deadline_ms=60_000) as place:
        await open_onnx(place)
        place.triton.fail(ONNX, None)
        place.triton.hold(ONNX)
        await until(lambda: place.models.given_up["detector", "onnx"].state == "open")
        before = onnx_asked(place)
        bodies = await send_until(place, lambda: standing(place) == "half_open")
        assert {body["backend_used"] for body in bodies} == {"torch"}
        await place.triton.wait_until_held(ONNX)
        await send(place, 10)
        assert onnx_asked(place) == before + 1
        assert place.metrics.value("circuit_breaker_opened_total", model="detector", variant="onnx") == 1
        place.triton.release(ONNX)
        await until(lambda: standing(place) == "closed")
        assert place.models.given_up == {}
        (body,) = await send(place)
        assert (body["backend_used"], body["metadata"]["selection"]["policy"]) == ("onnx", "single")


async def test_a_probe_that_fails_or_answers_garbage_leaves_it_open() -> None:
    async with site(breaker_open_s=0.02) as place:
        place.triton.add_model(signature(ONNX), garbage("nan"))
        await place.triton.load(ONNX)
        await send(place, FAILURES)
        asked = onnx_asked(place)
        bodies = await send_until(place, lambda: onnx_asked(place) >= asked + 3)
        assert {body["backend_used"] for body in bodies} == {"torch"}
        await until(lambda: standing(place) == "open")
        assert opened(place) == 1


async def test_a_snapshot_on_which_the_other_one_fails_tries_it_before_its_time() -> None:
    async with site() as place:
        await open_onnx(place)
        place.triton.fail(ONNX, None)
        place.triton.fail(TORCH, REJECTED)
        (body,) = await send(place)
        assert body["backend_used"] == "onnx"
        assert standing(place) == "closed"


async def test_in_dual_mode_too_garbage_of_the_other_one_tries_it_before_its_time() -> None:
    async with site(enable_dual_backend=True) as place:
        await open_onnx(place)
        place.triton.fail(ONNX, None)
        place.triton.add_model(signature(TORCH), garbage("nan"))
        await place.triton.load(TORCH)
        (body,) = await send(place)
        assert body["backend_used"] == "onnx"


async def test_both_hung_snapshots_wait_in_the_queue_and_hold_up_no_other_model() -> None:
    async with site(infer_timeout_ms=50, snapshot_deadline_ms=1000, max_in_flight=2, breaker_open_s=0.2) as place:
        await add_other(place)
        place.triton.hold(ONNX)
        place.triton.hold(TORCH)
        for number in range(2 * FAILURES):
            place.send(CAMERAS[number], model_name="detector")
        await until(lambda: standing(place) != "closed" and standing(place, "torch") != "closed")
        place.seen.clear()
        for number in range(8):
            place.send(f"late-{number}", model_name="detector")
        for number in range(10):
            place.send("other-camera", model_name="other")
            await until(functools.partial(lambda wanted: len(place.results) == wanted, number + 1))
        await until(lambda: sum(body["device_id"].startswith("late") for body in place.errors) == 8)
        # The deadline of one may come just when its turn has.
        messages = {body["error"]["message"] for body in place.errors}
        assert messages - {"the time ran out before the variant could be asked"} == {"Triton did not answer in time"}
        place.triton.release(ONNX)
        place.triton.release(TORCH)
        place.seen.clear()
        place.send(model_name="detector")
        await until(lambda: len(place.results) == 1)


async def test_while_nothing_can_be_asked_a_snapshot_waits_without_a_place_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.flow.pipeline.RETRY_S", 2 * TIMEOUT_S)
    async with site(breaker_failures=1, max_in_flight=1, snapshot_deadline_ms=NEVER_S * 1000) as place:
        await add_other(place)
        for model in (ONNX, TORCH):
            place.triton.fail(model, ModelCrashed("the process of the model has ended"))
        place.send(model_name="detector")
        await until(lambda: standing(place) == standing(place, "torch") == "open")
        place.send(model_name="other")
        await until(lambda: len(place.of("ai_inference_result")) == 1)


async def test_a_model_of_one_variant_waits_for_the_probe_within_its_deadline() -> None:
    async with flow(breaker_failures=2, breaker_open_s=0.1, infer_timeout_ms=60) as place:
        place.triton.add_model(signature("detector-onnx-1"), A_HELMET)
        await place.triton.load(ONNX)
        place.models.put(release(1, spec(variants={"onnx": "detector-onnx"})))
        await until(lambda: standing(place) == "closed")
        place.triton.hold(ONNX)
        await send(place, 2)
        assert standing(place) == "open"
        place.triton.release(ONNX)
        place.send()
        await until(lambda: len(place.results) == 1)
        assert standing(place) == "closed"


async def test_a_variant_that_is_loaded_again_is_tried_by_the_next_snapshot() -> None:
    async with site() as place:
        await open_onnx(place, ModelCrashed("the process of the model has ended"))
        place.triton.fail(ONNX, None)
        lost = release(1, onnx=State.LOADING)
        place.models.put(lost)
        await send(place)
        assert standing(place) == "open"
        place.models.put(lost.with_variant(replace(lost.variants["onnx"], state=State.READY)))
        await send(place)
        await until(lambda: standing(place) == "closed")


async def test_what_was_given_up_is_tried_as_soon_as_triton_is_back(tmp_path: Path) -> None:
    async with harness.site(tmp_path, breaker_failures=1, breaker_open_s=NEVER_S) as place:
        names = ("detector-onnx", "detector-torch")
        for name in names:
            place.triton.fail(name, ModelCrashed("the process of the model has ended"))
        place.snapshot(jpeg())
        await until(lambda: len(place.gateway.models.given_up) == 2)
        for name in names:
            place.triton.fail(name, None)
        place.triton.stop()
        await until(lambda: not place.gateway.health.report().ready)
        place.triton.start()
        await place.answered(1)
        assert place.outcomes() == {"published": 1}


async def test_another_version_begins_anew_and_a_removed_model_leaves_nothing() -> None:
    async with site() as place:
        await place.add(2)
        await open_onnx(place)
        place.models.put(release(2))
        await until(lambda: standing(place) == "closed")
        assert place.models.given_up == {}
        place.models.remove("detector")
        await until(lambda: standing(place) == "none")
        samples = [sample for metric in place.metrics.registry.collect() for sample in metric.samples]
        assert not [sample for sample in samples if "breaker" in sample.name]


async def test_a_candidate_that_fails_opens_nothing_and_goes_on_being_seen() -> None:
    async with site() as place:
        await place.add(2)
        witness = Witness()
        place.models.put(on_trial(release(1), release(2), witness, share=1.0))
        for variant in ("onnx", "torch"):
            place.triton.fail(f"detector-{variant}-2", REJECTED)
        await send(place, 3 * FAILURES)
        assert (standing(place), standing(place, "torch")) == ("closed", "closed")
        assert len(place.asked(2)) == 2 * 3 * FAILURES
        assert sum(each.candidate["onnx"].error is not None for each in witness.seen) == 3 * FAILURES
        assert place.outcomes() == {"published": 3 * FAILURES}


async def test_the_limits_can_be_changed_while_it_runs() -> None:
    async with site(breaker_failures=1000) as place:
        place.triton.fail(ONNX, REJECTED)
        await send(place, 5)
        assert standing(place) == "closed"
        place.pipeline._live.replace(settings(breaker_failures=6))
        await send(place)
        assert standing(place) == "open"


async def test_an_empty_catalogue_has_no_breakers() -> None:
    async with site() as place:
        place.models.current = Catalog()
        place.models.say_changed()
        await until(lambda: standing(place) == "none")


def test_what_is_withheld_comes_last_and_answers_where_nothing_else_serves() -> None:
    def onnx(name: str) -> str:
        return "it fails" if name == "onnx" else ""

    selection = chosen(withheld=onnx)
    assert (selection.policy, selection.primary, selection.fallback) == ("fallback", "torch", ("onnx",))
    assert selection.reason == "onnx is not asked: it fails"
    dual = chosen(preference="dual", withheld=onnx)
    assert (dual.policy, dual.primary, dual.compared) == ("dual", "torch", ("onnx",))
    both = chosen(withheld=lambda name: "it fails")
    assert (both.primary, both.fallback) == ("onnx", ("torch",))
