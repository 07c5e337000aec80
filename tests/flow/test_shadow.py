"""The other version sees some snapshots too, after they have their answer."""

from __future__ import annotations

import time

from gateway.errors import BackendRejected
from tests.flow.trial_site import (
    CAMERAS,
    HALF,
    INSIDE,
    OUTSIDE,
    Witness,
    flow,
    on_trial,
    release,
    triton_name,
)
from tests.harness import NO_HELMET, sees, until


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
    assert place.versions_of(INSIDE) == ["1", "1"]
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
        assert place.versions_of(INSIDE) == ["1"], "published before the candidate is asked"
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
    jury = Witness(pairs=2)
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        place.send(INSIDE, backend_preference="torch")
        await until(lambda: bool(jury.seen), "the pair")
        place.send(OUTSIDE)
        await until(lambda: len(jury.seen) == 2, "the other camera")
    assert place.asked(2) == [triton_name("torch", 2)], "a camera of the stable version is none of the candidate's"
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
        started = time.monotonic()
        place.triton.release(triton_name("onnx", 1))
        await until(lambda: place.metrics.value("queue_messages") < 30, "half of it")
        at_most = 2 + (time.monotonic() - started)
        assert 1 <= sum(name == triton_name("onnx", 2) for name in place.asked(2)) <= at_most
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
