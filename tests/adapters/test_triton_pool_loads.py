"""Loads at several Tritons: at one alone first, at all in the end, and nowhere half."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import structlog.testing

from gateway.errors import BackendUnavailable, ModelUnavailable
from tests.adapters.pool_of_memory import CONFIG, MODEL, bench, rows

OTHER = "backend: 'python'"


async def test_a_load_goes_to_one_alone_first_and_then_to_all_others_at_once() -> None:
    async with bench(3, versions=()) as place:
        first, *others = place.servers.values()
        for server in place.servers.values():
            server.hold_load(MODEL)
        loading = asyncio.create_task(place.pool.load(MODEL, (1, 2), CONFIG))
        await place.until(lambda: first.held_loads(MODEL) == 1)
        assert not any(server.loads for server in others)
        first.release_load(MODEL)
        await place.until(lambda: all(server.held_loads(MODEL) for server in others))
        assert await place.pool.serving(MODEL) == ()  # not before all have it
        for server in others:
            server.release_load(MODEL)
        await loading

        assert await place.pool.serving(MODEL) == (1, 2)
        for server in place.servers.values():
            assert server.load_calls == [(MODEL, (1, 2), CONFIG)]


async def test_what_the_first_one_refuses_the_others_are_not_asked() -> None:
    async with bench() as place:
        place.a.refuse_load(MODEL, "no memory", 2)
        before = list(place.b.load_calls)
        with pytest.raises(ModelUnavailable, match="no memory"):
            await place.pool.load(MODEL, (1, 2), OTHER)
        assert place.b.load_calls == before
        assert await place.pool.serving(MODEL) == (1,)


@pytest.mark.parametrize("before", [(1,), ()], ids=["another version", "nothing"])
async def test_what_a_later_one_refuses_is_taken_back_everywhere(before: tuple[int, ...]) -> None:
    async with bench(3, versions=before) as place:
        place.servers["b:1"].refuse_load(MODEL, "no memory", 2)
        with pytest.raises(ModelUnavailable, match="no memory"):
            await place.pool.load(MODEL, (2,), OTHER)
        for server in place.servers.values():
            assert await server.serving(MODEL) == before
        assert await place.pool.serving(MODEL) == before
        if before:
            assert place.a.load_calls[-1] == (MODEL, (1,), CONFIG)
            assert (await place.infer()).model_version == "1"


async def test_what_cannot_be_put_back_is_said_and_that_one_takes_no_requests() -> None:
    async with bench() as place:
        place.b.refuse_load(MODEL, "no memory", 2)
        place.a.add_model(place.a._model(MODEL).folders[1].signature, place.a._model(MODEL).folders[1].answer)
        place.a.hold_load(MODEL)
        loading = asyncio.create_task(place.pool.load(MODEL, (2,), OTHER))
        await place.until(lambda: place.a.held_loads(MODEL) == 1)
        place.a.refuse_load(MODEL, "no memory any more", 1)
        place.a.release_load(MODEL)
        with structlog.testing.capture_logs() as logs, pytest.raises(ModelUnavailable, match="no memory"):
            await loading
        (said,) = [line for line in logs if "could not be put back" in line["event"]]
        assert (said["endpoint"], said["reason"]) == ("a:1", "version 1: no memory any more")
        for _ in range(4):
            assert (await place.infer()).model_version == "1"


async def test_one_that_is_away_is_left_out_and_has_it_when_it_is_back() -> None:
    async with bench(3) as place:
        await place.give_up(place.a)
        await place.pool.load(MODEL, (1, 2), OTHER)
        assert await place.pool.serving(MODEL) == (1, 2)
        place.a.start()
        await place.in_service()
        assert await place.a.serving(MODEL) == (1, 2)
        assert place.a.load_calls[-1] == (MODEL, (1, 2), OTHER)


async def test_one_that_dies_under_a_load_does_not_fail_it() -> None:
    async with bench() as place:
        place.a.hold_load(MODEL)
        loading = asyncio.create_task(place.pool.load(MODEL, (1, 2), OTHER))
        await place.until(lambda: place.a.held_loads(MODEL) == 1)
        place.a.stop()
        await loading
        assert await place.b.serving(MODEL) == (1, 2)


async def test_an_unload_holds_for_who_is_away() -> None:
    async with bench() as place:
        place.b.freeze()
        await place.until(lambda: place.states() == ["in service", "away"])
        await place.pool.unload(MODEL)
        assert await place.pool.serving(MODEL) == ()
        place.b.thaw()
        await place.in_service()
        assert await place.b.serving(MODEL) == ()
        assert place.b.unloads == [MODEL]
        with pytest.raises(ModelUnavailable):
            await place.infer()

        for server in place.servers.values():
            server.stop()
        with pytest.raises(BackendUnavailable):
            await place.pool.unload(MODEL)


async def test_what_is_agreed_on_goes_on_to_count_while_one_of_them_serves_it() -> None:
    async with bench(versions=(1, 2)) as place:
        await place.a.load(MODEL, (1,), CONFIG)  # somebody else has taken away version 2
        assert await place.pool.serving(MODEL) == (1, 2)
        assert (await place.infer(version="2")).model_version == "2"
        await place.in_service()
        assert await place.a.serving(MODEL) == (1, 2)


async def test_what_somebody_else_loads_at_one_counts_when_all_have_it() -> None:
    async with bench() as place:
        await place.a.load(MODEL, (1, 2), CONFIG)
        for _ in range(3):
            assert await place.pool.serving(MODEL) == (1,)
        await place.b.load(MODEL, (1, 2), CONFIG)
        assert await place.pool.serving(MODEL) == (1, 2)
        assert len(place.b.loads) == 2  # nobody has meddled


async def test_models_go_where_the_rules_place_them() -> None:
    rules = ("model=times,version=2 -> b:1|c:1", "model=times,tenant=north -> a:1", "model=times -> a:1|b:1")
    async with bench(4, rules=rules, versions=(1, 2)) as place:
        serving = [await server.serving(MODEL) for server in place.servers.values()]
        assert serving == [(1,), (1, 2), (2,), ()]
        assert await place.pool.serving(MODEL) == (1, 2)
        assert (await place.pool.describe(MODEL, 2)).version == "2"

        for _ in range(6):
            assert np.all(rows(await place.infer("north")) == 1)
        assert place.asked() == {"a:1": 6, "b:1": 0, "c:1": 0, "d:1": 0}
        for _ in range(6):
            assert np.all(rows(await place.infer("south", version="2")) == 2)
        assert place.asked() == {"a:1": 6, "b:1": 3, "c:1": 3, "d:1": 0}
        for _ in range(6):
            assert np.all(rows(await place.infer("south", version="1")) == 1)
        assert place.asked() == {"a:1": 9, "b:1": 6, "c:1": 3, "d:1": 0}

        await place.pool.load(MODEL, (2,), CONFIG)  # what may be nowhere else is unloaded
        assert [await server.serving(MODEL) for server in place.servers.values()] == [(), (2,), (2,), ()]
        place.b.stop()
        assert np.all(rows(await place.infer("south", version="2")) == 2)
        place.servers["c:1"].stop()
        with pytest.raises(BackendUnavailable):
            await place.infer("south", version="2")


async def test_one_catches_up_with_what_it_may_have() -> None:
    async with bench(rules=("model=times,version=2 -> b:1",), versions=(1, 2)) as place:
        assert [await server.serving(MODEL) for server in place.servers.values()] == [(1,), (1, 2)]
        await place.give_up(place.a)
        place.a.start()
        await place.in_service()
        assert await place.a.serving(MODEL) == (1,)
