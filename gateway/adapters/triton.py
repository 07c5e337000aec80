"""Triton over gRPC: the `InferenceServer` port on tritonclient's generated stubs.

The stubs are called directly, not through InferenceServerClient: its status codes come as text, and its
InferInput copies every tensor twice more (see triton_codec).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from gateway.adapters.triton_codec import decode_response, encode_request
from gateway.adapters.triton_errors import answer_error, model_error, readiness_error
from gateway.adapters.triton_memory import ResidentMemory
from gateway.errors import BackendUnavailable, ModelUnavailable, SnapshotError
from gateway.messages import InferRequest, InferResponse, ModelSignature, ModelStatistics, TensorSpec

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

ErrorOf = Callable[..., SnapshotError]


class TritonServer:
    """One Triton at `host:port`; connects at the first call and again by itself after a loss, within about 1 s.

    `call_timeout_s` limits every call but `infer`, which brings its own, `load`, which may build engines, and the
    questions about health: `health_timeout_s` is how long a frozen Triton may go unnoticed.
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
    ) -> None:
        self.url = url
        self._connect_timeout_s = connect_timeout_s
        self._health_timeout_s = health_timeout_s
        self._call_timeout_s = call_timeout_s
        self._load_timeout_s = load_timeout_s
        self._memory = ResidentMemory(metrics_url) if metrics_url else None
        self._channel: Any = None
        self._stub: Any = None
        self._closed = False

    async def is_ready(self) -> bool:
        """True when Triton can be reached and is live, whatever its models do; never raises."""
        try:
            answer = await self._ask_health("ServerLive", messages.ServerLiveRequest(), model="")
        except SnapshotError:
            return False
        return bool(answer.live)

    async def is_model_ready(self, model: str) -> bool:
        """Whether some version of the model answers; raises BackendUnavailable when Triton does not say."""
        try:
            answer = await self._ask_health("ModelReady", messages.ModelReadyRequest(name=model), model=model)
        except ModelUnavailable:
            return False
        return bool(answer.ready)

    async def load(self, model: str) -> None:
        """Load or reload a model, returning when it serves; raises BackendUnavailable or ModelUnavailable."""
        request = messages.RepositoryModelLoadRequest(model_name=model)
        await self._call("RepositoryModelLoad", request, model=model, timeout_s=self._load_timeout_s)

    async def describe(self, model: str) -> ModelSignature:
        """The signature of the highest version that is ready; raises as `load` does."""
        metadata = await self._call("ModelMetadata", messages.ModelMetadataRequest(name=model), model=model)
        config = await self._call("ModelConfig", messages.ModelConfigRequest(name=model), model=model)
        if not metadata.versions:
            raise ModelUnavailable("no version of it is ready", where=f"Triton model '{model}'")
        return ModelSignature(
            name=model,
            version=max(metadata.versions, key=int),
            inputs=_tensor_specs(metadata.inputs),
            outputs=_tensor_specs(metadata.outputs),
            max_batch_size=config.config.max_batch_size,
            on_gpu=_on_gpu(config.config.instance_group),
        )

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask one model; the arrays of the answer are read-only. Raises what the port says."""
        payload = encode_request(request)
        self._connect()
        ask = self._channel.unary_unary(MODEL_INFER)  # no serialisers: triton_codec does it
        answer = await self._guarded(
            lambda: ask(payload, timeout=request.timeout_s), model=request.model, error_of=answer_error
        )
        return decode_response(answer, request)

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
        )

    async def close(self) -> None:
        """Free the connections; a call that still waits raises BackendUnavailable."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        if self._memory is not None:
            await self._memory.close()

    def _connect(self) -> None:
        """Make the channel at the first use, because it belongs to the event loop that runs then."""
        if self._closed:
            raise BackendUnavailable("the connection has been closed", where=f"Triton at {self.url}")
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.url, options=_channel_options(self._connect_timeout_s))
            self._stub = GRPCInferenceServiceStub(self._channel)

    async def _ask_health(self, method: str, request: Any, *, model: str) -> Any:
        return await self._call(
            method, request, model=model, timeout_s=self._health_timeout_s, error_of=readiness_error
        )

    async def _call(
        self, method: str, request: Any, *, model: str, timeout_s: float | None = None, error_of: ErrorOf = model_error
    ) -> Any:
        """Call a method of Triton's API that is about a model's state."""
        self._connect()
        ask, timeout = getattr(self._stub, method), timeout_s or self._call_timeout_s
        answer = await self._guarded(lambda: ask(request, timeout=timeout), model=model, error_of=error_of)
        if answer is None:  # gRPC logs bytes that are no such message, and gives None
            raise BackendUnavailable(f"what answers at {self.url} is not Triton", where=f"Triton at {self.url}")
        return answer

    async def _guarded(self, start: Callable[[], Awaitable[Any]], *, model: str, error_of: ErrorOf) -> Any:
        """Await a call; every foreign exception becomes one of ours, a cancellation of the caller passes."""
        where = f"Triton at {self.url}"
        try:
            return await start()
        except grpc.RpcError as error:
            connected = self._channel is not None and self._channel.get_state() is grpc.ChannelConnectivity.READY
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


def _channel_options(connect_timeout_s: float) -> list[tuple[str, int]]:
    return [
        # Pictures are larger than gRPC's default of 4 MiB; as tritonclient does.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # gRPC's back-off grows to two minutes, in which a restarted Triton would stand idle. The "minimum"
        # is, in spite of its name, how long one attempt to connect may take.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", round(connect_timeout_s * 1000)),
        # A Triton that comes back as another pod has another address: look the name up again at once.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # A finite interval also sets TCP_USER_TIMEOUT, which notices a machine that vanished. Pings more often
        # than every five minutes would make Triton close the connection during a long load.
        ("grpc.keepalive_time_ms", 330_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
