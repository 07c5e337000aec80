"""Several Tritons as one: who answers, who is given up, and who comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import structlog.testing
from numpy.typing import NDArray

from gateway.adapters.triton_pool import TritonPool
from gateway.adapters.triton_pool_balance import OWNER_MARGIN
from gateway.errors import (
    BackendInvalidResponse,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    ModelCrashed,
    ModelUnavailable,
    SnapshotError,
)
from gateway.messages import InferRequest
from gateway.metrics import Metrics
from gateway.ports import GpuMemory
from gateway.testing import MemoryTriton
from tests.adapters.pool_of_memory import CONFIG, MODEL, QUICK, Bench, bench, memory_triton
from tests.contract.inference_servers import DEADLINE_S, ask

NEVER_S = 600.0


async def hold(place: Bench, server: MemoryTriton, count: int) -> list[asyncio.Task[Any]]:
    """So many requests that a server does not answer; those that came to the others meanwhile are answered."""
    for each in place.servers.values():
        each.hold(MODEL)
    tasks: list[asyncio.Task[Any]] = []
    while server.held_requests(MODEL) < count:
        tasks.append(asyncio.create_task(place.infer()))
        await asyncio.sleep(0.001)
    for each in place.servers.values():
        if each is not server:
            each.release(MODEL)
    return tasks


async def test_requests_go_to_who_has_the_fewest_under_way_and_in_turn_where_all_have_as_many() -> None:
    async with bench(3) as place:
        for _ in range(9):
            await place.infer()
        assert place.asked() == {"a:1": 3, "b:1": 3, "c:1": 3}

        place.a.hold(MODEL)
        held = [asyncio.create_task(place.infer()) for _ in range(3)]
        await place.a.wait_until_held(MODEL)
        for _ in range(8):
            await place.infer()
        assert place.asked()["a:1"] == 4
        place.a.release(MODEL)
        await asyncio.gather(*held)


async def test_what_is_under_way_at_one_that_dies_is_answered_by_another_one_at_once() -> None:
    async with bench() as place:
        tasks = await hold(place, place.a, 3)
        place.a.stop()
        for response in await asyncio.gather(*tasks):
            assert response.model_version == "1"

        assert place.count("requests_total", endpoint="a:1", outcome="unavailable") == 3
        assert place.states() == ["away", "in service"]
        asked = place.asked()
        for _ in range(5):
            await place.infer()
        assert place.asked() == asked | {"b:1": asked["b:1"] + 5}


async def test_a_request_is_repeated_within_its_time_alone() -> None:
    async with bench() as place:
        place.b.freeze()
        tasks = await hold(place, place.a, 1)
        started = time.monotonic()
        late = asyncio.create_task(place.infer(timeout_s=0.3))
        await asyncio.sleep(0.1)
        place.a.stop()
        with pytest.raises((BackendTimeout, BackendUnavailable)):
            await late
        assert time.monotonic() - started < 0.3 + 0.2
        place.b.thaw()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    "error",
    [
        BackendRejected("it fails on this"),
        BackendInvalidResponse("it answers nonsense"),
        BackendTimeout("too late"),
        ModelCrashed("its process has ended"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_be_the_pictures_fault_is_asked_nobody_else(error: SnapshotError) -> None:
    async with bench() as place:
        for server in place.servers.values():
            server.fail(MODEL, error)
        with pytest.raises(type(error)):
            await place.infer()
        assert sum(place.asked().values()) == 1


async def test_one_that_has_lost_a_model_is_passed_over_until_it_has_it_again() -> None:
    async with bench() as place:
        place.b.lose(MODEL)
        loads = len(place.a.loads)
        for _ in range(4):
            assert (await place.infer()).model_version == "1"

        assert place.asked()["b:1"] == 1
        assert await place.pool.serving(MODEL) == (1,)
        await place.in_service()
        assert await place.b.serving(MODEL) == (1,)
        assert len(place.a.loads) == loads
        for _ in range(4):
            await place.infer()
        assert place.asked()["b:1"] == 3


async def test_what_nobody_serves_is_said_and_changes_nothing() -> None:
    async with bench() as place:
        with pytest.raises(ModelUnavailable, match="version 7"):
            await place.infer(version="7")
        assert place.states() == ["in service"] * 2
        place.a.stop()
        with pytest.raises(ModelUnavailable, match="version 7"):  # says more than that one of them is away
            await place.infer(version="7")


async def test_one_is_given_up_and_comes_back_by_a_single_request() -> None:
    async with bench() as place:
        with structlog.testing.capture_logs() as logs:
            await place.give_up(place.b)
        (said,) = [line for line in logs if line["event"] == "An endpoint of Triton is given up until it answers again"]
        assert (said["endpoint"], said["others"], said["log_level"]) == ("b:1", ["a:1"], "warning")
        assert said["reason"]
        assert said["fix"]
        assert place.count("ejections_total", endpoint="b:1") == 1
        assert [place.count("up", endpoint=each) for each in place.servers] == [1, 0]
        assert await place.pool.is_ready()

        place.b.start()
        await place.in_service()
        before = place.asked()["b:1"]
        held = await hold(place, place.b, 1)
        more = [asyncio.create_task(place.infer()) for _ in range(10)]
        await asyncio.wait(more, timeout=DEADLINE_S)
        assert place.asked()["b:1"] == before + 1
        place.b.release(MODEL)
        await asyncio.gather(*held, *more)
        for _ in range(4):
            await place.infer()
        assert place.asked()["b:1"] == before + 3


async def test_one_that_fails_again_at_once_is_left_alone_for_longer_each_time() -> None:
    async with bench() as place:
        place.b.fail(MODEL, BackendUnavailable("refused on the way"))
        for _ in range(6):
            assert (await place.infer()).model_version == "1"
        assert place.count("ejections_total", endpoint="b:1") == 1
        await place.until(lambda: place.count("ejections_total", endpoint="b:1") == 3)
        requests = place.asked()["b:1"]
        assert requests == QUICK.failures  # the others were requests of zeros
        place.b.fail(MODEL, None)
        await place.in_service()


async def test_one_that_answers_too_late_is_given_up_but_never_the_last_one() -> None:
    async with bench(limits=replace(QUICK, first_pause_s=NEVER_S)) as place:
        for server in place.servers.values():
            server.hold(MODEL)
        for _ in range(4 * QUICK.timeouts):
            with pytest.raises(BackendTimeout):
                await place.infer(timeout_s=0.02)
        assert sorted(place.states()) == ["away", "in service"]
        for server in place.servers.values():
            server.release(MODEL)
        assert (await place.infer()).model_version == "1"


async def test_who_waits_for_a_moment_only_blames_nobody() -> None:
    limits = replace(QUICK, fair_timeout_s=10.0)
    async with bench(limits=limits) as place:
        for server in place.servers.values():
            server.hold(MODEL)
        for _ in range(4 * limits.timeouts):
            with pytest.raises(BackendTimeout):
                await place.infer(timeout_s=0.005)
        assert place.states() == ["in service"] * 2


async def test_all_may_go_and_come_back() -> None:
    async with bench() as place:
        for server in place.servers.values():
            server.stop()
        with pytest.raises(BackendUnavailable):
            await place.infer()
        await place.until(lambda: place.states() == ["away"] * 2)
        with pytest.raises(BackendUnavailable):
            await place.infer()
        with pytest.raises(BackendUnavailable):
            await place.pool.serving(MODEL)
        with pytest.raises(BackendUnavailable):
            await place.pool.load(MODEL, (1,), CONFIG)
        assert not await place.pool.is_ready()

        place.b.start()
        assert await place.pool.is_ready()
        assert await place.pool.serving(MODEL) == ()
        await place.pool.load(MODEL, (1,), CONFIG)
        assert await place.pool.serving(MODEL) == (1,)
        assert (await place.infer()).model_version == "1"
        place.a.start()
        await place.in_service()
        assert await place.a.serving(MODEL) == (1,)


async def test_a_request_that_is_given_up_is_under_way_no_more() -> None:
    async with bench() as place:
        for server in place.servers.values():
            server.hold(MODEL)
        tasks = [asyncio.create_task(place.infer()) for _ in range(4)]
        await asyncio.gather(place.a.wait_until_held(MODEL, 2), place.b.wait_until_held(MODEL, 2))
        assert [place.count("outstanding", endpoint=each) for each in place.servers] == [2, 2]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert [place.count("outstanding", endpoint=each) for each in place.servers] == [0, 0]
        assert place.count("requests_total", endpoint="a:1", outcome="cancelled") == 2


async def test_nothing_goes_on_after_the_end() -> None:
    async with bench() as place:
        await place.give_up(place.b)
        place.b.start()
        tasks = await hold(place, place.a, 2)
        before = len(place.b.requests)
        await place.pool.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, BackendUnavailable)
        assert len(place.b.requests) == before
        assert not await place.pool.is_ready()
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("triton pool")]


async def test_a_warm_up_goes_to_everybody() -> None:
    async with bench(3) as place:
        place.servers["c:1"].stop()
        request = replace(ask(MODEL), warm_up=True)
        assert (await place.pool.infer(request)).model_version == "1"
        assert [len(server.requests) for server in place.servers.values()] == [1, 1, 1]
        place.b.fail(MODEL, BackendRejected("it does not work there"))
        with pytest.raises(BackendRejected, match="there"):
            await place.pool.infer(request)


class Sharing(MemoryTriton):
    """One whose tensors lie where it reads them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.own: list[NDArray[Any]] = []

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        array = super().tensor(shape, dtype)
        self.own.append(array)
        return array

    def holds(self, array: NDArray[Any]) -> bool:
        return any(array is each for each in self.own)


