"""An inference server in memory under the same port and contract tests as the real one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.errors import (
    BackendInvalidResponse,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ModelUnavailable,
    SnapshotError,
)
from gateway.messages import InferRequest, InferResponse, ModelSignature, ModelStatistics, TensorSpec

Arrays = Mapping[str, NDArray[Any]]
Answer = Callable[[Arrays], Arrays]

_TRITON_TYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


@dataclass(slots=True, eq=False)
class _Model:
    signature: ModelSignature
    answer: Answer
    latency_s: float
    memory_bytes: int | None
    success_count: int = 0
    compute_ns: int = 0


@dataclass(slots=True, eq=False)
class _Controls:
    """What a test wants of one model, whether it is loaded or not."""

    error: SnapshotError | None = None
    refusal: str | None = None
    held: bool = False
    waiting: set[asyncio.Future[None]] = field(default_factory=set)
    load_held: bool = False
    loads_waiting: set[asyncio.Future[None]] = field(default_factory=set)


class MemoryTriton:
    """Models from Python functions; they answer once they are loaded, and are gone after an outage.

    `add_model` under a known name is a new drop: it serves from the next `load` on, as with Triton. The time limits
    are those of the real adapter, only shorter: a frozen server makes a test wait for them.
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
        self.requests: list[InferRequest] = []
        """Every request of `infer` that reached the server, in order."""
        self._repository: dict[str, _Model] = {}
        self._loaded: dict[str, _Model] = {}
        self._controls: dict[str, _Controls] = {}
        self._in_flight: set[asyncio.Future[None]] = set()
        self._waiting_for_thaw: set[asyncio.Future[None]] = set()
        self._arrived = asyncio.Condition()

    # --- what a test does --------------------------------------------------------------------------

    def add_model(
        self, signature: ModelSignature, answer: Answer, *, latency_s: float = 0.0, memory_bytes: int | None = None
    ) -> None:
        """Put a model into the repository; `answer` gets the inputs and returns the outputs, by name."""
        self._repository[signature.name] = _Model(signature, answer, latency_s, memory_bytes)

    @property
    def known(self) -> set[str]:
        """The names of the models in the repository."""
        return set(self._repository)

    def unload(self, name: str) -> None:
        """Take a model out of service; it stays in the repository."""
        self._loaded.pop(name, None)

    def fail(self, name: str, error: SnapshotError | None) -> None:
        """Answer every request to a model with this error; None ends that."""
        self._control(name).error = error

    def refuse_load(self, name: str, reason: str | None) -> None:
        """Refuse to load a model for this reason; what is loaded keeps serving. None ends that."""
        self._control(name).refusal = reason

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
        self._loaded.clear()
        for end in self._in_flight:
            if not end.done():
                end.set_exception(_unreachable())

    def start(self) -> None:
        """Be reachable again, with nothing loaded."""
        self.running = True

    # --- the port -----------------------------------------------------------------------------------

    async def is_ready(self) -> bool:
        """True unless stopped or frozen."""
        try:
            await self._answer_within(self._health_timeout_s)
        except (BackendUnavailable, TimeoutError):
            return False
        return True

    async def is_model_ready(self, model: str) -> bool:
        """True when the model is loaded; raises BackendUnavailable when stopped or frozen."""
        try:
            await self._answer_within(self._health_timeout_s)
        except TimeoutError:
            raise BackendUnavailable("Triton does not say how it is", where=_where(model)) from None
        return model in self._loaded

    async def load(self, model: str) -> None:
        """Serve what the repository has under this name now."""
        self._require_running()
        self.loads.append(model)
        with _time_limit_of(model):
            async with asyncio.timeout(self._load_timeout_s):
                if self._control(model).load_held:
                    await self._wait_in(self._control(model).loads_waiting)
                await self._thawed()
        reason = self._control(model).refusal
        if model not in self._repository:
            reason = "Triton cannot read the model's folder"
        if reason:
            raise ModelUnavailable(reason, where=_where(model))
        if self._loaded.get(model) is not self._repository[model]:
            self._repository[model].success_count = self._repository[model].compute_ns = 0
        self._loaded[model] = self._repository[model]

    async def describe(self, model: str) -> ModelSignature:
        """The signature that the model was added with."""
        with _time_limit_of(model):
            await self._answer_within(self._call_timeout_s)
        return self._serving(model).signature

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask the model's function, after the same checks that Triton makes."""
        self.requests.append(request)
        started_at = asyncio.get_running_loop().time()
        try:
            await self._answer_within(request.timeout_s)
        except TimeoutError:
            raise _too_late(request) from None
        model = self._serving(request.model)
        if request.version not in ("", model.signature.version):
            raise ModelUnavailable(f"version {request.version} is not loaded", where=_where(request.model))
        _check_request(request, model.signature)
        started = time.perf_counter_ns()
        try:
            async with asyncio.timeout_at(started_at + request.timeout_s):
                await self._take_time(request.model, model.latency_s)
                await self._thawed()
        except TimeoutError:
            raise _too_late(request) from None
        error = self._control(request.model).error
        if error is not None:
            raise error
        outputs = _chosen(model.answer(request.inputs), request)
        model.success_count += 1
        model.compute_ns += time.perf_counter_ns() - started
        return InferResponse(outputs=outputs, model_version=model.signature.version)

    async def statistics(self, model: str) -> ModelStatistics:
        """Totals since the model was loaded; nothing ever queues here."""
        with _time_limit_of(model):
            await self._answer_within(self._call_timeout_s)
        served = self._serving(model)
        return ModelStatistics(served.success_count, 0, served.compute_ns, served.memory_bytes)

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

    def _serving(self, name: str) -> _Model:
        self._require_running()
        try:
            return self._loaded[name]
        except KeyError:
            raise ModelUnavailable(f"Request for unknown model: '{name}' is not found", where=_where(name)) from None

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
        raise ModelUnavailable("Triton did not finish in time", where=_where(model)) from None


