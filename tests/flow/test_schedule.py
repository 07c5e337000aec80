"""The queue is bounded in messages and bytes, keeps the freshest of each camera, and lets nobody starve."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.schedule import Schedule
from gateway.messages import Job
from gateway.metrics import Metrics
from tests.flow.builders import job, served

MODEL = served()
arrivals = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40), st.integers(-1, 1)), max_size=60)


@given(arrivals, st.integers(1, 8), st.integers(10, 120))
def test_never_more_than_the_limits_and_nothing_vanishes(
    arriving: list[tuple[str, int, int]], max_messages: int, max_bytes: int
) -> None:
    schedule = Schedule(max_messages, max_bytes, Metrics())
    put: list[Job] = []
    gone: list[Job] = []
    for device, size, priority in arriving:
        put.append(job(device, b"x" * size, priority, MODEL))
        gone += schedule.put(put[-1])
        assert len(schedule) <= max_messages
    rest = schedule.drain()
    assert sum(item.size for item in rest) <= max_bytes
    assert {id(item) for item in put} == {id(item) for item in gone} | {id(item) for item in rest}
    assert len(gone) + len(rest) == len(put)


@given(arrivals, st.integers(4, 8))
def test_of_equal_priority_the_freshest_of_each_camera_stays(
    arriving: list[tuple[str, int, int]], max_messages: int
) -> None:
    schedule = Schedule(max_messages, 10**6, Metrics())  # room for each of the four cameras
    newest: dict[str, Job] = {}
    for device, size, _ in arriving:
        newest[device] = job(device, b"x" * size, 0, MODEL)
        schedule.put(newest[device])
    rest = {id(item) for item in schedule.drain()}
    assert all(id(item) in rest for item in newest.values())


async def test_priority_first_then_cameras_in_turn_then_oldest_first() -> None:
    schedule = Schedule(10, 1000, Metrics())
    first, second, other, urgent = job("a"), job("a"), job("b"), job("c", priority=5)
    for item in (first, second, other, urgent):
        assert schedule.put(item) == []
    assert [await schedule.get() for _ in range(4)] == [urgent, first, other, second]


async def test_a_fast_camera_cannot_push_out_a_slow_one() -> None:
    schedule = Schedule(4, 1000, Metrics())
    slow = job("slow")
    schedule.put(slow)
    for _ in range(20):
        schedule.put(job("fast"))
    assert slow in schedule.drain()


async def test_low_priority_makes_room_for_high() -> None:
    schedule = Schedule(2, 1000, Metrics())
    low, high = job("a", priority=0), job("b", priority=1)
    schedule.put(low)
    schedule.put(high)
    assert schedule.put(job("c", priority=1)) == [low]


async def test_a_job_larger_than_the_queue_is_refused_at_once() -> None:
    schedule = Schedule(2, 10, Metrics())
    waiting, huge = job("a", b"x" * 9), job("b", b"x" * 11)
    schedule.put(waiting)
    assert schedule.put(huge) == [huge]
    assert schedule.drain() == [waiting]


async def test_get_waits_for_a_job_and_survives_evictions() -> None:
    schedule = Schedule(1, 1000, Metrics())
    getting = asyncio.create_task(schedule.get())
    await asyncio.sleep(0)
    item = job("a")
    schedule.put(item)
    assert await getting is item
    for _ in range(5):
        schedule.put(job("a"))
    last = job("a")
    schedule.put(last)
    assert await schedule.get() is last
    async with asyncio.timeout(5):
        getting = asyncio.create_task(schedule.get())
        await asyncio.sleep(0)
        schedule.put(item)
        assert await getting is item
