"""Loads at several Tritons: at one alone first, at all in the end, and nowhere half."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import structlog.testing

from gateway.adapters.triton_pool import TritonPool
from gateway.errors import BackendUnavailable, ModelUnavailable
from gateway.metrics import Metrics
from tests.adapters.pool_of_memory import CONFIG, MODEL, QUICK, bench, rows
from tests.contract.inference_servers import DEADLINE_S, ask

OTHER = "backend: 'python'"
NEVER_S = 600.0


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


async def test_what_a_later_one_refuses_is_taken_back_everywhere() -> None:
    async with bench(3) as place:
        place.servers["b:1"].refuse_load(MODEL, "no memory", 2)
        with pytest.raises(ModelUnavailable, match="no memory"):
            await place.pool.load(MODEL, (2,), OTHER)
        for server in place.servers.values():
            assert await server.serving(MODEL) == (1,)
        assert await place.pool.serving(MODEL) == (1,)
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


async def test_what_somebody_else_unloads_counts_for_a_moment_and_is_not_loaded_again() -> None:
    async with bench(versions=(1, 2)) as place:
        loads = len(place.a.loads)
        await place.a.load(MODEL, (1,), CONFIG)
        assert await place.pool.serving(MODEL) == (1, 2)
        assert (await place.infer(version="2")).model_version == "2"
        async with asyncio.timeout(DEADLINE_S):
            while await place.pool.serving(MODEL) != (1,):
                await asyncio.sleep(0.005)
        await place.in_service()
        assert await place.a.serving(MODEL) == (1,)
        assert len(place.a.loads) == loads + 1


@pytest.mark.parametrize("left", [(2,), ()], ids=["one version", "all of them"])
async def test_what_one_gateway_unloads_another_one_does_not_load_again(left: tuple[int, ...]) -> None:
    """It looks between the unload at the first endpoint and that at the second one."""
    async with bench(versions=(1, 2), limits=replace(QUICK, settle_s=NEVER_S)) as place:
        other = TritonPool(place.servers, Metrics(), limits=replace(QUICK, settle_s=NEVER_S))
        assert await other.serving(MODEL) == (1, 2)
        loads = {name: len(server.loads) for name, server in place.servers.items()}
        place.b.hold_load(MODEL)
        if left:
            unload = asyncio.create_task(place.pool.load(MODEL, left, CONFIG))
            await place.until(lambda: place.b.held_loads(MODEL) == 1)
        else:
            unload = asyncio.create_task(place.a.unload(MODEL))
            await unload
        for _ in range(10):
            await other.is_ready()
            assert await other.serving(MODEL) == (1, 2)
            assert (await other.infer(ask(MODEL, version="1"))).model_version == "1"
        place.b.release_load(MODEL)
        await unload
        if not left:
            await place.b.unload(MODEL)
        for _ in range(10):
            await other.is_ready()
            assert await other.serving(MODEL) == left
            await asyncio.sleep(0)
        assert [await server.serving(MODEL) for server in place.servers.values()] == [left, left]
        for name, server in place.servers.items():
            assert len(server.loads) == loads[name] + bool(left)
        await other.close()


async def test_what_leaves_before_the_first_look_is_not_loaded_again_either() -> None:
    async with bench(versions=()) as place:
        await place.pool.load(MODEL, (1, 2), CONFIG)
        loads = len(place.a.loads)
        await place.a.load(MODEL, (2,), CONFIG)
        for _ in range(3):
            await place.look()
        await place.in_service()
        assert len(place.a.loads) == loads + 1


@pytest.mark.parametrize("without", ["a:1", "c:1"])
async def test_one_without_the_files_does_not_take_the_model_from_the_others(without: str) -> None:
    """As after a power cut: nobody serves anything, and one has lost its volume."""
    async with bench(3, versions=()) as place:
        place.servers[without].refuse_load(MODEL, "not in the model's folder", 1)
        assert await place.pool.serving(MODEL) == ()
        await place.pool.load(MODEL, (1,), CONFIG)
        assert await place.pool.serving(MODEL) == (1,)
        for _ in range(4):
            assert (await place.infer()).model_version == "1"
        assert place.asked()[without] == 0
        (behind,) = [each for each in place.pool.endpoints if each.address == without]
        assert (behind.state, behind.reason) == (
            "catching up",
            f"model '{MODEL}': version 1: not in the model's folder",
        )
        await place.pool.load(MODEL, (1, 2), CONFIG)  # what it has not got is no reason against a candidate
        assert await place.pool.serving(MODEL) == (1, 2)
        place.servers[without].refuse_load(MODEL, None, 1)
        await place.in_service()


async def test_what_everybody_refuses_is_refused() -> None:
    async with bench(3, versions=()) as place:
        for server in place.servers.values():
            server.refuse_load(MODEL, "no memory", 1)
        with pytest.raises(ModelUnavailable, match="no memory"):
            await place.pool.load(MODEL, (1,), CONFIG)
        assert await place.pool.serving(MODEL) == ()


async def test_a_load_waits_for_nobody_who_is_given_up_meanwhile() -> None:
    async with bench() as place:
        place.b.hold_load(MODEL)
        loading = asyncio.create_task(place.pool.load(MODEL, (1, 2), OTHER))
        await place.until(lambda: place.b.held_loads(MODEL) == 1)
        place.b.freeze()
        await place.until(lambda: loading.done())
        await loading
        assert place.states() == ["in service", "away"]
        assert await place.pool.serving(MODEL) == (1, 2)


async def test_a_load_that_is_called_off_is_taken_back() -> None:
    async with bench() as place:
        place.b.hold_load(MODEL)
        loading = asyncio.create_task(place.pool.load(MODEL, (2,), OTHER))
        await place.until(lambda: place.b.held_loads(MODEL) == 1)
        loading.cancel()
        await asyncio.wait([loading])
        place.b.release_load(MODEL)
        assert await place.pool.serving(MODEL) == (1,)
        await place.in_service()
        assert await place.a.serving(MODEL) == (1,)

        begun = asyncio.Event()

        async def hang(model: str) -> None:
            begun.set()
            await asyncio.sleep(NEVER_S)

        place.b.unload = hang  # type: ignore[method-assign]
        unloading = asyncio.create_task(place.pool.unload(MODEL))
        await begun.wait()
        unloading.cancel()
        await asyncio.wait([unloading])
        assert await place.pool.serving(MODEL) == (1,)
        await place.in_service()
        assert await place.a.serving(MODEL) == (1,)


async def test_while_a_load_takes_a_version_away_it_counts_only_where_all_have_it() -> None:
    async with bench(versions=(1, 2)) as place:
        place.b.hold_load(MODEL)
        loading = asyncio.create_task(place.pool.load(MODEL, (2,), OTHER))
        await place.until(lambda: place.b.held_loads(MODEL) == 1)
        assert await place.pool.serving(MODEL) == (2,)
        assert place.states() == ["in service"] * 2  # nobody is left out for what is about to leave
        place.b.release_load(MODEL)
        await loading


async def test_one_that_serves_nothing_for_a_moment_while_it_is_loaded_is_not_left_out() -> None:
    async with bench() as place:
        place.a.hold_load(MODEL)
        loading = asyncio.create_task(place.pool.load(MODEL, (1,), OTHER))
        await place.until(lambda: place.a.held_loads(MODEL) == 1)
        place.a.lose(MODEL)
        assert await place.pool.serving(MODEL) == (1,)
        assert place.states() == ["in service"] * 2
        place.a.release_load(MODEL)
        await loading
        assert place.states() == ["in service"] * 2


async def test_what_was_unloaded_elsewhere_too_is_put_back_as_it_is_served() -> None:
    """What another gateway has made of a member since counts, not what this one has loaded there."""
    async with bench() as place:
        await place.a.load(MODEL, (1, 2), OTHER)
        await place.b.load(MODEL, (1, 2), OTHER)
        place.b.refuse_load(MODEL, "no memory", 2)
        for server in place.servers.values():
            folder = server._model(MODEL).folders[2]
            server.add_model(folder.signature, folder.answer)
        assert await place.pool.serving(MODEL) == (1, 2)
        with pytest.raises(ModelUnavailable, match="no memory"):
            await place.pool.load(MODEL, (2,), CONFIG)
        assert place.a.load_calls[-1] == (MODEL, (1, 2), OTHER)


async def test_what_is_owed_is_settled_by_a_load() -> None:
    async with bench() as place:
        unload = place.b.unload

        async def refuse(model: str) -> None:
            raise ModelUnavailable("it is busy")

        place.b.unload = refuse  # type: ignore[method-assign]
        with pytest.raises(ModelUnavailable, match="busy"):
            await place.pool.unload(MODEL)
        member = place.pool._roster.members[1]
        assert member.owed == {MODEL}
        place.b.unload = unload  # type: ignore[method-assign]
        await place.pool.load(MODEL, (1,), CONFIG)
        assert not member.owed


async def test_those_that_are_back_by_a_load_take_requests_at_once() -> None:
    async with bench(limits=replace(QUICK, first_pause_s=NEVER_S)) as place:
        for server in place.servers.values():
            server.stop()
        await place.until(lambda: place.states() == ["away"] * 2)
        for server in place.servers.values():
            server.start()
        await place.pool.load(MODEL, (1,), CONFIG)
        assert place.states() == ["in service"] * 2


async def test_one_that_fails_under_loads_is_given_up() -> None:
    async with bench(limits=replace(QUICK, first_pause_s=NEVER_S)) as place:
        place.b.stop()
        for _ in range(QUICK.failures):
            await place.pool.load(MODEL, (1,), CONFIG)
        assert place.states() == ["in service", "away"]


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
