"""What becomes of requests that are under way at an endpoint which is given up: others answer them in time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as messages

from gateway.adapters.triton import TritonServer
from gateway.adapters.triton_pool import TritonPool
from gateway.adapters.triton_pool_member import Limits
from gateway.errors import BackendRejected, BackendTimeout, BackendUnavailable, ModelCrashed
from gateway.messages import InferRequest, InferResponse, ModelSignature, TensorSpec
from gateway.metrics import Metrics
from gateway.testing import MemoryTriton
from tests.adapters.pool_of_memory import CONFIG, MODEL, QUICK, Bench, bench
from tests.adapters.reading_triton import ReadingTriton
from tests.adapters.triton_wire import listening
from tests.contract.inference_servers import DEADLINE_S, ask

NEVER_S = 600.0
PATIENT = replace(QUICK, first_pause_s=NEVER_S)


async def under_way_at_b(place: Bench, count: int) -> list[asyncio.Task[tuple[InferResponse, int]]]:
    """So many requests that b holds; each also tells how often its task was cancelled and not taken back."""

    async def one() -> tuple[InferResponse, int]:
        answer = await place.infer()
        task = asyncio.current_task()
        assert task is not None
        return answer, task.cancelling()

    for server in place.servers.values():
        server.hold(MODEL)
    tasks = [asyncio.create_task(one()) for _ in range(count * len(place.servers))]
    await asyncio.gather(*(server.wait_until_held(MODEL, count) for server in place.servers.values()))
    for server in place.servers.values():
        if server is not place.b:
            server.release(MODEL)
    await place.until(lambda: sum(task.done() for task in tasks) == len(tasks) - count)
    return [task for task in tasks if not task.done()]


async def give_up_slow_b(place: Bench) -> None:
    """Ask until so many have waited in vain at b that it is given up; a seems as busy, so that some come to b."""
    async with asyncio.timeout(DEADLINE_S):
        while place.states()[1] != "away":
            place.a.hold(MODEL)
            tasks = [asyncio.create_task(place.infer(timeout_s=0.02)) for _ in range(4)]
            await asyncio.wait(tasks, timeout=0.01)
            place.a.release(MODEL)
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_waits_at_a_frozen_endpoint_is_answered_by_another_one() -> None:
    async with bench(limits=PATIENT) as place:
        tasks = await under_way_at_b(place, 3)
        place.b.freeze()
        await place.until(lambda: place.states()[1] == "away")
        async with asyncio.timeout(DEADLINE_S):
            results = await asyncio.gather(*tasks)
        assert [cancelled for _, cancelled in results] == [0, 0, 0]
        assert place.count("requests_total", endpoint="b:1", outcome="unavailable") == 3
        assert place.count("requests_total", endpoint="b:1", outcome="cancelled") == 0
        assert place.count("outstanding", endpoint="b:1") == 0
        assert place.count("ejections_total", endpoint="b:1") == 1


async def test_a_single_look_tells_who_answers_nothing_at_all() -> None:
    async with bench(limits=PATIENT) as place:
        tasks = await under_way_at_b(place, 1)
        place.b.freeze()
        await place.look()
        await place.until(lambda: place.count("ejections_total", endpoint="b:1") == 1)
        assert "neither" in place.pool.endpoints[1].reason
        await asyncio.gather(*tasks)

    async with bench(limits=PATIENT) as place:
        place.b.freeze()  # nobody waits for it: one look is no proof
        assert not await place.pool._roster.check(place.pool._roster.members[1])
        place.b.thaw()
        assert place.states() == ["in service"] * 2


async def test_what_waits_at_one_that_is_given_up_for_being_slow_is_answered_by_another_one() -> None:
    async with bench(limits=replace(PATIENT, timeouts=2)) as place:
        tasks = await under_way_at_b(place, 2)
        await give_up_slow_b(place)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*tasks)
        assert place.count("requests_total", endpoint="b:1", outcome="unavailable") >= 2


async def test_who_is_not_waited_for_any_more_at_that_moment_is_asked_nobody_else() -> None:
    async with bench(limits=PATIENT) as place:
        (task,) = await under_way_at_b(place, 1)
        asked = place.asked()["a:1"]
        roster = place.pool._roster
        for _ in range(QUICK.failures):
            roster.failed(roster.members[1], BackendUnavailable("it is gone"))
        assert place.states() == ["in service", "away"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert place.asked()["a:1"] == asked
        assert place.count("requests_total", endpoint="b:1", outcome="cancelled") == 1


async def test_where_nobody_else_takes_it_it_stays_where_it_is() -> None:
    async with bench(3, rules=("model=times -> b:1",), limits=PATIENT) as place:
        place.b.hold(MODEL)
        task = asyncio.create_task(place.infer())
        await place.b.wait_until_held(MODEL)
        place.b.freeze()
        await place.until(lambda: place.states()[1] == "away")
        place.b.thaw()
        place.b.release(MODEL)
        async with asyncio.timeout(DEADLINE_S):
            assert (await task).model_version == "1"


async def test_the_only_one_that_takes_a_model_is_not_given_up_for_being_slow() -> None:
    async with bench(rules=("model=times -> b:1", "model=m -> a:1"), limits=PATIENT) as place:
        place.a.add_model(mean_model(), mean)
        await place.pool.load("m", (1,))
        assert await place.pool.serving("m") == (1,)
        place.b.hold(MODEL)
        for _ in range(2 * QUICK.timeouts):
            with pytest.raises(BackendTimeout):
                await place.infer(timeout_s=0.03)
        assert place.states() == ["in service"] * 2
        place.b.release(MODEL)


async def test_it_gets_what_is_left_of_its_time() -> None:
    async with bench(limits=PATIENT) as place:
        (task,) = await under_way_at_b(place, 1)
        started = time.monotonic()
        place.b.freeze()
        await place.until(lambda: place.states()[1] == "away")
        await task
        asked = place.a.requests[-1]
        assert asked.timeout_s < DEADLINE_S - 0.15  # b was given up after a health check of 0.2 s at least
        assert asked.timeout_s > DEADLINE_S - (time.monotonic() - started) - 5.0


class EndsLate(MemoryTriton):
    """One whose connection ends just when the time is over."""

    async def infer(self, request: InferRequest) -> InferResponse:
        self.requests.append(request)
        await asyncio.sleep(request.timeout_s + 0.01)
        raise BackendUnavailable("the connection has ended")


async def test_nobody_is_asked_when_the_time_is_over() -> None:
    servers = {"a:1": EndsLate(), "b:1": EndsLate()}
    pool = TritonPool(servers, Metrics(), limits=QUICK)
    with pytest.raises(BackendUnavailable, match="ended"):
        await pool.infer(ask(MODEL, timeout_s=0.03))
    assert sum(len(server.requests) for server in servers.values()) == 1
    await pool.close()


async def test_who_crashes_takes_no_more_requests_until_the_model_runs_again() -> None:
    async with bench(3, limits=PATIENT) as place:
        for _ in range(2):
            await place.infer()
        (next_one,) = [name for name, asked in place.asked().items() if not asked]
        place.servers[next_one].fail(MODEL, ModelCrashed("its process has ended"))
        with pytest.raises(ModelCrashed):
            await place.infer()
        (said,) = [each for each in place.pool.endpoints if each.state == "catching up"]
        assert said.address == next_one
        assert "crashed" in said.reason


async def test_who_crashes_as_the_second_that_is_asked_takes_no_more_requests_either() -> None:
    async with bench(3, limits=PATIENT) as place:
        for _ in range(2):
            await place.infer()
        (next_one,) = [name for name, asked in place.asked().items() if not asked]
        for name, server in place.servers.items():
            unreached = BackendUnavailable("it is not there")
            server.fail(MODEL, unreached if name == next_one else ModelCrashed("its process has ended"))
        with pytest.raises(ModelCrashed):
            await place.infer()
        assert place.asked()[next_one] == 1
        assert sum(place.asked().values()) == 4
        (said,) = [each for each in place.pool.endpoints if each.state == "catching up"]
        assert said.address != next_one


async def test_time_outs_count_in_a_row_alone() -> None:
    async with bench(limits=PATIENT) as place:
        place.a.stop()  # who is left is never given up for being slow, but counts
        for server in place.servers.values():
            server.start()
        await place.pool.load(MODEL, (1,), CONFIG)
        await place.look()
        for _ in range(3 * QUICK.timeouts):
            for server in place.servers.values():
                server.hold(MODEL)
            results = await asyncio.gather(*(place.infer(timeout_s=0.03) for _ in range(2)), return_exceptions=True)
            assert [type(each) for each in results] == [BackendTimeout] * 2
            for server in place.servers.values():
                server.release(MODEL)
            await asyncio.gather(*(place.infer() for _ in range(2)))
        assert place.states() == ["in service"] * 2


async def half_open(place: Bench) -> None:
    """Bring b back, and ask nothing of it."""
    await place.give_up(place.b)
    place.b.start()
    await place.in_service()


async def test_one_that_is_back_is_given_up_at_the_first_time_out() -> None:
    async with bench() as place:
        await half_open(place)
        place.b.hold(MODEL)
        before, asked = place.count("ejections_total", endpoint="b:1"), place.asked()["b:1"]
        while place.count("ejections_total", endpoint="b:1") == before:
            await asyncio.gather(place.infer(timeout_s=0.05), place.infer(timeout_s=0.05), return_exceptions=True)
        assert place.asked()["b:1"] == asked + 1
        place.b.release(MODEL)


async def test_a_refusal_is_an_answer_of_one_that_is_back() -> None:
    async with bench() as place:
        await half_open(place)
        for server in place.servers.values():
            server.fail(MODEL, BackendRejected("it fails on this"))
        for _ in range(4):
            with pytest.raises(BackendRejected):
                await place.infer()
        for server in place.servers.values():
            server.fail(MODEL, None)
            server.hold(MODEL)
        tasks = [asyncio.create_task(place.infer()) for _ in range(6)]
        async with asyncio.timeout(DEADLINE_S):
            await place.b.wait_until_held(MODEL, 3)  # half open it had one
        for server in place.servers.values():
            server.release(MODEL)
        await asyncio.gather(*tasks)


async def test_requests_that_are_given_little_time_find_out_who_hangs_too() -> None:
    assert Limits.within(5.0) == Limits()
    async with bench(limits=replace(Limits.within(0.04), first_pause_s=NEVER_S)) as place:
        place.b.hold(MODEL)
        async with asyncio.timeout(DEADLINE_S):
            while place.states()[1] != "away":
                await asyncio.gather(*(place.infer(timeout_s=0.04) for _ in range(2)), return_exceptions=True)
        place.b.release(MODEL)


class Broken(MemoryTriton):
    """One with a defect."""

    async def infer(self, request: InferRequest) -> InferResponse:
        raise ValueError("a defect")


async def test_a_defect_is_not_counted_as_given_up() -> None:
    metrics = Metrics()
    pool = TritonPool({"a:1": Broken(), "b:1": Broken()}, metrics, limits=QUICK)
    with pytest.raises(ValueError, match="defect"):
        await pool.infer(ask(MODEL))
    counts = [
        sum(metrics.value("triton_endpoint_requests_total", endpoint=each, outcome=outcome) for each in ("a:1", "b:1"))
        for outcome in ("failed", "cancelled")
    ]
    assert counts == [1, 0]
    await pool.close()


class Asked(MemoryTriton):
    """One that counts who wants tensors, and who asks whether they are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[NDArray[Any]] = []
        self.questions = 0

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        self.tensors.append(super().tensor(shape, dtype))
        return self.tensors[-1]

    def holds(self, array: NDArray[Any]) -> bool:
        self.questions += 1
        return any(array is each for each in self.tensors)


