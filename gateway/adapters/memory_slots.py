"""Slots in shared memory: each holds one tensor, and is free again when nobody holds its array any more."""

from __future__ import annotations

import bisect
import math
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

STEP = 64 * 2**10
"""Sizes are rounded up to a multiple of this, so that inputs of nearly the same size share their slots."""
REFUSED_FOR_S = 10.0
"""How long no new slot is made after the machine had no memory for one."""
IDLE_S = 2.0
"""How long a free slot has not been used that gives way. Two sizes that fill the memory would take it from each other
at every call otherwise, and to make a slot of 4.9 MB costs 1.4 ms of CPU, as much as its bytes in a request."""
STATES = ("free", "leased", "quarantined")


class Memory(Protocol):
    """Where slots lie; see Segment."""

    address: int
    size: int

    def commit(self, offset: int, size: int) -> None:
        """Take the memory of a part; raises OSError."""
        ...

    def discard(self, offset: int, size: int) -> None:
        """Give it back."""
        ...


class Part(NamedTuple):
    """Where the bytes of an array lie in the memory."""

    offset: int
    size: int


@dataclass(slots=True, eq=False)
class _Slot:
    offset: int
    size: int
    used_at: float
    leased: bool = True
    quarantined_until: float = 0.0

    @property
    def end(self) -> int:
        return self.offset + self.size


class _Lease:
    """What the array of a slot and all parts of it hold on to; the slot goes back when it dies."""

    __slots__ = ("__array_interface__", "_memory", "_returned", "_slot")

    def __init__(self, slot: _Slot, memory: Memory, returned: deque[_Slot], interface: dict[str, Any]) -> None:
        self._slot = slot
        self._memory = memory  # which stays mapped as long as anybody holds an array in it
        self._returned = returned
        self.__array_interface__ = interface

    def __del__(self) -> None:
        # It may die in any thread, also in one that holds the lock of the slots: only this is safe then.
        self._returned.append(self._slot)