async def test_who_has_the_tensor_already_is_asked_unless_it_is_busier() -> None:
    def one(inputs: Any) -> Any:
        return {"y__0": inputs["x"][:, :3]}

    servers = {"a:1": Sharing(), "b:1": Sharing()}
    for server in servers.values():
        server.add_model(replace_shape(memory_triton()), one)
    pool = TritonPool(servers, Metrics(), limits=QUICK)
    await pool.load(MODEL, (1,), CONFIG)
    tensors = [pool.tensor((1, 100_000), np.dtype(np.float32)) for _ in range(8)]
    assert [len(server.own) for server in servers.values()] == [4, 4]  # in turn

    async def about(array: NDArray[Any]) -> None:
        await pool.infer(InferRequest(MODEL, {"x": array}, ("y__0",), DEADLINE_S))

    for array in tensors:
        await about(array)
    for server in servers.values():
        assert all(server.holds(request.inputs["x"]) for request in server.requests)
    owner, other = servers.values()
    owner.hold(MODEL)
    tasks = []
    for array in owner.own * 2:
        tasks.append(asyncio.create_task(about(array)))
        await asyncio.wait(tasks[-1:], timeout=0.02)
    assert owner.held_requests(MODEL) == 1 + OWNER_MARGIN
    assert len(other.requests) == 4 + len(tasks) - (1 + OWNER_MARGIN)
    owner.release(MODEL)
    await asyncio.gather(*tasks)
    await pool.close()


