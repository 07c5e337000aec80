"""One version at a time for each camera, and nothing is kept of what is done."""

from __future__ import annotations

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.turns import Turns

steps = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.booleans()), max_size=80)


@given(steps)
def test_one_version_at_a_time_for_each_camera_and_nothing_is_left(plan: list[tuple[str, int, bool]]) -> None:
    turns = Turns()
    in_flight: list[tuple[str, int]] = []
    for device, version, finishes in plan:
        if finishes and in_flight:
            done = in_flight.pop(0)
            turns.leave("model", *done)
        taken = turns.take("model", device, version)
        others = {each for name, each in in_flight if name == device} - {version}
        assert taken is not bool(others)
        if taken:
            in_flight.append((device, version))
        for number in (1, 2, 3):
            assert turns.in_flight("model", number) == sum(each == number for _, each in in_flight)
    for done in in_flight:
        turns.leave("model", *done)
    assert len(turns) == 0


def test_models_and_cameras_do_not_wait_for_each_other() -> None:
    turns = Turns()
    assert turns.take("model", "a", 1)
    assert turns.take("model", "b", 2)
    assert turns.take("other", "a", 2)


async def test_those_who_wait_are_told_when_the_last_one_is_done() -> None:
    turns = Turns()
    for _ in range(2):
        turns.take("model", "a", 1)
    waiting = [asyncio.create_task(turns.changed("model", "a", time.monotonic() + 60)) for _ in range(3)]
    await asyncio.sleep(0)
    turns.leave("model", "a", 1)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    turns.leave("model", "a", 1)
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)
    assert turns.take("model", "a", 2)


async def test_the_wait_ends_at_the_deadline_and_at_once_when_there_is_nothing_to_wait_for() -> None:
    turns = Turns()
    async with asyncio.timeout(5):
        await turns.changed("model", "a", time.monotonic() + 60)
        turns.take("model", "a", 1)
        await turns.changed("model", "a", time.monotonic() + 0.02)
        await turns.changed("model", "a", time.monotonic() - 1)
    assert not turns.take("model", "a", 2)


def test_what_is_held_counts_as_needed_but_takes_no_cameras_turn() -> None:
    turns = Turns()
    turns.hold("model", 1)
    assert turns.take("model", "a", 2)
    assert (turns.in_flight("model", 1), turns.in_flight("model", 2)) == (1, 1)
    turns.drop("model", 1)
    assert turns.in_flight("model", 1) == 0
