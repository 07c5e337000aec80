"""The queue is bounded in messages and bytes, keeps the freshest of each camera, and lets nobody starve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.flow.lanes import Service
from gateway.flow.schedule import Schedule
from gateway.messages import Job
from gateway.metrics import Metrics
from tests.flow.builders import job, served, spec

MODEL = served()


def schedule(max_messages: int, max_bytes: int, serves: Callable[[str], bool] = lambda _: True) -> Schedule:
    return Schedule(max_messages, max_bytes, serves, Metrics())


arrivals = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40), st.integers(-1, 1)), max_size=60)


@given(arrivals, st.integers(1, 8), st.integers(10, 120))
def test_never_more_than_the_limits_and_nothing_vanishes(
    arriving: list[tuple[str, int, int]], max_messages: int, max_bytes: int
) -> None:
    queue = schedule(max_messages, max_bytes)
    put: list[Job] = []
    gone: list[Job] = []
    for device, size, priority in arriving:
        put.append(job(device, b"x" * size, priority, MODEL))
        gone += queue.put(put[-1])
        assert len(queue) <= max_messages
    rest = queue.drain()
    assert sum(item.size for item in rest) <= max_bytes
    assert {id(item) for item in put} == {id(item) for item in gone} | {id(item) for item in rest}
    assert len(gone) + len(rest) == len(put)


@given(arrivals, st.integers(4, 8))
def test_of_equal_priority_the_freshest_of_each_camera_stays(
    arriving: list[tuple[str, int, int]], max_messages: int
) -> None:
    queue = schedule(max_messages, 10**6)  # room for each of the four cameras
    newest: dict[str, Job] = {}
    for device, size, _ in arriving:
        newest[device] = job(device, b"x" * size, 0, MODEL)
        queue.put(newest[device])
    rest = {id(item) for item in queue.drain()}
    assert all(id(item) in rest for item in newest.values())


async def test_priority_first_then_cameras_in_turn_then_oldest_first() -> None:
    queue = schedule(10, 1000)
    first, second, other, urgent = job("a"), job("a"), job("b"), job("c", priority=5)
    for item in (first, second, other, urgent):
        assert queue.put(item) == []
    assert [await queue.get() for _ in range(4)] == [urgent, first, other, second]


async def test_a_fast_camera_cannot_push_out_a_slow_one() -> None:
    queue = schedule(4, 1000)
    slow = job("slow")
    queue.put(slow)
    for _ in range(20):
        queue.put(job("fast"))
    assert slow in queue.drain()


async def test_low_priority_makes_room_for_high() -> None:
    queue = schedule(2, 1000)
    low, high = job("a", priority=0), job("b", priority=1)
    queue.put(low)
    queue.put(high)
    assert queue.put(job("c", priority=1)) == [low]


async def test_a_job_larger_than_the_queue_is_refused_at_once() -> None:
    queue = schedule(2, 10)
    waiting, huge = job("a", b"x" * 9), job("b", b"x" * 11)
    queue.put(waiting)
    assert queue.put(huge) == [huge]
    assert queue.drain() == [waiting]


async def test_get_waits_for_a_job_and_survives_evictions() -> None:
    queue = schedule(1, 1000)
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    item = job("a")
    queue.put(item)
    assert await getting is item
    for _ in range(5):
        queue.put(job("a"))
    last = job("a")
    queue.put(last)
    assert await queue.get() is last
    async with asyncio.timeout(5):
        getting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.put(item)
        assert await getting is item


async def test_a_model_that_does_not_serve_holds_up_no_other_and_is_served_when_it_does() -> None:
    serving = {"detector"}
    queue = schedule(10, 1000, serving.__contains__)
    waiting, other = job("a", model=served(spec("late"))), job("a")
    queue.put(waiting)
    queue.put(other)
    assert await queue.get() is other
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not getting.done()
    serving.add("late")
    queue.look_again()
    assert await getting is waiting


async def test_it_looks_once_a_turn_however_much_has_happened_in_it() -> None:
    looks, full = [], True

    def room(service: Service) -> bool:
        looks.append(service)
        return not full

    queue = Schedule(10, 1000, lambda _: True, Metrics(), room)
    getting = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    jobs = {job("a"), job("b")}
    for each in jobs:
        queue.put(each)
    queue.look_again()
    await asyncio.sleep(0)
    assert len(looks) == 1
    full = False
    queue.look_again()
    assert set(await asyncio.gather(*getting)) == jobs


async def test_a_service_without_room_holds_up_no_other_of_the_same_camera_and_model() -> None:
    full = {("detector", "onnx")}
    queue = Schedule(10, 1000, lambda _: True, Metrics(), lambda service: service not in full)
    waiting, other, plain = (job("a", preference=each) for each in ("onnx", "torch", None))
    for item in (waiting, other, plain):
        queue.put(item)
    taken = [queue.take() for _ in range(3)]
    assert {id(item) for item in taken} == {id(other), id(plain), id(None)}
    assert not queue.waiting_only, "it waits for room, which is no reason to leave it to the broker"
    full.clear()
    assert queue.take() is waiting


class Floor:
    """Workers at a queue, and two models each of which takes so many jobs at once."""

    def __init__(self, workers: int) -> None:
        self.limits = {"a": 1, "b": 2}
        self.in_flight = {"a": 0, "b": 0}
        self.queue = Schedule(1000, 10**6, lambda _: True, Metrics(), lambda service: self.has_room(service[0]))
        self._models = {name: served(spec(name)) for name in self.limits}
        self._ends: dict[str, list[asyncio.Event]] = {"a": [], "b": []}
        self.idle = 0
        self.workers = [asyncio.create_task(self.work()) for _ in range(workers)]

    def has_room(self, name: str) -> bool:
        return self.in_flight[name] < self.limits[name]

    async def work(self) -> None:
        while True:
            self.idle += 1
            try:
                name = (await self.queue.get()).model.spec.name
            finally:
                self.idle -= 1
            self.in_flight[name] += 1
            end = asyncio.Event()
            self._ends[name].append(end)
            await end.wait()
            self.in_flight[name] -= 1
            self.queue.look_again()

    def do(self, what: str, name: str) -> None:
        match what:
            case "put":
                self.queue.put(job("camera", model=self._models[name]))
            case "done" if self._ends[name]:
                self._ends[name].pop(0).set()
            case "raise":
                self.limits[name] += 3
                self.queue.look_again()
            case "cut":
                self.limits[name] = max(1, self.limits[name] - 1)
            case "cancel" if self.workers:
                self.queue.put(job("camera", model=self._models[name]))  # which wakes up one, perhaps this one
                self.workers.pop(0).cancel()

    @property
    def waiting(self) -> set[str]:
        """The models of the jobs that wait."""
        lines = [line for level in self.queue._levels.values() for line in level._lines.values()]
        return {item.model.spec.name for line in lines for item in line.jobs.values()}


steps = st.lists(
    st.tuples(st.sampled_from(("put", "done", "raise", "cut", "cancel")), st.sampled_from("ab")), max_size=60
)


@settings(deadline=None, max_examples=60)
@given(steps, st.integers(1, 5))
@example([("raise", "a"), ("cancel", "b")], 2)
@example([("put", "a"), ("put", "a"), ("put", "a"), ("raise", "a")], 4)
def test_no_wake_up_is_lost(doing: list[tuple[str, str]], workers: int) -> None:
    """After each step, and without any other: while a worker is free, no job waits whose model has room."""

    async def run() -> None:
        floor = Floor(workers)
        for step in doing:
            floor.do(*step)
            for _ in range(20):
                await asyncio.sleep(0)
            assert not (floor.idle and any(floor.has_room(name) for name in floor.waiting)), step
        for task in floor.workers:
            task.cancel()
        await asyncio.gather(*floor.workers, return_exceptions=True)

    asyncio.run(run())


async def test_late_jobs_leave_wherever_they_stand() -> None:
    queue = schedule(10, 1000)
    first, late, last = job("a"), job("a"), job("b", priority=-5)
    late = replace(late, deadline_at=time.monotonic() - 1)
    for item in (first, late, last):
        queue.put(item)
    assert queue.expired(time.monotonic()) == [late]
    assert queue.drain() == [first, last]
    assert len(queue) == 0


async def test_a_job_put_back_goes_before_what_has_come_since() -> None:
    queue = schedule(2, 1000)
    old, new, newest = job("a"), job("a"), job("a")
    queue.put(new)
    queue.put(old, again=True)
    assert queue.put(newest) == [old], "the oldest of the lane gives way"
    assert queue.drain() == [new, newest]