class Slots:
    """The slots in one piece of memory, made as they are needed; safe to use from any thread.

    A slot is free, leased, or quarantined for some time after it came back. A free one serves tensors of its own
    rounded size; where there is no room for another size, free ones that have not been used lately give way.
    """

    def __init__(self, memory: Memory, clock: Callable[[], float] = time.monotonic) -> None:
        self.memory = memory
        self.refusal: OSError | None = None
        """Why the last slot could not be made; None as soon as one could."""
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: list[_Slot] = []  # by their offset
        self._returned: deque[_Slot] = deque()
        self._refused_until = float("-inf")

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """An array in a slot of its own, contents undefined; None where there is no room."""
        size = self._rounded(shape, dtype)
        now = self._clock()
        with self._lock:
            self._take_back()
            slot = self._free_one(size, now)
            if slot is not None:
                slot.leased, slot.used_at = True, now
        slot = slot or self._new_one(size, now)
        if slot is None:
            return None
        place = (self.memory.address + slot.offset, False)
        interface = {"version": 3, "shape": shape, "typestr": dtype.str, "data": place}
        return np.asarray(_Lease(slot, self.memory, self._returned, interface))

    def can_fit(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Whether there is room for such an array when nobody else has one."""
        return self._rounded(shape, dtype) <= self.memory.size

    def find(self, array: NDArray[Any]) -> Part | None:
        """Where an array lies that `array` gave, or a part of one without gaps; None for any other."""
        offset = array.__array_interface__["data"][0] - self.memory.address
        if not 0 <= offset < self.memory.size or not array.flags.c_contiguous:
            return None
        with self._lock:
            slot = self._at(offset)
            inside = slot is not None and slot.leased and offset + array.nbytes <= slot.end
        return Part(offset, array.nbytes) if inside else None

    def quarantine(self, part: Part, seconds: float) -> None:
        """Lease the slot of this part to nobody for so long, for Triton may still be reading it."""
        with self._lock:
            slot = self._at(part.offset)
            if slot is not None:
                slot.quarantined_until = self._clock() + seconds

    def end_quarantine(self) -> None:
        """Whoever may have been reading has ended."""
        with self._lock:
            for slot in self._slots:
                slot.quarantined_until = 0.0

    def counts(self) -> Mapping[str, int]:
        """How many slots are in each state."""
        with self._lock:
            self._take_back()
            now = self._clock()
            states = [self._state(slot, now) for slot in self._slots]
        return {state: states.count(state) for state in STATES}

    @property
    def size(self) -> int:
        """Bytes of all slots together."""
        with self._lock:
            return sum(slot.size for slot in self._slots)

    @staticmethod
    def _rounded(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        return -(-math.prod(shape) * dtype.itemsize // STEP) * STEP

    @staticmethod
    def _state(slot: _Slot, now: float) -> str:
        if slot.leased:
            return "leased"
        return "quarantined" if slot.quarantined_until > now else "free"

    def _take_back(self) -> None:
        while self._returned:
            self._returned.popleft().leased = False

    def _at(self, offset: int) -> _Slot | None:
        """The slot that this byte belongs to."""
        index = bisect.bisect_right(self._slots, offset, key=operator.attrgetter("offset")) - 1
        return self._slots[index] if index >= 0 and offset < self._slots[index].end else None

    def _free_one(self, size: int, now: float) -> _Slot | None:
        """The one of this size that was used last: the fewer are touched, the less memory is used."""
        free = (slot for slot in self._slots if slot.size == size and self._state(slot, now) == "free")
        return max(free, key=operator.attrgetter("used_at"), default=None)

    def _new_one(self, size: int, now: float) -> _Slot | None:
        """A leased slot with memory of its own, or None; the memory is taken and given back outside the lock, for
        `find` and `counts` are asked in an event loop."""
        with self._lock:
            offset = self._room(size, now)
            if offset is None:
                return None
            slot, idle = self._reserve(offset, size, now)
        refusal = self._exchange(idle, offset, size)
        with self._lock:
            self.refusal = refusal
            if refusal is not None:
                self._refused_until = now + REFUSED_FOR_S
                self._slots.remove(slot)
                return None
            slot.offset, slot.size = offset, size
        return slot

    def _room(self, size: int, now: float) -> int | None:
        """Where there is room for a slot, beside all others or in place of idle ones."""
        if now < self._refused_until:
            return None
        offset = _gap(self._slots, size, self.memory.size)
        if offset is None:
            taken = [slot for slot in self._slots if self._state(slot, now) != "free" or slot.used_at > now - IDLE_S]
            offset = _gap(taken, size, self.memory.size)
        return offset

    def _reserve(self, offset: int, size: int, now: float) -> tuple[_Slot, list[_Slot]]:
        """Put one slot in place of the idle ones there, as large as all of them until their memory is given back."""
        end = offset + size
        idle = [slot for slot in self._slots if slot.offset < end and slot.end > offset]
        for slot in idle:
            self._slots.remove(slot)
        start = min([offset, *(slot.offset for slot in idle)])
        reserved = _Slot(start, max([end, *(slot.end for slot in idle)]) - start, now)
        bisect.insort(self._slots, reserved, key=operator.attrgetter("offset"))
        return reserved, idle

    def _exchange(self, idle: list[_Slot], offset: int, size: int) -> OSError | None:
        """Give the memory of idle slots back and take that of a new one; returns why that cannot be."""
        for slot in idle:
            self.memory.discard(slot.offset, slot.size)
        try:
            self.memory.commit(offset, size)
        except OSError as error:
            return error
        return None


def _gap(slots: list[_Slot], size: int, end: int) -> int | None:
    """Where that many bytes are between these slots, which are in order; the first such place."""
    offset = 0
    for slot in slots:
        if slot.offset - offset >= size:
            return offset
        offset = slot.end
    return offset if end - offset >= size else None
