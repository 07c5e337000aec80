"""What TritonServer makes of everything that a server may say, right or wrong, over real gRPC connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as messages

from gateway.adapters.triton import TritonServer
from gateway.adapters.triton_codec import decode_response, encode_request
from gateway.adapters.triton_errors import MAX_ANSWER_BYTES
from gateway.errors import (
    BackendInvalidResponse,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ModelUnavailable,
    SnapshotError,
)
from gateway.messages import InferRequest, ModelSignature, TensorSpec
from tests.adapters.triton_wire import Wire, listening, statistics_response

REQUEST = InferRequest("m", {"x": np.ones((1, 3), np.float32)}, ("y",), timeout_s=20.0, request_id="id-1")
DEADLINE_S = 20.0


@pytest.fixture
async def triton() -> AsyncIterator[tuple[Wire, TritonServer]]:
    async with listening() as (wire, url):
        server = TritonServer(url)
        yield wire, server
        await server.close()


def infer_response(**more: Any) -> Any:
    """A right answer to REQUEST, changed."""
    output = messages.ModelInferResponse.InferOutputTensor(
        name=more.get("name", "y"), datatype=more.get("datatype", "FP32"), shape=more.get("shape", [1, 2])
    )
    raw = more.get("raw", [np.array([5, 6], np.float32).tobytes()])
    return messages.ModelInferResponse(model_version="4", outputs=[output], raw_output_contents=raw)


async def test_the_trace_context_goes_with_the_request(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    came: list[dict[str, str]] = []

    async def answer(_: bytes, context: Any) -> bytes:
        came.append(dict(context.invocation_metadata()))
        return bytes(infer_response().SerializeToString())

    wire.answers["ModelInfer"] = answer
    trace = (("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"), ("tracestate", "vendor=1"))
    await server.infer(replace(REQUEST, trace=trace))
    await server.infer(REQUEST)
    assert {name: came[0].get(name) for name, _ in trace} == dict(trace)
    assert not {"traceparent", "tracestate"} & came[1].keys()


# --- statuses -------------------------------------------------------------------------------------------

FAILURES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
ANSWER_ERRORS = {
    grpc.StatusCode.NOT_FOUND: ModelUnavailable,
    grpc.StatusCode.UNAVAILABLE: BackendUnavailable,
    grpc.StatusCode.CANCELLED: BackendUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: BackendTimeout,
}
MODEL_ERRORS = {
    grpc.StatusCode.UNAVAILABLE: BackendUnavailable,
    grpc.StatusCode.CANCELLED: BackendUnavailable,
}


async def test_an_answer_of_any_size_is_not_received(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    huge = bytes(MAX_ANSWER_BYTES + 1)
    wire.says(ModelInfer=infer_response(shape=[1, len(huge) // 4], raw=[huge]))
    with pytest.raises(BackendInvalidResponse, match="larger than 64 MiB"):
        await server.infer(REQUEST)
    wire.says(ModelInfer=infer_response())
    assert (await server.infer(REQUEST)).outputs["y"].tolist() == [[5, 6]]


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
async def test_every_status_of_an_answer_is_one_of_our_errors(
    triton: tuple[Wire, TritonServer], code: grpc.StatusCode
) -> None:
    wire, server = triton
    wire.fails(code, "some reason")

    with pytest.raises(SnapshotError) as raised:
        await server.infer(REQUEST)

    assert type(raised.value) is ANSWER_ERRORS.get(code, BackendRejected)
    assert raised.value.fix
    assert "'m'" in raised.value.where


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
async def test_every_status_about_a_model_is_one_of_our_errors(
    triton: tuple[Wire, TritonServer], code: grpc.StatusCode
) -> None:
    wire, server = triton
    wire.fails(code, "some reason")

    for call in (server.load, server.unload, server.describe, server.statistics):
        with pytest.raises(SnapshotError) as raised:
            await call("m")
        assert type(raised.value) is MODEL_ERRORS.get(code, ModelUnavailable)
        assert raised.value.fix
    assert not await server.is_ready()
    if code is grpc.StatusCode.NOT_FOUND:
        assert await server.serving("m") == ()
    else:  # says nothing of the model, so it must not pass for "not loaded"
        with pytest.raises(BackendUnavailable) as unavailable:
            await server.serving("m")
        assert unavailable.value.fix


async def test_a_model_that_is_not_ready_is_no_outage(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    wire.fails(grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'm' has no available versions")

    assert await server.serving("m") == ()


async def test_no_answer_about_health_ends_soon(triton: tuple[Wire, TritonServer]) -> None:
    wire, _ = triton

    async def wait(_: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    wire.default = wait
    server = TritonServer(triton[1].url, health_timeout_s=0.3, call_timeout_s=DEADLINE_S * 2)
    async with asyncio.timeout(DEADLINE_S):
        assert not await server.is_ready()
        with pytest.raises(BackendUnavailable, match="in time"):
            await server.serving("m")
    await server.close()


@pytest.mark.parametrize(
    ("details", "error"),
    [
        ("Request for unknown model: 'm' has no available versions", ModelUnavailable),
        ("Request for unknown model: 'm' version 1 is not at ready state", ModelUnavailable),
        ("[request id: 7] Exceeds maximum queue size", BackendRejected),
        ("[request id: 7] Request timeout expired", BackendTimeout),
        ("Server is stopping, scheduler for model has stopped accepting new inference requests", BackendUnavailable),
        ("failed to connect to all addresses", BackendUnavailable),
        ("Socket closed", BackendUnavailable),
        ("", BackendUnavailable),
    ],
)
async def test_the_meanings_of_unavailable(
    triton: tuple[Wire, TritonServer], details: str, error: type[SnapshotError]
) -> None:
    wire, server = triton
    wire.fails(grpc.StatusCode.UNAVAILABLE, details)

    with pytest.raises(SnapshotError) as raised:
        await server.infer(REQUEST)
    assert type(raised.value) is error


async def test_a_handler_that_breaks_is_rejected(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton

    async def broken(_: bytes, context: Any) -> bytes:
        raise ZeroDivisionError

    wire.answers["ModelInfer"] = broken
    with pytest.raises(BackendRejected, match="UNKNOWN"):
        await server.infer(REQUEST)


async def test_another_service_at_the_port_is_told(triton: tuple[Wire, TritonServer]) -> None:
    with pytest.raises(BackendRejected, match="TRITON_GRPC_URL"):
        await triton[1].infer(REQUEST)


# --- the connection -------------------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    server = TritonServer(f"127.0.0.1:{port}")
    with pytest.raises(BackendUnavailable):
        await server.infer(REQUEST)
    assert not await server.is_ready()
    await server.close()


async def test_a_port_that_never_speaks_is_not_reachable() -> None:
    connections: list[asyncio.Task[None] | None] = []

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    server = TritonServer(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", connect_timeout_s=0.3)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(BackendUnavailable):
            await server.infer(REQUEST)
        with pytest.raises(BackendUnavailable):
            await server.load("m")
        await server.close()
        listener.close()
        assert connections
        await asyncio.wait([task for task in connections if task])


async def test_closing_ends_a_call_that_waits(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    arrived = asyncio.Event()

    async def wait(_: bytes, context: Any) -> bytes:
        arrived.set()
        await asyncio.Event().wait()
        return b""

    wire.default = wait
    calls = [asyncio.create_task(call) for call in (server.infer(REQUEST), server.load("m"))]
    async with asyncio.timeout(DEADLINE_S):
        await arrived.wait()
        await server.close()
        results = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(result) for result in results] == [BackendUnavailable] * 2


async def test_a_cancellation_passes_and_reaches_the_server(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    arrived, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_: bytes, context: Any) -> bytes:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    wire.default = wait
    call = asyncio.create_task(server.infer(REQUEST))
    async with asyncio.timeout(DEADLINE_S):
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await cancelled.wait()


# --- answers --------------------------------------------------------------------------------------------


async def test_a_request_says_everything_and_the_answer_is_read(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    seen: list[Any] = []

    async def answer(payload: bytes, context: Any) -> bytes:
        seen.append(messages.ModelInferRequest.FromString(payload))
        encoded: bytes = infer_response().SerializeToString()
        return encoded

    wire.answers["ModelInfer"] = answer
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(1, 2, 3)[:, :, ::-1], "flag": np.array([True]), "none": EMPTY}
    response = await server.infer(InferRequest("m", inputs, ("y",), 20.0, version="4", request_id="id-9"))

    (request,) = seen
    assert (request.model_name, request.model_version, request.id) == ("m", "4", "id-9")
    assert [output.name for output in request.outputs] == ["y"]
    assert [(each.name, each.datatype, list(each.shape)) for each in request.inputs] == [
        ("x", "FP32", [1, 2, 3]),
        ("flag", "BOOL", [1]),
        ("none", "FP16", [0, 4]),
    ]
    assert list(request.raw_input_contents) == [array.tobytes() for array in inputs.values()]
    assert response.model_version == "4"
    np.testing.assert_array_equal(response.outputs["y"], np.array([[5, 6]], np.float32))


EMPTY = np.zeros((0, 4), np.float16)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_tensors_of_any_length_are_announced_right(length: int) -> None:
    array = np.arange(length, dtype=np.uint8)
    message = messages.ModelInferRequest.FromString(encode_request(InferRequest("m", {"x": array}, (), 1.0)))

    assert message.raw_input_contents[0] == array.tobytes()


@pytest.mark.parametrize(
    "answer",
    [
        infer_response(name="z"),
        infer_response(raw=[]),
        infer_response(raw=[b"1234567"]),
        infer_response(shape=[1, 3]),
        infer_response(shape=[-1, -2]),
        infer_response(shape=[2**62, 2**62]),
        infer_response(datatype="BYTES"),
        infer_response(datatype=""),
        messages.ModelInferResponse(),
        b"\xff\xff not a message",
    ],
    ids=["name", "no bytes", "odd bytes", "shape", "negative", "huge", "BYTES", "no type", "empty", "garbage"],
)
async def test_an_unreadable_answer_is_told(triton: tuple[Wire, TritonServer], answer: Any) -> None:
    wire, server = triton
    wire.says(ModelInfer=answer)

    with pytest.raises(BackendInvalidResponse) as raised:
        await server.infer(REQUEST)
    assert "'m'" in raised.value.where


async def test_garbage_about_a_model_is_told(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    garbage = b"\xff\xff not a message"
    wire.says(ServerLive=garbage, ModelMetadata=garbage, ModelStatistics=garbage)

    for call in (server.describe, server.statistics):
        with pytest.raises(BackendUnavailable, match="is not Triton"):
            await call("m")
    assert not await server.is_ready()
    with pytest.raises(BackendUnavailable, match="is not Triton"):
        await server.serving("m")


def test_outputs_that_nobody_asked_for_are_left_out() -> None:
    response = infer_response()
    response.outputs.add(name="extra", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(b"?")

    assert set(decode_response(response.SerializeToString(), REQUEST).outputs) == {"y"}


# --- models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "one", "1.5"])
async def test_a_version_that_is_no_number_is_not_triton(triton: tuple[Wire, TritonServer], version: str) -> None:
    wire, server = triton
    metadata = messages.ModelMetadataResponse(name="m", versions=["1", version])
    wire.says(ModelMetadata=metadata, ModelConfig=messages.ModelConfigResponse())

    for call in (server.serving, server.describe):
        with pytest.raises(BackendUnavailable, match="is not Triton"):
            await call("m")


async def test_the_highest_version_is_described(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    metadata = messages.ModelMetadataResponse(name="m", versions=["9", "10"])
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
    metadata.outputs.add(name="y", datatype="FP16", shape=[-1, 2])
    config = messages.ModelConfigResponse()
    config.config.max_batch_size = 8
    wire.says(ModelMetadata=metadata, ModelConfig=config)

    assert await server.describe("m") == ModelSignature(
        "m", "10", (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP16", (-1, 2)),), 8
    )


async def test_a_model_without_a_ready_version_is_unavailable(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    wire.says(ModelMetadata=messages.ModelMetadataResponse(name="m"), ModelConfig=messages.ModelConfigResponse())

    with pytest.raises(ModelUnavailable, match="no version"):
        await server.describe("m")


async def test_statistics_are_summed_over_versions(triton: tuple[Wire, TritonServer]) -> None:
    wire, server = triton
    wire.says(ModelStatistics=statistics_response(1000, 500))
    found = await server.statistics("m")

    assert (found.success_count, found.queue_ns, found.compute_ns, found.memory_bytes) == (10, 200, 600, 1500)
    assert found.last_inference_at is None
    response = statistics_response()
    response.model_stats[0].last_inference, response.model_stats[1].last_inference = 1_795_318_770_015, 17
    wire.says(ModelStatistics=response)
    found = await server.statistics("m")
    assert (found.memory_bytes, found.last_inference_at) == (None, 1_795_318_770.015)
