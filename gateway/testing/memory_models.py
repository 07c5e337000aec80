"""The model repository of the memory server, and the checks that a server makes of a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse, BackendRejected, ModelUnavailable, SnapshotError
from gateway.messages import InferRequest, InferResponse, ModelSignature, TensorSpec
from gateway.ports import ModelStatistics

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
class MemoryVersion:
    """One drop of one version of a model, and what it has done since it was loaded."""

    signature: ModelSignature
    answer: Answer
    latency_s: float
    memory_bytes: int | None
    success_count: int = 0
    compute_ns: int = 0
    last_inference_at: float | None = None

    def reset(self) -> None:
        """Count from the start, as Triton does of a version that it loads."""
        self.success_count = self.compute_ns = 0
        self.last_inference_at = None

    def respond(self, request: InferRequest, started_ns: int) -> InferResponse:
        """Ask the function and count; raises BackendInvalidResponse when it leaves out a wished output.

        `started_ns` is time.perf_counter_ns() of when the computation began, its latency included.
        """
        outputs = chosen_outputs(self.answer(request.inputs), request)
        self.success_count += 1
        self.compute_ns += time.perf_counter_ns() - started_ns
        self.last_inference_at = time.time()
        return InferResponse(outputs=outputs, model_version=self.signature.version)


@dataclass(slots=True, eq=False)
class MemoryModel:
    """One model: its versions in the repository, and those that are loaded."""

    name: str
    folders: dict[int, MemoryVersion] = field(default_factory=dict)
    loaded: dict[int, MemoryVersion] = field(default_factory=dict)
    changed: bool = True
    """Whether the repository has changed since the last load."""

    def add(self, version: MemoryVersion) -> None:
        """Put a version into the repository, in place of the one with the same number."""
        self.folders[int(version.signature.version)] = version
        self.changed = True

    def choose(self, versions: tuple[int, ...]) -> tuple[int, ...]:
        """What a load of these versions serves; of none, what was asked for last, else the highest.

        Raises ModelUnavailable for a version that is not in the repository, as the real adapter does.
        """
        if not versions:
            return tuple(self.loaded) if self.loaded and not self.changed else (max(self.folders),)
        missing = sorted(set(versions) - self.folders.keys())
        if missing:
            numbers = ", ".join(map(str, missing))
            raise ModelUnavailable(f"version {numbers}: not in the model's folder", where=where(self.name))
        return tuple(sorted(set(versions)))

    def fresh(self, versions: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the versions that a load has to bring up, because they or their latest drop are not loaded."""
        return tuple(number for number in versions if self.loaded.get(number) is not self.folders[number])

    def serve(self, versions: tuple[int, ...]) -> None:
        """Let exactly these versions be loaded, in their latest drop."""
        for number in self.fresh(versions):
            self.folders[number].reset()
        self.loaded = {number: self.folders[number] for number in versions}
        self.changed = False

    def find(self, version: str) -> MemoryVersion:
        """A loaded version, "" the highest; raises ModelUnavailable."""
        if not self.loaded:
            raise unknown_model(self.name)
        for number, found in self.loaded.items():
            if str(number) == (version or str(max(self.loaded))):
                return found
        raise ModelUnavailable(f"version {version} is not loaded", where=where(self.name))

    def statistics(self) -> ModelStatistics:
        """Totals of the loaded versions; nothing ever queues here."""
        served = self.loaded.values()
        sizes = [each.memory_bytes for each in served if each.memory_bytes is not None]
        asked_at = [each.last_inference_at for each in served if each.last_inference_at is not None]
        return ModelStatistics(
            success_count=sum(each.success_count for each in served),
            queue_ns=0,
            compute_ns=sum(each.compute_ns for each in served),
            memory_bytes=sum(sizes) if sizes else None,
            last_inference_at=max(asked_at, default=None),
        )


@dataclass(slots=True)
class Faults:
    """Errors that a test wants of a model, each of one version or (None) of all."""

    errors: dict[int | None, SnapshotError] = field(default_factory=dict)
    refusals: dict[int | None, str] = field(default_factory=dict)

    def fail(self, error: SnapshotError | None, version: int | None) -> None:
        """Fail the requests to a version or to all; None ends that."""
        self.errors.pop(version, None)
        if error is not None:
            self.errors[version] = error

    def refuse(self, reason: str | None, version: int | None) -> None:
        """Refuse loads with a version or all loads; None ends that."""
        self.refusals.pop(version, None)
        if reason is not None:
            self.refusals[version] = reason

    def error_of(self, version: int) -> SnapshotError | None:
        """The error with which a version answers."""
        return self.errors.get(None) or self.errors.get(version)

    def refusal_of(self, versions: tuple[int, ...]) -> str | None:
        """The reason for which a load that brings up these versions is refused, as Triton says it."""
        if None in self.refusals:
            return self.refusals[None]
        refused = [number for number in versions if number in self.refusals]
        return f"version {refused[0]}: {self.refusals[refused[0]]}" if refused else None


def check_request(request: InferRequest, signature: ModelSignature) -> None:
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


def chosen_outputs(outputs: Arrays, request: InferRequest) -> dict[str, NDArray[Any]]:
    """Read-only copies of the outputs that were asked for, as the real adapter gives them."""
    chosen = {}
    for name in request.outputs or outputs:
        if name not in outputs:
            raise BackendInvalidResponse(f"the answer lacks the output '{name}'", where=where(request.model))
        chosen[name] = np.array(outputs[name])
        chosen[name].setflags(write=False)
    return chosen


def _rejected(request: InferRequest, reason: str) -> BackendRejected:
    return BackendRejected(reason, where=where(request.model))


def unknown_model(name: str) -> ModelUnavailable:
    """What Triton says of a model that it has not loaded."""
    return ModelUnavailable(f"Request for unknown model: '{name}' is not found", where=where(name))


def where(model: str) -> str:
    """How errors name a model."""
    return f"Triton model '{model}'"
