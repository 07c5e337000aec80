"""Slots in shared memory: never handed out twice, back when nobody holds them, and never more than there is room."""

from __future__ import annotations

import errno
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.adapters.memory_slots import IDLE_S, REFUSED_FOR_S, STEP, Slots

BYTES = np.dtype(np.uint8)
STEPS = 8


@dataclass
class Room:
    """Ordinary memory in place of a segment, and what was done to it."""

    steps: int = STEPS
    error: OSError | None = None
    committed: set[int] = field(default_factory=set)
    discards: int = 0
    meanwhile: Callable[[], object] = int
    """Called while memory is taken or given back."""

    def __post_init__(self) -> None:
        self.bytes = np.zeros(self.steps * STEP, np.uint8)
        self.size = self.bytes.nbytes
        self.address: int = self.bytes.__array_interface__["data"][0]

    def commit(self, offset: int, size: int) -> None:
        if self.error is not None:
            raise self.error
        parts = set(range(offset // STEP, (offset + size) // STEP))
        assert not parts & self.committed
        self.committed |= parts
        self.meanwhile()

    def discard(self, offset: int, size: int) -> None:
        self.committed -= set(range(offset // STEP, (offset + size) // STEP))
        self.bytes[offset : offset + size] = 0
        self.discards += 1
        self.meanwhile()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slots(room: Room, clock: Clock) -> Slots:
    return Slots(room, clock)


def lease(slots: Slots, steps: int = 1) -> NDArray[np.uint8]:
    array = slots.array((steps, STEP), BYTES)
    assert array is not None
    return array


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("lease"), st.integers(1, STEPS + 1)),
            st.tuples(st.sampled_from(("release", "quarantine", "keep a part")), st.integers(0, 20)),
            st.tuples(st.just("wait"), st.integers(1, 40)),
        ),
        max_size=60,
    )
)
def test_whatever_happens_no_two_hold_the_same_memory_and_the_counts_are_right(steps: list[tuple[str, int]]) -> None:
    room, clock = Room(), Clock()
    slots = Slots(room, clock)
    held: list[tuple[NDArray[np.uint8], int]] = []
    until: dict[int, float] = {}
    for number, (what, value) in enumerate(steps):
        if what == "lease":
            array = slots.array((value, STEP), BYTES)
            if array is not None:
                place = slots.find(array)
                assert place is not None
                assert until.get(place.offset, 0.0) <= clock.now
                array[...] = number % 251
                held.append((array, number % 251))
            del array
        elif what == "wait":
            clock.now += value
        elif held and what == "release":
            held.pop(value % len(held))
        elif held and what == "keep a part":
            array, mark = held.pop(value % len(held))
            held.append((array[-1:, 5:], mark))
            del array
        elif held:
            array, _ = held[value % len(held)]
            if (part := slots.find(np.ascontiguousarray(array))) or (part := slots.find(array)):
                slots.quarantine(part, 30.0)
                until[part.offset] = clock.now + 30.0
            del array

        assert all((array == mark).all() for array, mark in held)
        counts = slots.counts()
        assert counts["leased"] == len(held)
        assert slots.size == len(room.committed) * STEP <= room.size
    del held
    clock.now += 31
    counts = slots.counts()
    assert (counts["leased"], counts["quarantined"]) == (0, 0)


def test_a_slot_is_used_again_as_soon_as_its_array_is_gone(slots: Slots) -> None:
    places = set()
    for _ in range(5):
        array = lease(slots)
        places.add(slots.find(array))
        del array

    assert len(places) == 1
    assert slots.counts() == {"free": 1, "leased": 0, "quarantined": 0}


def test_any_part_and_any_other_view_holds_it(slots: Slots) -> None:
    views: list[Callable[[Any], object]] = [
        lambda array: array[0:1],
        lambda array: array.reshape(-1)[7:],
        memoryview,
        lambda array: np.asarray(array).view(np.float32),
    ]
    for view in views:
        kept = view(lease(slots))
        assert slots.counts()["leased"] == 1
        del kept
        assert slots.counts()["leased"] == 0


def test_a_slice_of_a_batch_is_found_where_it_lies(slots: Slots) -> None:
    batch = lease(slots, 4)
    whole, second = slots.find(batch), slots.find(batch[1:3])

    assert whole is not None
    assert second == (whole.offset + STEP, 2 * STEP)
    assert slots.find(batch[:, ::2]) is None
    assert slots.find(batch.copy()) is None


