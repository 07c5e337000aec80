"""When one of several Tritons is given up, how long it is left alone, and when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog.testing

from gateway.adapters.triton_pool_member import Member
from gateway.errors import BackendRejected, BackendTimeout, BackendUnavailable
from gateway.testing import MemoryTriton
from tests import triton_models as models
from tests.adapters.pool_of_memory import CONFIG, MODEL, QUICK, Bench, bench
from tests.contract.inference_servers import ask

NEVER_S = 600.0
STEADY = replace(QUICK, first_pause_s=NEVER_S, longest_pause_s=NEVER_S)


def member_of(place: Bench, name: str) -> Member:
    """What the pool knows of an endpoint."""
    return next(each for each in place.pool._roster.members if each.name == name)


async def look_at_all(place: Bench, names: int) -> None:
    """As the loader does it, with so many models."""
    await asyncio.gather(
        place.pool.is_ready(), *(place.pool.serving(MODEL) for _ in range(names)), return_exceptions=True
    )


async def checked(place: Bench) -> None:
    """Wait for the checks that go on in the background."""
    await asyncio.gather(*place.pool._roster._checks.values())


async def test_one_look_counts_once_with_however_many_models() -> None:
    async with bench(limits=STEADY) as place:
        place.b.stop()
        await look_at_all(place, 8)
        await checked(place)
        assert member_of(place, "b:1").failures == 1
        for _ in range(QUICK.failures - 1):
            assert place.states()[1] != "away"
            await look_at_all(place, 8)
            await checked(place)
        assert place.states()[1] == "away"


async def test_failures_with_good_answers_between_them_are_not_in_a_row() -> None:
    async with bench(limits=STEADY) as place:
        real = place.b.is_ready
        answers = iter([False, False, True] * 3)

        async def now_and_then() -> bool:
            return next(answers) and await real()

        place.b.is_ready = now_and_then  # type: ignore[method-assign]
        for _ in range(9):
            await place.pool.is_ready()
            await checked(place)
        assert place.states() == ["in service"] * 2


async def test_one_that_hangs_is_found_out_though_another_one_answers_at_once() -> None:
    async with bench(limits=STEADY) as place:
        place.b.freeze()
        for _ in range(QUICK.failures):
            assert await asyncio.wait_for(place.pool.is_ready(), 0.1)  # b takes 0.2 s to be missed
            await checked(place)
        assert place.states() == ["in service", "away"]


async def test_all_that_were_away_are_back_at_the_first_that_is_live() -> None:
    async with bench(limits=STEADY) as place:
        for server in place.servers.values():
            server.stop()
        await place.until(lambda: place.states() == ["away"] * 2)
        place.b.start()
        assert await place.pool.is_ready()
        assert place.states() == ["away", "in service"]


async def test_a_look_that_stumbles_is_said_and_does_not_end_the_looking() -> None:
    async with bench() as place:
        await place.give_up(place.b)
        real, stumbles = place.b.is_ready, 2

        async def stumble() -> bool:
            nonlocal stumbles
            stumbles -= 1
            if stumbles >= 0:
                raise OSError("no file is left")
            return await real()

        place.b.is_ready = stumble  # type: ignore[method-assign]
        place.b.start()
        with structlog.testing.capture_logs() as logs:
            async with asyncio.timeout(5):
                while member_of(place, "b:1").away:
                    await asyncio.sleep(0.005)
        said = [line for line in logs if "could not be asked whether it is live" in line["event"]]
        assert [(line["endpoint"], line["log_level"]) for line in said] == [("b:1", "error")] * 2
        assert not member_of(place, "b:1").probed


async def test_a_background_task_that_fails_says_so() -> None:
    async def fail() -> None:
        raise ValueError("a defect")

    async with bench() as place:
        with structlog.testing.capture_logs() as logs:
            await asyncio.wait([place.pool._roster.begin(fail(), "triton pool: a task")])
            await asyncio.sleep(0)
        (said,) = logs
        assert (said["task"], said["log_level"]) == ("triton pool: a task", "error")


async def test_the_pause_grows_while_it_is_away_up_to_its_end_and_is_short_again_after_an_answer() -> None:
    limits = replace(QUICK, first_pause_s=0.001, longest_pause_s=0.006)
    async with bench(limits=limits) as place:
        await place.give_up(place.b)
        member = member_of(place, "b:1")
        pauses = {member.pause_s}
        async with asyncio.timeout(5):
            while member.pause_s < limits.longest_pause_s:
                await asyncio.sleep(0)
                pauses.add(member.pause_s)
        assert pauses <= {0.001, 0.002, 0.004, 0.006}
        place.b.start()
        await place.in_service()
        for _ in range(4):
            await place.infer()
        assert member.pause_s == 0.001


async def test_one_that_has_just_come_back_is_given_up_at_its_first_failure_and_for_longer() -> None:
    async with bench() as place:
        await place.give_up(place.b)
        member = member_of(place, "b:1")
        place.b.start()
        await place.in_service()
        member.half_open, member.troubled, member.pause_s = True, True, 0.03
        place.pool._roster.failed(member, BackendUnavailable("again"))
        assert member.away
        assert member.pause_s == 0.06


async def test_late_answers_with_good_ones_between_them_are_not_in_a_row() -> None:
    async with bench(limits=STEADY) as place:
        for _ in range(3 * QUICK.timeouts):
            place.b.fail(MODEL, BackendTimeout("too late"))
            asked = place.asked()["b:1"]
            while place.asked()["b:1"] == asked:
                assert place.states() == ["in service"] * 2
                try:
                    await place.infer()
                except BackendTimeout:
                    break
            place.b.fail(MODEL, None)
            for _ in range(2):
                await place.infer()
        assert place.states() == ["in service"] * 2


Change = Callable[[Bench], Awaitable[Any]]
CHANGES: list[Change] = [lambda place: place.pool.load(MODEL, (1, 2), CONFIG), lambda place: place.pool.unload(MODEL)]


@pytest.mark.parametrize("change", CHANGES, ids=["load", "unload"])
@pytest.mark.parametrize("hanging", ["load", "warm-up"])
async def test_one_that_hangs_over_catching_up_holds_up_no_change(change: Change, hanging: str) -> None:
    async with bench(limits=replace(QUICK, warm_up_s=NEVER_S)) as place:
        await place.give_up(place.b)
        if hanging == "load":
            place.b.hold_load(MODEL)
        else:
            place.b.hold(MODEL)
        place.b.start()
        await place.until(lambda: bool(place.b.held_loads(MODEL) or place.b.held_requests(MODEL)))
        task = asyncio.ensure_future(change(place))
        changes = len(place.a.loads) + len(place.a.unloads)
        async with asyncio.timeout(5):
            while len(place.a.loads) + len(place.a.unloads) == changes:
                await asyncio.sleep(0.005)
            place.b.release_load(MODEL)
            await task
        place.b.release(MODEL)
        await place.in_service()
        assert await place.b.serving(MODEL) == await place.a.serving(MODEL)


async def test_one_that_is_given_up_while_it_catches_up_holds_up_no_load() -> None:
    async with bench(limits=replace(QUICK, first_pause_s=0.01, longest_pause_s=0.02)) as place:
        await place.give_up(place.b)
        place.b.hold_load(MODEL)
        place.b.start()
        await place.until(lambda: place.b.held_loads(MODEL) == 1)
        place.b.freeze()
        await place.until(lambda: place.states()[1] == "away")
        assert not place.pool._roster.lock(MODEL).locked()
        await asyncio.wait_for(place.pool.load(MODEL, (1, 2), CONFIG), 5)
        place.b.release_load(MODEL)
        place.b.thaw()
        await place.in_service()


async def test_what_was_stopped_before_it_began_is_begun_again() -> None:
    async with bench(limits=STEADY) as place:
        await place.give_up(place.b)
        place.b.start()
        place.pool._roster.back(member_of(place, "b:1"))
        await place.pool.unload(MODEL)
        await place.a.load(MODEL, (1,), CONFIG)
        await asyncio.wait_for(place.in_service(), 5)
        assert await place.b.serving(MODEL) == (1,)


async def test_a_model_that_loads_slowly_holds_up_no_other_one() -> None:
    async with bench() as place:
        for server in place.servers.values():
            server.add_model(models.times_signature("other", 1), models.times(1))
        await place.pool.load("other", (1,))
        await place.give_up(place.b)
        place.b.hold_load(MODEL)
        place.b.start()
        await place.until(lambda: place.b.held_loads(MODEL) == 1)
        await place.until(lambda: "other" in member_of(place, "b:1").admitted)
        place.b.release_load(MODEL)
        await place.in_service()


async def test_a_rollout_is_not_refused_for_one_that_hangs() -> None:
    async with bench() as place:
        place.b.hold(MODEL)
        request = replace(ask(MODEL, timeout_s=0.1), warm_up=True)
        assert (await place.pool.infer(request)).model_version == "1"
        place.a.hold(MODEL)
        with pytest.raises(BackendTimeout):
            await place.pool.infer(request)
        for server in place.servers.values():
            server.release(MODEL)


async def test_a_version_with_another_input_is_warmed_by_what_it_takes() -> None:
    def picky(server: MemoryTriton) -> list[tuple[int, ...]]:
        return [each.inputs["x"].shape for each in server.requests if each.warm_up]

    async with bench() as place:
        await place.infer()
        await place.give_up(place.b)
        real = place.b.infer

        async def only_small(request: Any) -> Any:
            if request.inputs["x"].shape[0] != 1:
                place.b.requests.append(request)
                raise BackendRejected("another shape")
            return await real(request)

        place.b.infer = only_small  # type: ignore[method-assign]
        place.b.start()
        await place.in_service()
        assert [shape[0] for shape in picky(place.b)] == [2, 1]

    async with bench() as place:
        await place.infer()
        assert MODEL in place.pool._roster.shapes
        await place.pool.load(MODEL, (1, 2), CONFIG)
        assert MODEL not in place.pool._roster.shapes  # they may be those of what has left
        await place.infer()
        assert MODEL in place.pool._roster.shapes
