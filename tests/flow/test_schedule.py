"""The queue is bounded in messages and bytes, keeps the freshest of each camera, and lets nobody starve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

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