def test_a_quarantined_slot_waits_until_its_time_is_over(slots: Slots, clock: Clock) -> None:
    array = lease(slots, STEPS)
    part = slots.find(array)
    assert part is not None
    slots.quarantine(part, 30.0)
    del array

    assert slots.counts()["quarantined"] == 1
    assert slots.array((1, STEP), BYTES) is None
    clock.now = 30.5
    assert slots.counts()["free"] == 1
    assert slots.array((1, STEP), BYTES) is not None


def test_the_end_of_triton_ends_every_quarantine(slots: Slots) -> None:
    array = lease(slots)
    part = slots.find(array)
    assert part is not None
    slots.quarantine(part, 30.0)
    del array

    slots.end_quarantine()

    assert slots.counts() == {"free": 1, "leased": 0, "quarantined": 0}


def test_slots_of_a_size_that_is_not_used_any_more_give_way(slots: Slots, room: Room, clock: Clock) -> None:
    small = [lease(slots) for _ in range(STEPS)]
    assert slots.array((2, STEP), BYTES) is None
    del small[2:5]
    clock.now = IDLE_S + 1

    large = lease(slots, 3)

    assert slots.counts() == {"free": 0, "leased": STEPS - 2, "quarantined": 0}
    assert len(room.committed) == STEPS
    assert large.shape == (3, STEP)


def test_two_sizes_that_fill_it_do_not_take_it_from_each_other_at_every_call(
    slots: Slots, room: Room, clock: Clock
) -> None:
    given = []
    for _ in range(50):
        clock.now += IDLE_S / 10
        given += [slots.array((steps, STEP), BYTES) is not None for steps in (STEPS, STEPS - 1)]

    assert given == [True, False] * 50
    assert room.discards == 0


def test_while_memory_is_taken_and_given_back_nobody_waits_and_nobody_gets_it(
    slots: Slots, room: Room, clock: Clock
) -> None:
    idle, kept = [lease(slots, 3), lease(slots, 3)], lease(slots)
    del idle[:]
    clock.now = IDLE_S + 1
    unanswered: list[bool] = []
    given: list[NDArray[np.uint8]] = []

    def ask() -> None:
        slots.find(kept)
        slots.counts()
        array = slots.array((1, STEP), BYTES)
        given.extend([array] if array is not None else [])

    def look() -> None:
        room.meanwhile = int
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(2)
        unanswered.append(asking.is_alive())
        room.meanwhile = look

    room.meanwhile = look
    large = lease(slots, 4)
    room.meanwhile = int

    assert unanswered == [False] * 3
    [only] = given
    rest = lease(slots, 2)
    arrays = (large, kept, only, rest)
    assert len({slots.find(array) for array in arrays}) == 4
    assert sum(array.nbytes for array in arrays) == room.size


def test_a_tensor_larger_than_all_of_it_costs_the_others_nothing(slots: Slots) -> None:
    del_later = lease(slots)
    del del_later

    assert not slots.can_fit((STEPS * STEP + 1,), BYTES)
    assert slots.can_fit((STEPS * STEP,), BYTES)
    assert slots.array((STEPS + 1, STEP), BYTES) is None
    assert slots.counts()["free"] == 1


def test_memory_that_the_machine_does_not_have_is_asked_for_again_after_a_while(
    slots: Slots, room: Room, clock: Clock
) -> None:
    room.error = OSError(errno.ENOSPC, "No space left on device")
    assert slots.array((1, STEP), BYTES) is None
    assert slots.refusal is room.error
    room.error = None
    assert slots.array((1, STEP), BYTES) is None

    clock.now = REFUSED_FOR_S + 1
    lease(slots)
    assert str(slots.refusal) == "None"


def test_arrays_may_die_in_any_thread_and_in_a_collection_at_any_moment(room: Room) -> None:
    slots = Slots(room)

    class Cycle:
        def __init__(self, array: NDArray[np.uint8] | None) -> None:
            self.itself, self.array = self, array

    def work() -> None:
        for _ in range(200):
            Cycle(slots.array((1, STEP), BYTES))
            gc.collect(0)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    gc.collect()

    assert slots.counts()["leased"] == 0