def replace_shape(server: MemoryTriton) -> Any:
    signature = server._model(MODEL).folders[1].signature
    return replace(signature, inputs=(replace(signature.inputs[0], shape=(-1, 100_000)),))


async def test_figures_are_those_of_all_and_memory_that_of_the_fullest() -> None:
    async with bench() as place:
        for _ in range(4):
            await place.infer()
        assert (await place.pool.statistics(MODEL)).success_count == 4
        place.a.gpu, place.b.gpu = GpuMemory(used=1, total=10), GpuMemory(used=5, total=10)
        assert await place.pool.gpu_memory() == GpuMemory(used=5, total=10)
        await place.give_up(place.b)
        assert (await place.pool.statistics(MODEL)).success_count == 4
        assert await place.pool.gpu_memory() == GpuMemory(used=1, total=10)
        assert (await place.pool.describe(MODEL)).version == "1"


Action = Callable[[TritonPool], Any]


@pytest.mark.parametrize(
    "action",
    [lambda pool: pool.load("nowhere"), lambda pool: pool.describe("nowhere"), lambda pool: pool.load(MODEL, (9,))],
)
async def test_refusals_name_the_reason(action: Action) -> None:
    async with bench() as place:
        with pytest.raises((ModelUnavailable, ConfigError)):
            await action(place.pool)
        assert await place.pool.serving(MODEL) == (1,)


async def test_one_that_has_no_models_is_looked_after_too() -> None:
    async with bench(3, rules=("model=times -> a:1|b:1",)) as place:
        place.servers["c:1"].stop()
        await place.until(lambda: place.states() == ["in service", "in service", "away"])
        place.servers["c:1"].start()
        await place.in_service()
