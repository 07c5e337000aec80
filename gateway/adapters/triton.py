"""Triton over gRPC: the `InferenceServer` port on tritonclient's generated stubs.

The stubs are called directly, not through InferenceServerClient: its status codes come as text, and its
InferInput copies every tensor twice more (see triton_codec).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from numpy.typing import NDArray

from gateway.adapters.memory_segment import SHARED_MEMORY
from gateway.adapters.triton_channel import Line, TritonChannel
from gateway.adapters.triton_codec import Places, decode_response, encode_request
from gateway.adapters.triton_crashes import Crashes
from gateway.adapters.triton_errors import (
    answer_error,
    memory_error,
    model_error,
    process_has_ended,
    readiness_error,
    region_lost,
    versions_missing,
)
from gateway.adapters.triton_memory import MemoryMetrics
from gateway.adapters.triton_messages import service_pb2 as messages
from gateway.adapters.triton_override import override
from gateway.adapters.triton_shared_memory import SharedMemory, on_this_machine
from gateway.credentials import TlsFiles
from gateway.errors import BackendUnavailable, GatewayError, ModelUnavailable, SnapshotError
from gateway.messages import InferRequest, InferResponse, ModelSignature, TensorSpec
from gateway.ports import Endpoint, GpuMemory, ModelStatistics

UNLOAD_POLL_S = 0.02

ErrorOf = Callable[..., SnapshotError]


@dataclass(frozen=True, slots=True)
class TransferEvents:
    """Told of every request to Triton, by "shared_memory" or by "bytes", and of every tensor that had to go by bytes:
    unavailable, unproven, full or lost."""

    sent: Callable[[str], None]
    fell_back: Callable[[str], None]


class TritonServer:
    """One Triton at `host:port`; connects at the first call and again by itself after a loss, within about 1 s.

    `call_timeout_s` limits every call but `infer`, which brings its own, `load`, which may build engines, and the
    questions about health: `health_timeout_s` is how long a frozen Triton may go unnoticed. With `tls` nothing is sent
    in plain text; renewed files are taken up at the next call, while those that run come to their end. Input tensors go
    through at most `shared_memory_bytes` of shared memory, 0: always in the request.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = 2.0,
        health_timeout_s: float = 2.0,
        call_timeout_s: float = 5.0,
        load_timeout_s: float = 300.0,
        metrics_url: str | None = None,
        tls: TlsFiles | None = None,
        look_at_files_s: float = 2.0,
        shared_memory_bytes: int = 0,
        shared_memory_folder: Path = SHARED_MEMORY,
        transfers: TransferEvents | None = None,
    ) -> None:
        self.url = url
        self._health_timeout_s = health_timeout_s
        self._call_timeout_s = call_timeout_s
        self._load_timeout_s = load_timeout_s
        self._memory = MemoryMetrics(metrics_url, tls) if metrics_url else None
        self._crashes = Crashes()
        self._channel = TritonChannel(url, tls, connect_timeout_s=connect_timeout_s, look_at_files_s=look_at_files_s)
        self._transfers = transfers or TransferEvents(sent=lambda _: None, fell_back=lambda _: None)
        self._shared: SharedMemory | None = None
        if shared_memory_bytes:
            self._shared = SharedMemory(
                shared_memory_bytes,
                self._ask,
                self._call_about_memory,
                self._transfers.fell_back,
                near=on_this_machine(url),
                folder=shared_memory_folder,
            )
        self._closed = False

    @property
    def shared_memory_slots(self) -> Mapping[str, int]:
        """How many slots for input tensors are free, leased and quarantined; {} without shared memory."""
        return self._shared.counts() if self._shared is not None else {}

    @property
    def shared_memory_bytes(self) -> int:
        """The size of these slots together."""
        return self._shared.size if self._shared is not None else 0

    @property
    def trouble(self) -> GatewayError | None:
        return self._channel.trouble

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return ()

    async def is_ready(self) -> bool:
        """True when Triton can be reached and is live, whatever its models do; never raises."""
        try:
            answer = await self._ask_health(
                "ServerLive", messages.ServerLiveRequest(), model="", timeout_s=self._health_timeout_s
            )
        except SnapshotError:
            return False
        return bool(answer.live)

    async def serving(self, model: str) -> tuple[int, ...]:
        """The versions that answer, the lowest first; raises BackendUnavailable when Triton does not say.

        Triton lists what has come up and not been unloaded, while other versions load too. A version whose process
        has crashed it goes on listing; that one is left out from the first request that it fails.
        """
        listed = await self._listed(model, self._health_timeout_s)
        crashed = self._crashes.among(model, listed)
        return tuple(version for version in listed if version not in crashed)

    async def load(self, model: str, versions: tuple[int, ...] = (), config: str | None = None) -> None:
        """Load, so that exactly these versions serve; what serves already stays, unless its file has changed.

        Triton loads a version again, without a break, when a file in its folder or beside the folders is newer than
        its last load, or when `config` differs in more than the versions. Without versions `config` is not used, and
        versions that were asked for before go on to hold until a file of the model changes or it is unloaded. Raises
        what the port says.
        """
        wanted = tuple(sorted(set(versions)))
        before = await self._drop_crashed(model, wanted, config)
        if not wanted:
            await self._load(model)
        else:
            fresh, leaving = set(wanted) - set(before), set(before) - set(wanted)
            if len(wanted) > 1 and fresh and leaving:
                # Triton passes over a version without a folder: only when all have come may the others leave.
                await self._load_all(model, wanted, config, before=before, beside=before)
            await self._load_all(model, wanted, config, before=before)
        self._crashes.loaded(model)

    async def unload(self, model: str) -> None:
        """Unload all versions; requests that run come to their end. Raises as `load` does."""
        request = messages.RepositoryModelUnloadRequest(model_name=model)
        # It waits for a load that is under way.
        await self._call("RepositoryModelUnload", request, model=model, timeout_s=self._load_timeout_s)
        self._crashes.loaded(model)
        try:
            async with asyncio.timeout(self._call_timeout_s):
                while await self._listed(model, self._call_timeout_s):
                    await asyncio.sleep(UNLOAD_POLL_S)
        except TimeoutError:
            raise ModelUnavailable("Triton did not unload it in time", where=f"Triton model '{model}'") from None

    async def describe(self, model: str, version: int = 0) -> ModelSignature:
        """The signature of a version, 0: of the highest that is ready; raises as `load` does."""
        number = str(version) if version else ""
        metadata = await self._call(
            "ModelMetadata", messages.ModelMetadataRequest(name=model, version=number), model=model
        )
        config = await self._call("ModelConfig", messages.ModelConfigRequest(name=model, version=number), model=model)
        listed = self._numbers(metadata.versions)
        if not listed:
            raise ModelUnavailable("no version of it is ready", where=f"Triton model '{model}'")
        return ModelSignature(
            name=model,
            version=number or str(listed[-1]),
            inputs=_tensor_specs(metadata.inputs),
            outputs=_tensor_specs(metadata.outputs),
            max_batch_size=config.config.max_batch_size,
            on_gpu=_on_gpu(config.config.instance_group),
        )

    async def gpu_memory(self) -> GpuMemory | None:
        """Of the GPU with the most free memory, from Triton's metrics; None when they do not tell. Never raises."""
        return await self._memory.gpu() if self._memory is not None and not self._closed else None

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory for one input tensor, shared with Triton where it is large enough to gain by that."""
        return self._shared.tensor(shape, dtype) if self._shared is not None else np.empty(shape, dtype)

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether this is an array of `tensor` that Triton reads where it is."""
        return self._shared is not None and self._shared.holds(array)

    async def configuration(self, model: str) -> str:
        """The configuration with which a loaded model runs, as the text of a config.pbtxt; raises as `load` does."""
        answer = await self._call("ModelConfig", messages.ModelConfigRequest(name=model), model=model)
        text: str = text_format.MessageToString(answer.config)
        return text

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask one model; the arrays of the answer are read-only. Raises what the port says."""
        return await (self._shared.infer(request) if self._shared is not None else self._ask(request, {}))

    async def _ask(self, request: InferRequest, places: Places) -> InferResponse:
        """Ask with the tensors at these places by name and the others in the request; raises RegionLost, too."""
        payload = encode_request(request, places)
        line = self._channel.line()
        self._transfers.sent("shared_memory" if places else "bytes")
        answer = await self._guarded(
            line,
            lambda: line.infer(payload, timeout=request.timeout_s, metadata=request.trace or None),
            model=request.model,
            error_of=functools.partial(self._answer_error, request, places, self._crashes.loads(request.model)),
        )
        response = decode_response(answer, request)
        self._crashes.answered(request.model, request.version, response.model_version)
        return response

    async def statistics(self, model: str) -> ModelStatistics:
        """Totals of all loaded versions; memory as Triton reports it, else from its metrics, else None."""
        answer = await self._call("ModelStatistics", messages.ModelStatisticsRequest(name=model), model=model)
        totals = [version.inference_stats for version in answer.model_stats]
        usages = [usage.byte_size for version in answer.model_stats for usage in version.memory_usage]
        memory = sum(usages) if usages else None
        if memory is None and self._memory is not None:
            memory = await self._memory.of(model)
        return ModelStatistics(
            success_count=sum(each.success.count for each in totals),
            queue_ns=sum(each.queue.ns for each in totals),
            compute_ns=sum(each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns for each in totals),
            memory_bytes=memory,
            last_inference_at=max((each.last_inference for each in answer.model_stats), default=0) / 1000 or None,
        )

    async def close(self) -> None:
        """Free the connections; a call that still waits raises BackendUnavailable."""
        if self._shared is not None:
            await self._shared.close()
        self._closed = True
        await self._channel.close()
        if self._memory is not None:
            await self._memory.close()

    async def _load(self, model: str, versions: tuple[int, ...] = (), config: str | None = None) -> None:
        request = messages.RepositoryModelLoadRequest(model_name=model)
        if versions:
            request.parameters["config"].string_param = override(model, versions, config)
        error_of = functools.partial(model_error, versions=versions)
        await self._call("RepositoryModelLoad", request, model=model, timeout_s=self._load_timeout_s, error_of=error_of)

    async def _load_all(
        self,
        model: str,
        wanted: tuple[int, ...],
        config: str | None,
        *,
        before: tuple[int, ...],
        beside: tuple[int, ...] = (),
    ) -> None:
        """Load what is wanted and what shall stay beside it; put back what was before when a version is missing."""
        await self._load(model, (*wanted, *beside), config)
        missing = set(wanted) - set(await self._listed(model, self._call_timeout_s))
        if not missing:
            return
        if before:
            with contextlib.suppress(ModelUnavailable):  # its folder may be the one that is missing
                await self._load(model, before, config)
        else:
            await self.unload(model)
        raise versions_missing(model, missing)

    async def _drop_crashed(self, model: str, wanted: tuple[int, ...], config: str | None) -> tuple[int, ...]:
        """Unload wanted versions whose process has crashed, for Triton would take them for loaded.

        Returns what Triton lists then; not asked for, and (), where neither versions nor crashes are concerned.
        """
        if not wanted and not self._crashes.known(model):
            return ()
        listed = await self._listed(model, self._call_timeout_s)
        crashed = self._crashes.among(model, listed) & set(wanted or listed)
        if not crashed:
            return listed
        alive = tuple(version for version in listed if version not in crashed)
        if wanted and alive:
            await self._load(model, alive, config)
            return alive
        await self.unload(model)
        return ()

    async def _listed(self, model: str, timeout_s: float) -> tuple[int, ...]:
        """The versions that Triton lists as ready; raises BackendUnavailable when it does not say."""
        request = messages.ModelMetadataRequest(name=model)
        try:
            answer = await self._ask_health("ModelMetadata", request, model=model, timeout_s=timeout_s)
        except ModelUnavailable:
            return ()
        return self._numbers(answer.versions)

    def _numbers(self, versions: Iterable[str]) -> tuple[int, ...]:
        try:
            return tuple(sorted(int(version) for version in versions))
        except ValueError:
            raise self._not_triton() from None

    def _answer_error(
        self,
        request: InferRequest,
        places: Places,
        loads: int,
        code: Any,
        details: str | None,
        *,
        model: str,
        connected: bool,
    ) -> SnapshotError:
        if places and (lost := region_lost(details, model=model)):
            return lost
        if process_has_ended(details):
            self._crashes.crashed(model, request.version, loads)
        return answer_error(code, details, model=model, connected=connected)

    async def _call_about_memory(self, method: str, request: Any, timeout_s: float | None) -> Any:
        return await self._call(method, request, model="", timeout_s=timeout_s, error_of=memory_error)

    async def _ask_health(self, method: str, request: Any, *, model: str, timeout_s: float) -> Any:
        return await self._call(method, request, model=model, timeout_s=timeout_s, error_of=readiness_error)

    async def _call(
        self, method: str, request: Any, *, model: str, timeout_s: float | None = None, error_of: ErrorOf = model_error
    ) -> Any:
        """Call a method of Triton's API that is about a model's state."""
        line = self._channel.line()
        ask, timeout = getattr(line.stub, method), timeout_s or self._call_timeout_s
        try:
            answer = await self._guarded(line, lambda: ask(request, timeout=timeout), model=model, error_of=error_of)
        except BackendUnavailable as error:
            if self._closed or line.connected or (reason := await self._channel.why()) is None:
                raise
            message = f"Triton cannot be reached ({reason.message})"
            raise BackendUnavailable(message, where=f"Triton at {self.url}", fix=reason.fix) from error
        if answer is None:  # gRPC logs bytes that are no such message, and gives None
            raise self._not_triton()
        return answer

    def _not_triton(self) -> BackendUnavailable:
        return BackendUnavailable(f"what answers at {self.url} is not Triton", where=f"Triton at {self.url}")

    async def _guarded(self, line: Line, start: Callable[[], Awaitable[Any]], *, model: str, error_of: ErrorOf) -> Any:
        """Await a call; every foreign exception becomes one of ours, a cancellation of the caller passes."""
        where = f"Triton at {self.url}"
        try:
            with line:
                return await start()
        except grpc.RpcError as error:
            connected = not self._closed and line.connected
            raise error_of(error.code(), error.details(), model=model, connected=connected) from error
        except asyncio.CancelledError as error:
            # gRPC raises this also when only the channel was closed; then nobody has cancelled this task.
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise BackendUnavailable("the connection was closed meanwhile", where=where) from error
            raise
        except grpc.aio.BaseError as error:
            raise BackendUnavailable(f"the connection cannot be used ({error})", where=where) from error


def _on_gpu(groups: Any) -> bool | None:
    """Whether the instances run on a GPU; Triton fills in the kind when it loads, unless the model decides itself."""
    kinds = {group.Kind.Name(group.kind) for group in groups}
    return {"KIND_GPU": True, "KIND_CPU": False}.get(kinds.pop()) if len(kinds) == 1 else None


def _tensor_specs(tensors: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(each.name, each.datatype, tuple(each.shape)) for each in tensors)
