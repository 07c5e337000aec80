"""Input tensors through shared memory that Triton reads itself, and in the request where it cannot.

Nothing waits for it: whatever is not there yet, is full, or has been lost goes in the request, and is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from gateway.adapters.memory_segment import PREFIX, SHARED_MEMORY, Segment, remove_leftovers
from gateway.adapters.memory_slots import STATES, Part, Slots
from gateway.adapters.triton_codec import Place, Places
from gateway.adapters.triton_errors import RegionKnown, RegionLost, memory_refusal
from gateway.adapters.triton_messages import service_pb2 as messages
from gateway.adapters.triton_proof import Verdict, close, judge
from gateway.errors import BackendRejected, BackendTimeout, BackendUnavailable, SnapshotError
from gateway.messages import InferRequest, InferResponse

log = structlog.get_logger(__name__)

SMALLEST = 96 * 2**10
"""Bytes of a tensor below which a request that holds them costs no more than one that names a slot."""
QUARANTINE_S = 30.0
"""How long Triton may still read the tensor of a request that was given up: an execution that has begun goes on."""
RETRY_S = 30.0
"""How long it is left alone where Triton cannot read it."""
AGAIN_S = 2.0
"""How long a registration that had no answer is left alone."""
LOSSES, LOSSES_S = 5, 60.0
"""So many losses of the region in so short a time are no restarts of Triton."""
GOODBYE_S = 1.0
FIX = (
    "Let Triton and the gateway share /dev/shm, and run as the same user or group: see docs/howto/shared-memory.md. "
    "Or set TRITON_SHARED_MEMORY=off"
)
NO_ROOM_FIX = "Give /dev/shm more room (a container has 64 MB of it unless told otherwise), or lower "
NO_ROOM_FIX += "SHARED_MEMORY_MAX_BYTES"
TOO_LARGE_FIX = "Raise SHARED_MEMORY_MAX_BYTES to a few times that size, if /dev/shm has the room"

Ask = Callable[[InferRequest, Places], Awaitable[InferResponse]]
Call = Callable[[str, Any, float | None], Awaitable[Any]]


class _State(enum.Enum):
    NEW = "new"
    REGISTERING = "registering"
    UNPROVEN = "unproven"
    PROVING = "proving"
    PROVEN = "proven"
    RETIRED = "retired"


@dataclass(slots=True, eq=False)
class _Epoch:
    """One segment, and how far Triton has got with it."""

    segment: Segment
    slots: Slots
    state: _State = _State.NEW
    not_before: float = 0.0


class SharedMemory:
    """The input tensors of one Triton in at most `max_bytes` of shared memory.

    `ask` sends a request, whose inputs at these places are not in it; `call` is any other call, with a time limit.
    Both raise SnapshotError. `fell_back` is told of each tensor that goes in the request for want of something, and
    why. `near` says that Triton may well be on this machine, so that it is worth a warning when it reads nothing.
    """

    def __init__(
        self,
        max_bytes: int,
        ask: Ask,
        call: Call,
        fell_back: Callable[[str], None],
        *,
        near: bool = True,
        folder: Path = SHARED_MEMORY,
    ) -> None:
        self._max_bytes = max_bytes
        self._ask = ask
        self._call = call
        self._fell_back = fell_back
        self._near = near
        self._folder = folder
        self._lock = threading.Lock()
        self._epoch: _Epoch | None = None
        self._retry_at = float("-inf")
        self._said = ""
        self._no_room_said = False
        self._too_large_said = False
        self._losses: deque[float] = deque(maxlen=LOSSES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory for one input tensor, ordinary memory where there is no other; called in threads."""
        if math.prod(shape) * dtype.itemsize < SMALLEST:
            return np.empty(shape, dtype)
        epoch = self._current()
        if epoch is None:
            self._fell_back("unavailable")
            return np.empty(shape, dtype)
        array = epoch.slots.array(shape, dtype)
        if array is None:
            self._fell_back("full")
            self._say_full(epoch.slots, shape, dtype)
            return np.empty(shape, dtype)
        return array

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask with the tensors where they are, if Triton is known to read them there; else, once, with their bytes."""
        epoch = self._epoch
        places = {} if epoch is None else _places(epoch, request)
        if epoch is None or not places:
            return await self._asked(request, {})
        if epoch.state is _State.PROVEN:
            until = time.monotonic() + request.timeout_s
            try:
                return await self._guarded(epoch, request, places)
            except RegionLost:
                self._lost(epoch)
            left = replace(request, timeout_s=max(0.001, until - time.monotonic()))
            self._count("lost", places)
            return await self._asked(left, {})
        self._count("unproven", places)
        if epoch.state is _State.NEW and time.monotonic() >= epoch.not_before:
            epoch.state = _State.REGISTERING
            self._begin(self._register(epoch), "register shared memory")
        response = await self._asked(request, {})
        if epoch.state is _State.UNPROVEN:
            epoch.state = _State.PROVING
            again = replace(request, trace=())  # or it would stand in the trace of a snapshot twice
            self._begin(self._prove(epoch, again, places, response), "prove shared memory")
        return response

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether an array lies in this memory."""
        epoch = self._epoch
        if epoch is None or array.nbytes < SMALLEST:
            return False
        memory = epoch.slots.memory
        address: int = array.__array_interface__["data"][0]
        return 0 <= address - memory.address < memory.size

    def counts(self) -> Mapping[str, int]:
        """How many slots are free, leased and quarantined."""
        epoch = self._epoch
        return dict.fromkeys(STATES, 0) if epoch is None else epoch.slots.counts()

    @property
    def size(self) -> int:
        """Bytes of all slots together."""
        epoch = self._epoch
        return 0 if epoch is None else epoch.slots.size

    async def close(self) -> None:
        """Let Triton forget the memory, unless it may be reading it, and remove it."""
        with self._lock:  # or a thread that is about to make one would leave its file
            self._closed = True
            epoch, self._epoch = self._epoch, None
        for task in self._tasks:
            task.cancel()
        if epoch is None:
            return
        try:
            counts = epoch.slots.counts()
            registered = epoch.state not in (_State.NEW, _State.REGISTERING)
            epoch.state = _State.RETIRED  # what is still asked begins nothing new
            if registered and not counts["leased"] and not counts["quarantined"]:
                with contextlib.suppress(SnapshotError):
                    await self._unregister(epoch.segment.name, GOODBYE_S)
        finally:
            epoch.segment.remove()

    # --- what becomes of requests -------------------------------------------------------------------

    async def _asked(self, request: InferRequest, places: Places) -> InferResponse:
        try:
            return await self._ask(request, places)
        except BackendUnavailable:
            self._retry_at = float("-inf")  # what comes back may be another Triton
            raise

    async def _guarded(self, epoch: _Epoch, request: InferRequest, places: Places) -> InferResponse:
        """Ask by memory; where no answer says that Triton has done with it, the slots stay out of use for a while."""
        try:
            return await self._asked(request, places)
        except (BackendTimeout, BackendUnavailable, asyncio.CancelledError):
            for place in places.values():
                epoch.slots.quarantine(Part(place.offset, place.size), QUARANTINE_S)
            raise

    def _count(self, reason: str, places: Places) -> None:
        for _ in places:
            self._fell_back(reason)

    def _lost(self, epoch: _Epoch) -> None:
        """Triton does not know the region: register it again, and prove it again before it is used."""
        if epoch.state is not _State.PROVEN:
            return  # another request has found it out
        epoch.state = _State.NEW
        self._losses.append(time.monotonic())
        if len(self._losses) == LOSSES and self._losses[-1] - self._losses[0] < LOSSES_S:
            self._losses.clear()
            self._give_up(epoch, "Triton forgets it again and again; more than one may answer at its address")
            return
        log.info("Triton does not know the shared memory any more, it is registered again")

    # --- registration and proof, in the background ---------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _register(self, epoch: _Epoch) -> None:
        name = epoch.segment.name
        request = messages.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=epoch.segment.size)
        try:
            await self._call("SystemSharedMemoryRegister", request, None)
            epoch.slots.end_quarantine()  # it has just been started: it reads nothing yet
            epoch.state = _State.UNPROVEN
        except RegionKnown:
            # Nobody else has this name: an earlier call arrived whose answer did not, or there are two Tritons.
            epoch.state = _State.UNPROVEN
        except BackendRejected as error:
            if epoch.segment.exists():
                self._give_up(epoch, memory_refusal(error, name))
            else:
                log.info("The shared memory for tensors has been deleted, it is made anew")
                self._retire(epoch)
        except SnapshotError:
            pass  # later again
        finally:
            if epoch.state is _State.REGISTERING:
                epoch.state, epoch.not_before = _State.NEW, time.monotonic() + AGAIN_S
        if epoch.state is _State.UNPROVEN:
            self._begin(self._clean_up(), "clean up shared memory")

    async def _prove(self, epoch: _Epoch, request: InferRequest, places: Places, by_bytes: InferResponse) -> None:
        """Ask once more by memory; a model that never says the same twice is measured by itself."""
        state = _State.UNPROVEN
        try:
            by_memory = await self._guarded(epoch, request, places)
            if by_memory.model_version != by_bytes.model_version:
                return  # another one serves now: with the next request
            verdict = Verdict.SAME
            if not close(by_bytes, by_memory):
                verdict = judge(by_memory, by_bytes, await self._asked(request, {}))
            if verdict is Verdict.SAME:
                state = _State.PROVEN
            elif verdict is Verdict.OTHER:
                self._give_up(epoch, f"model '{request.model}' answers otherwise by it than by bytes")
        except RegionLost:
            state = _State.NEW
        except BackendRejected as error:
            self._give_up(epoch, f"Triton refuses a request by it ({error.message})")
        except SnapshotError:
            return
        finally:
            if epoch.state is _State.PROVING:
                epoch.state = state
        if state is _State.PROVEN:
            self._said = ""
            log.info("Input tensors go to Triton through shared memory", max_bytes=self._max_bytes)

    async def _clean_up(self) -> None:
        """Let Triton forget the regions of gateways that are gone, once their last requests have ended."""
        await asyncio.sleep(QUARANTINE_S)
        with contextlib.suppress(SnapshotError):
            status = await self._call("SystemSharedMemoryStatus", messages.SystemSharedMemoryStatusRequest(), None)
            own = self._epoch.segment.name if self._epoch is not None else ""
            for name in status.regions:
                if name.startswith(PREFIX) and name != own and not (self._folder / name).exists():
                    await self._unregister(name, None)

    async def _unregister(self, name: str, limit_s: float | None) -> None:
        # With an empty name Triton would forget the regions of everybody.
        request = messages.SystemSharedMemoryUnregisterRequest(name=name)
        await self._call("SystemSharedMemoryUnregister", request, limit_s)

    # --- beginnings and ends -------------------------------------------------------------------------

    def _current(self) -> _Epoch | None:
        """The segment, made if need be; None where it has been given up for a while."""
        epoch = self._epoch
        if epoch is not None:
            return epoch
        with self._lock:
            if self._epoch is None and not self._closed and time.monotonic() >= self._retry_at:
                try:
                    remove_leftovers(self._folder)
                    segment = Segment(self._max_bytes, self._folder)
                except OSError as error:
                    self._retry_at = time.monotonic() + RETRY_S
                    self._say_unavailable(f"it cannot be made in {self._folder} ({error.strerror or error})")
                else:
                    self._epoch = _Epoch(segment, Slots(segment))
            return self._epoch

    def _give_up(self, epoch: _Epoch, reason: str) -> None:
        self._retry_at = time.monotonic() + RETRY_S
        self._retire(epoch)
        self._say_unavailable(reason)

    def _retire(self, epoch: _Epoch) -> None:
        """Use it no more; its memory is free when nobody holds an array in it."""
        if self._epoch is epoch:
            self._epoch = None
        epoch.state = _State.RETIRED
        epoch.segment.remove()

    def _say_unavailable(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            if self._near:
                log.warning(
                    "Input tensors go to Triton in the requests, for shared memory cannot be used",
                    reason=reason,
                    fix=FIX,
                    tried_again_s=RETRY_S,
                )
            else:
                log.info(
                    "Input tensors go to Triton in the requests, for another machine shares no memory with this one",
                    reason=reason,
                    tried_again_s=RETRY_S,
                )

    def _say_full(self, slots: Slots, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """What lasts, once; that all slots are in use for a moment is only counted."""
        refusal = slots.refusal
        if not slots.can_fit(shape, dtype):
            if not self._too_large_said:
                self._too_large_said = True
                log.warning(
                    "An input tensor is larger than all shared memory, such tensors go in the requests",
                    bytes=math.prod(shape) * dtype.itemsize,
                    shape=shape,
                    max_bytes=self._max_bytes,
                    fix=TOO_LARGE_FIX,
                )
        elif refusal is not None and not self._no_room_said:
            self._no_room_said = True
            log.warning(
                "There is no room for more shared memory, further input tensors go in the requests",
                reason=str(refusal.strerror or refusal),
                fix=NO_ROOM_FIX,
            )


def on_this_machine(url: str) -> bool:
    """Whether `host:port` certainly names this machine."""
    host = url.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def _places(epoch: _Epoch, request: InferRequest) -> dict[str, Place]:
    places = {}
    for name, array in request.inputs.items():
        if array.nbytes >= SMALLEST and (part := epoch.slots.find(array)) is not None:
            places[name] = Place(epoch.segment.name, part.offset, part.size)
    return places