def mean_model() -> ModelSignature:
    """Of the mean of a large input."""
    inputs, outputs = (TensorSpec("x0", "FP32", (1, 3, 128, 64)),), (TensorSpec("y", "FP64", (1,)),)
    return ModelSignature("m", "1", inputs, outputs, 0)


def mean(inputs: Any) -> dict[str, NDArray[Any]]:
    return {"y": np.array([float(inputs["x0"].mean())])}


async def test_tensors_come_from_who_takes_requests() -> None:
    servers = {name: Asked() for name in ("a:1", "b:1", "c:1")}
    for server in list(servers.values())[:2]:
        server.add_model(mean_model(), mean)
        await server.load("m", (1,))
    pool = TritonPool(servers, Metrics(), limits=QUICK)
    await pool.serving("m")
    shape, floats = (1, 3, 128, 64), np.dtype(np.float32)
    tensors = [pool.tensor(shape, floats) for _ in range(8)]
    assert [len(server.tensors) for server in servers.values()] == [4, 4, 0]
    del tensors
    await pool.close()


async def test_nobody_else_is_asked_about_a_tensor_of_the_one_with_the_fewest_under_way() -> None:
    first, second = Asked(), Asked()
    for server in (first, second):
        server.add_model(mean_model(), mean)
        await server.load("m", (1,))
    pool = TritonPool({"a:1": first, "b:1": second}, Metrics(), limits=QUICK)
    await pool.serving("m")
    array = first.tensor((1, 3, 128, 64), np.dtype(np.float32))
    array[...] = 1.0
    request = InferRequest("m", {"x0": np.ones_like(array)}, ("y",), DEADLINE_S)
    second.hold("m")
    tasks = []
    while not second.held_requests("m"):
        tasks.append(asyncio.create_task(pool.infer(request)))
        await asyncio.sleep(0.001)
    second.questions = 0
    for _ in range(4):
        await pool.infer(replace(request, inputs={"x0": array}))
    assert second.questions == 0
    second.release("m")
    await asyncio.gather(*tasks)
    await pool.close()


