"""An inference server in memory under the same port and contract tests as the real one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendTimeout, BackendUnavailable, ModelUnavailable, SnapshotError
from gateway.messages import InferRequest, InferResponse, ModelSignature
from gateway.ports import Endpoint, GpuMemory, ModelStatistics
from gateway.testing.memory_models import (
    Answer,
    Faults,
    MemoryModel,
    MemoryVersion,
    check_request,
    unknown_model,
    where,
)


@dataclass(slots=True, eq=False)
class _Controls:
    """What a test wants of one model, whether it is loaded or not."""

    faults: Faults = field(default_factory=Faults)
    held: bool = False
    waiting: set[asyncio.Future[None]] = field(default_factory=set)
    load_held: bool = False
    loads_waiting: set[asyncio.Future[None]] = field(default_factory=set)


class MemoryTriton:
    """Models from Python functions; they answer once they are loaded, and are gone after an outage.

    `add_model` under a known name with another version adds that version; with a known version it is a new drop of
    it. Both serve from the next `load` on, as with Triton. The time limits are those of the real adapter, only
    shorter: a frozen server makes a test wait for them.
    """

    def __init__(
        self, *, health_timeout_s: float = 0.2, call_timeout_s: float = 0.5, load_timeout_s: float = 300.0
    ) -> None:
        self._health_timeout_s = health_timeout_s
        self._call_timeout_s = call_timeout_s
        self._load_timeout_s = load_timeout_s
        self.running = True
        self.frozen = False
        self.loads: list[str] = []
        """The name of each `load` that was asked for, refused ones included."""
        self.load_calls: list[tuple[str, tuple[int, ...], str | None]] = []
        """The same with the versions and the configuration that it came with."""
        self.unloads: list[str] = []
        """The name of each `unload` that was asked for."""
        self.requests: list[InferRequest] = []
        """Every request of `infer` that reached the server, in order."""
        self.gpu: GpuMemory | None = None
        """What `gpu_memory` says."""
        self._models: dict[str, MemoryModel] = {}
        self._controls: dict[str, _Controls] = {}
        self._in_flight: set[asyncio.Future[None]] = set()
        self._waiting_for_thaw: set[asyncio.Future[None]] = set()
        self._arrived = asyncio.Condition()

    # --- what a test does --------------------------------------------------------------------------

    def add_model(
        self, signature: ModelSignature, answer: Answer, *, latency_s: float = 0.0, memory_bytes: int | None = None
    ) -> None:
        """Put a version of a model into the repository; `answer` gets the inputs and returns the outputs, by name."""
        model = self._models.setdefault(signature.name, MemoryModel(signature.name))
        model.add(MemoryVersion(signature, answer, latency_s, memory_bytes))

    @property
    def known(self) -> set[str]:
        """The names of the models in the repository."""
        return set(self._models)

    def lose(self, name: str) -> None:
        """Take a model out of service, as somebody else would; it stays in the repository."""
        if name in self._models:
            self._models[name].loaded = {}

    def fail(self, name: str, error: SnapshotError | None, version: int | None = None) -> None:
        """Answer every request to a model, or to one version of it, with this error; None ends that."""
        self._control(name).faults.fail(error, version)

    def refuse_load(self, name: str, reason: str | None, version: int | None = None) -> None:
        """Refuse loads of a model, or those with one version, for this reason; None ends that.

        What is loaded keeps serving. For one version the reason begins with its number, as Triton's does.
        """
        self._control(name).faults.refuse(reason, version)

    def hold(self, name: str) -> None:
        """Keep the answers of a model back until `release`."""
        self._control(name).held = True

    def release(self, name: str) -> None:
        """Let the answers that are held go, and hold no more."""
        control = self._control(name)
        control.held = False
        _let_go(control.waiting)

    def held_requests(self, name: str) -> int:
        """How many requests wait for `release`."""
        return len(self._control(name).waiting)

    async def wait_until_held(self, name: str, count: int = 1) -> None:
        """Return when that many requests wait for `release`."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: self.held_requests(name) >= count)

    def hold_load(self, name: str) -> None:
        """Keep every load of a model waiting until `release_load`."""
        self._control(name).load_held = True

    def release_load(self, name: str) -> None:
        """Let the loads of a model that wait go on, and hold no more."""
        control = self._control(name)
        control.load_held = False
        _let_go(control.loads_waiting)

    def held_loads(self, name: str) -> int:
        """How many loads of a model wait for `release_load`."""
        return len(self._control(name).loads_waiting)

    def freeze(self) -> None:
        """Answer no call, as a stopped process; each call ends by its own time limit."""
        self.frozen = True

    def thaw(self) -> None:
        """Answer again, also the calls that still wait."""
        self.frozen = False
        _let_go(self._waiting_for_thaw)

    def stop(self) -> None:
        """Be unreachable; as with a real restart, nothing is loaded or frozen afterwards."""
        self.running = self.frozen = False
        for model in self._models.values():
            model.loaded = {}
        for end in self._in_flight:
            if not end.done():
                end.set_exception(_unreachable())

    def start(self) -> None:
        """Be reachable again, with nothing loaded."""
        self.running = True

    # --- the port -----------------------------------------------------------------------------------

    @property
    def trouble(self) -> None:
        return None  # it has no network that could be at fault

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return ()

    async def is_ready(self) -> bool:
        """True unless stopped or frozen."""
        try:
            await self._answer_within(self._health_timeout_s)
        except (BackendUnavailable, TimeoutError):
            return False
        return True

    async def serving(self, model: str) -> tuple[int, ...]:
        """The loaded versions; raises BackendUnavailable when stopped or frozen."""
        try:
            await self._answer_within(self._health_timeout_s)
        except TimeoutError:
            raise BackendUnavailable("Triton does not say how it is", where=where(model)) from None
        return tuple(sorted(self._models[model].loaded)) if model in self._models else ()

    async def load(self, model: str, versions: tuple[int, ...] = (), config: str | None = None) -> None:
        """Serve these versions as the repository has them now; without any, what the last load asked for, if nothing
        has changed in the repository since, else the highest. The configuration is only noted."""
        self._require_running()
        self.loads.append(model)
        self.load_calls.append((model, versions, config))
        with _time_limit_of(model):
            async with asyncio.timeout(self._load_timeout_s):
                if self._control(model).load_held:
                    await self._wait_in(self._control(model).loads_waiting)
                await self._thawed()
        found = self._models.get(model)
        if found is None:
            raise ModelUnavailable("Triton cannot read the model's folder", where=where(model))
        chosen = found.choose(versions)
        reason = self._control(model).faults.refusal_of(found.fresh(chosen))
        if reason:
            raise ModelUnavailable(reason, where=where(model))
        found.serve(chosen)

    async def unload(self, model: str) -> None:
        """Serve no version of the model any more; requests that run come to their end."""
        self._require_running()
        self.unloads.append(model)
        with _time_limit_of(model):
            await self._answer_within(self._load_timeout_s)
        self.lose(model)

    async def describe(self, model: str, version: int = 0) -> ModelSignature:
        """The signature that the version was added with."""
        with _time_limit_of(model):
            await self._answer_within(self._call_timeout_s)
        return self._model(model).find(str(version or "")).signature

    async def gpu_memory(self) -> GpuMemory | None:
        """What the test has set; None when stopped or frozen."""
        return self.gpu if self.running and not self.frozen else None

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory for one input tensor; ordinary memory."""
        return np.empty(shape, dtype)

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether the server reads this array where it is; never."""
        return False

    async def configuration(self, model: str) -> str:
        """The configuration that the last load of a loaded model came with, "" where it came with none."""
        with _time_limit_of(model):
            await self._answer_within(self._call_timeout_s)
        self._model(model).find("")
        return next((config for name, _, config in reversed(self.load_calls) if name == model), None) or ""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask the function of the version, after the same checks that Triton makes."""
        self.requests.append(request)
        started_at = asyncio.get_running_loop().time()
        try:
            await self._answer_within(request.timeout_s)
        except TimeoutError:
            raise _too_late(request) from None
        asked = self._model(request.model).find(request.version)
        check_request(request, asked.signature)
        started = time.perf_counter_ns()
        try:
            async with asyncio.timeout_at(started_at + request.timeout_s):
                await self._take_time(request.model, asked.latency_s)
                await self._thawed()
        except TimeoutError:
            raise _too_late(request) from None
        error = self._control(request.model).faults.error_of(int(asked.signature.version))
        if error is not None:
            raise error
        return asked.respond(request, started)

    async def statistics(self, model: str) -> ModelStatistics:
        """Totals since the versions were loaded."""
        with _time_limit_of(model):
            await self._answer_within(self._call_timeout_s)
        served = self._model(model)
        served.find("")
        return served.statistics()

    async def close(self) -> None:
        """Behave as unreachable from now on."""
        self.stop()

    async def _take_time(self, name: str, latency_s: float) -> None:
        """Wait out the latency and the hold; raises BackendUnavailable when the server stops meanwhile."""
        control = self._control(name)
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_flight.add(end)
        try:
            await asyncio.wait([end], timeout=latency_s)
            if control.held and not end.done():
                control.waiting.add(end)
                async with self._arrived:
                    self._arrived.notify_all()
                await asyncio.wait([end])
            if end.done():
                end.result()
        finally:
            control.waiting.discard(end)
            self._in_flight.discard(end)
            if not end.cancel() and not end.cancelled():
                end.exception()  # seen, also when a time-out came first

    async def _answer_within(self, limit_s: float) -> None:
        """Return once the server can answer; raises BackendUnavailable, or TimeoutError while it is frozen."""
        self._require_running()
        async with asyncio.timeout(limit_s):
            await self._thawed()

    async def _thawed(self) -> None:
        while self.frozen:
            await self._wait_in(self._waiting_for_thaw)

    async def _wait_in(self, place: set[asyncio.Future[None]]) -> None:
        """Wait until a test lets go what waits there; raises BackendUnavailable when the server stops meanwhile."""
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        places = (place, self._in_flight)
        for each in places:
            each.add(end)
        try:
            await end
        finally:
            for each in places:
                each.discard(end)
            if not end.cancelled():
                end.exception()  # seen, also when a time-out came first

    def _control(self, name: str) -> _Controls:
        return self._controls.setdefault(name, _Controls())

    def _model(self, name: str) -> MemoryModel:
        self._require_running()
        if name not in self._models:
            raise unknown_model(name)
        return self._models[name]

    def _require_running(self) -> None:
        if not self.running:
            raise _unreachable()


def _let_go(waiting: set[asyncio.Future[None]]) -> None:
    for end in waiting:
        if not end.done():
            end.set_result(None)


@contextlib.contextmanager
def _time_limit_of(model: str) -> Iterator[None]:
    """Say a time-out as the real adapter does for a call about one model."""
    try:
        yield
    except TimeoutError:
        raise ModelUnavailable("Triton did not finish in time", where=where(model)) from None


def _too_late(request: InferRequest) -> BackendTimeout:
    return BackendTimeout("Triton did not answer in time", where=where(request.model))


def _unreachable() -> BackendUnavailable:
    return BackendUnavailable("Triton cannot be reached (stopped)")
