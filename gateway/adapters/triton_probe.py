"""One look at a Triton: its version, whether it obeys us, and where its models stand; leaves nothing changed."""

from __future__ import annotations

import contextlib
import mmap
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from gateway.adapters.memory_segment import SHARED_MEMORY, Segment
from gateway.adapters.triton import TritonServer
from gateway.adapters.triton_errors import memory_refusal
from gateway.adapters.triton_messages import service_pb2 as messages
from gateway.errors import BackendRejected, ModelUnavailable, SnapshotError

NOT_EXPLICIT = "explicit model load / unload is not allowed"
"""What Triton says in any mode but `explicit`, even of a model that it does not have."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model as Triton lists it; `version` and `state` are empty where it has not been loaded."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class TritonFacts:
    """What a Triton says of itself."""

    name: str
    version: str
    extensions: tuple[str, ...]
    ready: bool
    """Of the whole server: with --strict-readiness one model that is loading or has failed makes it False."""
    explicit: bool | None
    """Whether models are loaded on demand; None when it did not say, for the reason in `control`."""
    control: str
    index: tuple[IndexEntry, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where Triton has placed a model that is loaded; `backend` is that or, of older models, the platform."""

    backend: str
    kinds: frozenset[str]
    """Of its instance groups: GPU, CPU, MODEL (it decides itself)."""
    gpus: tuple[int, ...]
    accelerators: tuple[str, ...]
    """What config.pbtxt asks for on a GPU, such as `tensorrt`; on a CPU it counts for nothing."""
    compute_ms: float | None
    """Mean of one request since it was loaded; None before the first."""
    last_inference_at: float | None
    """Epoch seconds by Triton's clock."""


class TritonProbe(TritonServer):
    """A TritonServer that also asks what the gateway never needs to know."""

    async def facts(self) -> TritonFacts:
        """All of it; raises BackendUnavailable or ModelUnavailable when Triton does not answer."""
        metadata = await self._call("ServerMetadata", messages.ServerMetadataRequest(), model="")
        ready = await self._call("ServerReady", messages.ServerReadyRequest(), model="")
        explicit, control = await self._control()
        return TritonFacts(
            name=metadata.name,
            version=metadata.version,
            extensions=tuple(metadata.extensions),
            ready=bool(ready.ready),
            explicit=explicit,
            control=control,
            index=await self.index(),
        )

    async def _control(self) -> tuple[bool | None, str]:
        """Triton tells its mode only when it is asked to do something: unload what it does not have."""
        request = messages.RepositoryModelUnloadRequest(model_name=f"edge-gateway-doctor-{uuid.uuid4().hex}")
        try:
            await self._call("RepositoryModelUnload", request, model="")
        except SnapshotError as error:
            return (False if NOT_EXPLICIT in error.message else None), error.message
        return True, ""

    async def placement(self, model: str) -> Placement:
        """Of a model that is loaded; raises BackendUnavailable or ModelUnavailable."""
        answer = await self._call("ModelConfig", messages.ModelConfigRequest(name=model), model=model)
        config, figures = answer.config, await self.statistics(model)
        asked = config.optimization.execution_accelerators.gpu_execution_accelerator
        return Placement(
            backend=config.backend or config.platform,
            kinds=frozenset(group.Kind.Name(group.kind).removeprefix("KIND_") for group in config.instance_group),
            gpus=tuple(sorted({gpu for group in config.instance_group for gpu in group.gpus})),
            accelerators=tuple(each.name for each in asked),
            compute_ms=figures.compute_ns / figures.success_count / 1e6 if figures.success_count else None,
            last_inference_at=figures.last_inference_at,
        )

    async def index(self) -> tuple[IndexEntry, ...]:
        """Every model of the repository as Triton lists it; raises BackendUnavailable."""
        try:
            answer = await self._call("RepositoryIndex", messages.RepositoryIndexRequest(), model="")
        except ModelUnavailable:  # restricted, or not this protocol
            return ()
        return tuple(IndexEntry(each.name, each.version, each.state, each.reason) for each in answer.models)

    async def memory_problem(self, max_bytes: int, folder: Path = SHARED_MEMORY) -> str:
        """Why Triton does not read so much shared memory of this machine, "" where it does."""
        try:
            segment = Segment(mmap.PAGESIZE, folder)
        except OSError as error:
            return f"it cannot be made in {folder} ({error.strerror or error})"
        name = segment.name
        request = messages.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=segment.size)
        try:
            await self._call_about_memory("SystemSharedMemoryRegister", request, None)
            with contextlib.suppress(SnapshotError):
                goodbye = messages.SystemSharedMemoryUnregisterRequest(name=name)
                await self._call_about_memory("SystemSharedMemoryUnregister", goodbye, None)
            free = shutil.disk_usage(folder).free
        except BackendRejected as error:
            return memory_refusal(error, name)
        finally:
            segment.remove()
        return "" if free >= max_bytes else f"{folder} has {free // 2**20} MiB left, for {max_bytes // 2**20} MiB"