async def test_a_slot_that_a_hung_endpoint_may_still_read_is_not_used_again(tmp_path: Path) -> None:
    async with listening() as (wire, url):
        wire.says(ModelMetadata=messages.ModelMetadataResponse(name="m", versions=["1"]))
        reading = ReadingTriton(wire, tmp_path)
        hung = TritonServer(url, shared_memory_bytes=4 * 2**20, shared_memory_folder=tmp_path)
        other = MemoryTriton()
        other.add_model(mean_model(), mean)
        await other.load("m", (1,))
        pool = TritonPool({url: hung, "b:1": other}, Metrics(), limits=replace(PATIENT, timeouts=1))
        assert await pool.serving("m") == (1,)

        async def one(timeout_s: float = DEADLINE_S) -> float:
            array = hung.tensor((1, 3, 128, 64), np.dtype(np.float32))
            array[...] = 7.0
            response = await pool.infer(InferRequest("m", {"x0": array}, ("y",), timeout_s))
            return float(response.outputs["y"][0])

        async with asyncio.timeout(DEADLINE_S):
            while len(reading.by_memory) < 3:
                await one()
        reading.answers.clear()
        asked = len(reading.by_memory)
        waits = asyncio.create_task(one())
        async with asyncio.timeout(DEADLINE_S):
            while len(reading.by_memory) == asked:
                await asyncio.sleep(0.002)
        with contextlib.suppress(BackendTimeout):  # what pytest raises would hold on to the tensor
            await one(0.1)
        async with asyncio.timeout(DEADLINE_S):
            assert await waits == 7.0
        assert len(other.requests) == 1
        other.requests.clear()
        del waits
        assert hung.shared_memory_slots["quarantined"] == 2
        assert pool.endpoints[0].state == "away"
        reading.answers.set()
        await pool.close()


async def test_routes_are_kept_for_so_many_tenants_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.adapters.triton_pool_balance.MOST_ROUTES", 8)
    async with bench(rules=("model=*,tenant=north -> a:1",)) as place:
        for number in range(20):
            await place.infer(f"unit-{number}")
        assert len(place.pool._roster.routes) <= 8
