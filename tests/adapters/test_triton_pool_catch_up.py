"""A Triton that is new or comes back beside others: it serves what they serve, warm, before it takes requests."""

from __future__ import annotations

import asyncio

import numpy as np
import structlog.testing

from gateway.adapters.triton_pool_roster import NOT_SERVED_YET
from gateway.errors import BackendRejected
from tests.adapters.pool_of_memory import CONFIG, MODEL, bench
from tests.contract.inference_servers import DEADLINE_S, ROWS


async def test_one_that_comes_back_loads_what_the_others_serve_and_is_warm_before_it_is_asked() -> None:
    async with bench(3) as place:
        for _ in range(3):
            await place.infer()
        await place.give_up(place.b)
        await place.pool.load(MODEL, (1, 2), "backend: 'new'")
        loads = len(place.a.loads)
        before = len(place.b.requests)
        place.b.hold_load(MODEL)
        place.b.start()
        await place.until(lambda: place.b.held_loads(MODEL) == 1)
        for _ in range(6):
            await place.infer()
        assert len(place.b.requests) == before
        (standing,) = [each for each in place.pool.endpoints if each.address == "b:1"]
        assert (standing.state, standing.reason) == ("catching up", f"model '{MODEL}': it is being loaded")
        assert place.count("up", endpoint="b:1") == 0
        assert await place.pool.serving(MODEL) == (1, 2)

        place.b.release_load(MODEL)
        await place.in_service()
        for _ in range(6):
            await place.infer()
        assert place.b.load_calls[-1] == (MODEL, (1, 2), "backend: 'new'")
        first, second, *rest = place.b.requests[before:]
        assert [(each.warm_up, each.version) for each in (first, second)] == [(True, "1"), (True, "2")]
        assert first.inputs["x"].shape == ROWS.shape
        assert not first.inputs["x"].any()
        assert rest
        assert len(place.a.loads) == loads


async def test_one_that_was_only_out_of_reach_is_loaded_nothing() -> None:
    async with bench() as place:
        place.b.freeze()
        await place.until(lambda: place.states()[1] == "away")
        loads = len(place.b.loads)
        place.b.thaw()
        await place.in_service()
        assert len(place.b.loads) == loads
        assert place.b.requests[-1].warm_up


async def test_one_that_is_down_at_the_start_is_missed_by_nobody() -> None:
    async with bench(versions=()) as place:
        place.b.stop()
        assert await place.pool.is_ready()
        assert await place.pool.serving(MODEL) == ()
        await place.pool.load(MODEL, (1,), CONFIG)
        assert await place.pool.serving(MODEL) == (1,)
        for _ in range(5):
            assert (await place.infer()).model_version == "1"
        place.b.start()
        await place.in_service()
        assert await place.b.serving(MODEL) == (1,)


async def test_at_the_start_those_that_serve_count_and_the_others_catch_up() -> None:
    """As when a gateway is started anew while one of the Tritons is empty."""
    async with bench(versions=()) as place:
        await place.a.load(MODEL, (1,), CONFIG)
        assert await place.pool.serving(MODEL) == (1,)
        for _ in range(4):
            assert (await place.infer()).model_version == "1"
        await place.in_service()
        assert place.b.load_calls == [(MODEL, (1,), CONFIG)]
        assert place.a.load_calls == [(MODEL, (1,), CONFIG)]


async def test_what_it_refuses_is_said_and_tried_again() -> None:
    async with bench() as place:
        await place.give_up(place.b)
        place.b.refuse_load(MODEL, "no memory")
        place.b.start()
        with structlog.testing.capture_logs() as logs:
            await place.until(lambda: "no memory" in place.pool.endpoints[1].reason)
            assert place.pool.endpoints[1].state == "catching up"
            assert (await place.infer()).model_version == "1"
            loads = len(place.b.loads)
            await place.until(lambda: len(place.b.loads) > loads)
        assert next(line["reason"] for line in logs if "cannot be brought" in line["event"]) == "no memory"
        place.b.refuse_load(MODEL, None)
        await place.in_service()