def _check_request(request: InferRequest, signature: ModelSignature) -> None:
    """Raise BackendRejected where the inputs or the wished outputs are not those of the model."""
    known = {spec.name: spec for spec in signature.inputs}
    if request.inputs.keys() != known.keys():
        raise _rejected(request, f"expected the inputs {sorted(known)}, got {sorted(request.inputs)}")
    for name, array in request.inputs.items():
        datatype = _TRITON_TYPES.get(array.dtype.name)
        if datatype != known[name].datatype:
            raise _rejected(request, f"input '{name}' is {datatype or array.dtype}, expected {known[name].datatype}")
        if not _fits(array.shape, known[name], signature.max_batch_size):
            raise _rejected(request, f"unexpected shape for input '{name}': {known[name].shape}, got {array.shape}")
    unknown = set(request.outputs) - {spec.name for spec in signature.outputs}
    if unknown:
        raise _rejected(request, f"unexpected inference output '{min(unknown)}'")


def _fits(shape: tuple[int, ...], spec: TensorSpec, max_batch_size: int) -> bool:
    if len(shape) != len(spec.shape) or (max_batch_size and not 1 <= shape[0] <= max_batch_size):
        return False
    return all(wanted in (-1, side) for side, wanted in zip(shape, spec.shape, strict=True))


def _chosen(outputs: Arrays, request: InferRequest) -> dict[str, NDArray[Any]]:
    """Read-only copies of the outputs that were asked for, as the real adapter gives them."""
    chosen = {}
    for name in request.outputs or outputs:
        if name not in outputs:
            raise BackendInvalidResponse(f"the answer lacks the output '{name}'", where=_where(request.model))
        chosen[name] = np.array(outputs[name])
        chosen[name].setflags(write=False)
    return chosen


def _rejected(request: InferRequest, reason: str) -> BackendRejected:
    return BackendRejected(reason, where=_where(request.model))


def _too_late(request: InferRequest) -> BackendTimeout:
    return BackendTimeout("Triton did not answer in time", where=_where(request.model))


def _unreachable() -> BackendUnavailable:
    return BackendUnavailable("Triton cannot be reached (stopped)")


def _where(model: str) -> str:
    return f"Triton model '{model}'"
