"""No camera is answered by a version and then by one before it, whatever is switched when."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BackendRejected
from gateway.models.catalog import ServedModel
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
from tests.harness import HELMET, sees, until


async def test_a_new_version_waits_until_the_one_before_has_answered_its_camera() -> None:
    async with flow(1, 2) as place:
        place.models.put(release(1))
        place.triton.hold(triton_name("onnx", 1))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 1))
        place.models.put(release(2))
        place.send(INSIDE)
        place.send(OUTSIDE)
        await until(lambda: place.versions_of(OUTSIDE) == ["2"], "a camera that waits for nothing")
        assert place.pipeline.in_flight("detector", 1) == 1
        assert not place.versions_of(INSIDE)
        place.triton.release(triton_name("onnx", 1))
        await place.answered(3)
        assert place.pipeline.in_flight("detector", 1) == place.pipeline.in_flight("detector", 2) == 0
    assert place.versions_of(INSIDE) == ["1", "2"]


async def test_a_snapshot_at_the_candidate_may_still_need_the_stable_version() -> None:
    async with flow(1, 2) as place:
        place.models.put(on_trial(release(1), release(2), Witness(), HALF))
        place.triton.hold(triton_name("onnx", 2))
        place.send(INSIDE)
        await place.triton.wait_until_held(triton_name("onnx", 2))
        assert [place.pipeline.in_flight("detector", number) for number in (1, 2)] == [1, 1]
        place.triton.release(triton_name("onnx", 2))
        await place.answered(1)
        await until(lambda: place.idle(1) and place.idle(2), "both versions to be idle")


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
                await until(partial(place.idle, number), f"version {number} to be idle")
            assert place.outcomes() == {"published": sent}
            assert len({body["result_id"] for body in place.results}) == len(place.results) == sent
            for camera in CAMERAS[:5]:
                seen = place.versions_of(camera)
                assert seen == sorted(seen), f"{camera} went back: {seen}"

    asyncio.run(run())


async def test_a_candidate_that_fails_at_random_under_load_costs_no_snapshot_its_answer() -> None:
    rng, jury = random.Random(7), Witness(pairs=20)

    def moody(inputs: Any) -> dict[str, Any]:
        if rng.random() < 0.4:
            raise BackendRejected("a bad moment")
        return dict(sees(HELMET)(inputs))

    async with flow(1, queue_max_messages=1000) as place:
        await place.add(2, moody)
        place.models.put(on_trial(release(1), release(2), jury, HALF))
        for number in range(200):
            place.send(CAMERAS[number % 5])
        await place.answered(200)
        await until(lambda: len(jury.seen) == 200, "an observation of each snapshot")
    assert place.outcomes() == {"published": 200}
    assert any(result.error for seen in jury.seen for result in seen.candidate.values())