async def test_a_model_that_dislikes_zeros_is_warm_all_the_same() -> None:
    async with bench() as place:
        await place.give_up(place.b)
        place.b.fail(MODEL, BackendRejected("zeros"))
        place.b.start()
        await place.in_service()
        place.b.fail(MODEL, None)
        for _ in range(4):
            assert (await place.infer()).model_version == "1"


async def test_one_that_hangs_over_its_warm_up_takes_no_requests() -> None:
    async with bench() as place:
        await place.give_up(place.b)
        place.b.hold(MODEL)
        place.b.start()
        await place.b.wait_until_held(MODEL)
        held = [asyncio.create_task(place.infer()) for _ in range(6)]
        for response in await asyncio.gather(*held):
            np.testing.assert_array_equal(response.outputs["y__0"], ROWS)
        assert place.states() == ["in service", "catching up"]
        place.b.release(MODEL)
        await place.in_service()


async def test_what_is_gone_from_the_others_since_the_last_look_is_not_loaded() -> None:
    async with bench(versions=(1, 2)) as place:
        await place.give_up(place.b)
        loads = len(place.b.loads)
        await place.a.load(MODEL, (2,), CONFIG)
        place.b.start()
        async with asyncio.timeout(DEADLINE_S):
            while len(place.b.loads) == loads:
                await asyncio.sleep(0.005)
        assert place.b.load_calls[-1] == (MODEL, (2,), CONFIG)
        await place.in_service()
        assert await place.b.serving(MODEL) == (2,)


async def test_what_is_unloaded_elsewhere_while_it_is_loaded_does_not_stay() -> None:
    async with bench(versions=(1, 2)) as place:
        await place.give_up(place.b)
        place.b.hold_load(MODEL)
        place.b.start()
        await place.until(lambda: place.b.held_loads(MODEL) == 1)
        assert place.b.load_calls[-1] == (MODEL, (1, 2), CONFIG)
        await place.a.load(MODEL, (2,), CONFIG)
        place.b.release_load(MODEL)
        await place.in_service()
        assert [await server.serving(MODEL) for server in place.servers.values()] == [(2,), (2,)]


async def test_what_leaves_right_after_catching_up_is_not_loaded_again_either() -> None:
    async with bench(versions=(1, 2)) as place:
        await place.give_up(place.b)
        place.b.start()
        member = place.pool._roster.members[1]
        async with asyncio.timeout(DEADLINE_S):
            while MODEL not in member.admitted:
                await asyncio.sleep(0.005)
        loads = len(place.b.loads)
        await place.b.load(MODEL, (2,), CONFIG)
        for _ in range(3):
            await place.look()
        await place.in_service()
        assert len(place.b.loads) == loads + 1


async def test_what_comes_to_the_others_during_its_warm_up_it_has_to_load_first() -> None:
    async with bench() as place:
        await place.give_up(place.b)
        place.b.hold(MODEL)
        place.b.start()
        await place.b.wait_until_held(MODEL)
        await place.a.load(MODEL, (1, 2), CONFIG)  # by another gateway
        assert await place.pool.serving(MODEL) == (1, 2)
        place.b.release(MODEL)
        member = place.pool._roster.members[1]
        async with asyncio.timeout(DEADLINE_S):
            while member.behind[MODEL] != NOT_SERVED_YET:
                await asyncio.sleep(0.005)
                assert MODEL not in member.admitted
        await place.in_service()
        assert await place.b.serving(MODEL) == (1, 2)


async def test_what_another_gateway_has_unloaded_meanwhile_is_not_loaded_again() -> None:
    async with bench() as place:
        await place.give_up(place.b)
        await place.a.unload(MODEL)
        place.b.start()
        await place.in_service()
        assert await place.b.serving(MODEL) == ()
        assert await place.pool.serving(MODEL) == ()
