"""What the flow relies on, held by the memory server and by the real Triton alike."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.adapters.triton import TransferEvents, TritonServer
from gateway.errors import BackendRejected, BackendTimeout, BackendUnavailable, ModelUnavailable
from gateway.local.tritonserver import EmbeddedTriton
from gateway.messages import InferRequest, TensorSpec
from gateway.ports import InferenceServer
from tests import triton_models as models
from tests.contract.inference_servers import DEADLINE_S, ROWS, Controls, TritonControls, ask, until

FROZEN_LIMIT_S = 4.0  # the calls about health take 2 s at most; the rest is for a slow machine


@pytest.mark.parametrize("model", ["double-onnx", "double-torch"])
async def test_a_loaded_model_answers(server: InferenceServer, model: str) -> None:
    await server.load(model)
    response = await server.infer(ask(model))

    assert await server.is_ready()
    assert await server.serving(model) == (1,)
    assert response.model_version == "1"
    assert list(response.outputs) == ["y__0"]
    np.testing.assert_array_equal(response.outputs["y__0"], ROWS * 2)
    assert not response.outputs["y__0"].flags.writeable


async def test_a_trace_context_changes_no_answer(server: InferenceServer) -> None:
    await server.load("double-onnx")
    trace = (("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"), ("tracestate", "vendor=1"))
    response = await server.infer(replace(ask("double-onnx"), trace=trace))

    np.testing.assert_array_equal(response.outputs["y__0"], ROWS * 2)


async def test_a_reload_keeps_answering(server: InferenceServer) -> None:
    await server.load("double-onnx")
    await server.load("double-onnx")

    np.testing.assert_array_equal((await server.infer(ask("double-onnx"))).outputs["y__0"], ROWS * 2)


async def test_the_signature_is_that_of_the_model(server: InferenceServer) -> None:
    for signature in (models.double_signature("double-onnx"), models.types_signature("types")):
        await server.load(signature.name)

        described = await server.describe(signature.name)
        assert described.on_gpu in (None, False)
        assert replace(described, on_gpu=None) == signature


async def test_every_type_and_an_empty_tensor_pass_unchanged(server: InferenceServer) -> None:
    await server.load("types")
    sent: dict[str, NDArray[Any]] = {
        "FP32": np.array([1.5, np.nan, -np.inf], np.float32),
        "FP16": np.array([[0.5, 7.0], [2.0, 3.0]], np.float16)[:, 0],  # not contiguous
        "INT32": np.array([-(2**31), 2**31 - 1], np.int32),
        "INT64": np.array([-(2**63), 2**63 - 1], np.int64),
        "UINT8": np.array([], np.uint8),
        "BOOL": np.array([True, False, True]),
    }
    inputs = {f"in_{kind}": array for kind, array in sent.items()}
    response = await server.infer(InferRequest("types", inputs, tuple(f"out_{kind}" for kind in sent), DEADLINE_S))

    for kind, array in sent.items():
        received = response.outputs[f"out_{kind}"]
        assert received.dtype == array.dtype
        np.testing.assert_array_equal(received, array)


async def test_memory_of_the_server_holds_what_was_written_whatever_else_is_asked(server: InferenceServer) -> None:
    await server.load("types")
    for turn in range(6):  # the real one proves by the first ones that it reads the memory
        sent: dict[str, NDArray[Any]] = {
            "FP32": server.tensor((40_000,), np.dtype(np.float32)),
            "FP16": server.tensor((3, 60_000), np.dtype(np.float16))[1],  # as of a batch
            "INT32": np.array([turn], np.int32),
            "INT64": np.array([], np.int64),
            "UINT8": server.tensor((100_000,), np.dtype(np.uint8)),
            "BOOL": server.tensor((5,), np.dtype(np.bool_)),
        }
        for kind, array in sent.items():
            array[...] = turn + 1
            assert array.flags.writeable, kind
        inputs = {f"in_{kind}": array for kind, array in sent.items()}
        response = await server.infer(InferRequest("types", inputs, tuple(f"out_{kind}" for kind in sent), DEADLINE_S))

        for kind, array in sent.items():
            np.testing.assert_array_equal(response.outputs[f"out_{kind}"], array, strict=True)


async def test_memory_is_nobody_elses_as_long_as_a_part_of_it_is_held(server: InferenceServer) -> None:
    kept = []
    for turn in range(20):
        array = server.tensor((2, 100_000), np.dtype(np.uint8))
        array[...] = turn
        kept.append(array[1])
        del array

    assert [part.tolist().count(turn) for turn, part in enumerate(kept)] == [100_000] * 20


async def test_only_the_outputs_asked_for_come_back(server: InferenceServer) -> None:
    await server.load("types")
    signature = models.types_signature("types")
    inputs = {spec.name: np.zeros(2, models.numpy_type(spec)) for spec in signature.inputs}

    some = await server.infer(InferRequest("types", inputs, ("out_INT64",), DEADLINE_S))
    every = await server.infer(InferRequest("types", inputs, (), DEADLINE_S))

    assert set(some.outputs) == {"out_INT64"}
    assert set(every.outputs) == {spec.name for spec in signature.outputs}


async def test_a_refused_load_says_why(server: InferenceServer) -> None:
    with pytest.raises(ModelUnavailable, match=r"version 1: .*cannot read the model") as refused:
        await server.load("broken")

    assert refused.value.fix
    assert "\n" not in str(refused.value)
    assert "Traceback" not in str(refused.value)
    assert "broken" in refused.value.where
    assert await server.serving("broken") == ()


async def test_an_unknown_model_is_unavailable(server: InferenceServer) -> None:
    assert await server.serving("nowhere") == ()
    for call in (server.load, server.describe, server.statistics):
        with pytest.raises(ModelUnavailable) as unavailable:
            await call("nowhere")
        assert unavailable.value.fix
    with pytest.raises(ModelUnavailable):
        await server.infer(ask("nowhere"))


async def test_a_version_that_is_not_loaded_is_unavailable(server: InferenceServer) -> None:
    await server.load("double-onnx")

    np.testing.assert_array_equal((await server.infer(ask("double-onnx", version="1"))).outputs["y__0"], ROWS * 2)
    with pytest.raises(ModelUnavailable):
        await server.infer(ask("double-onnx", version="7"))


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": ROWS[:, :2]},
        {"x": ROWS[0]},
        {"x": np.zeros((5, 3), np.float32)},
        {"x": ROWS.astype(np.int32)},
        {"x": ROWS.astype(object)},
        {"z": ROWS},
        {},
    ],
    ids=["too narrow", "no batch axis", "above max_batch_size", "wrong type", "unknown type", "unknown name", "none"],
)
async def test_a_request_that_does_not_fit_is_rejected(
    server: InferenceServer, inputs: dict[str, NDArray[Any]]
) -> None:
    await server.load("double-onnx")

    with pytest.raises(BackendRejected) as rejected:
        await server.infer(InferRequest("double-onnx", inputs, ("y__0",), DEADLINE_S))
    assert "\n" not in rejected.value.message
    with pytest.raises(BackendRejected):
        await server.infer(InferRequest("double-onnx", {"x": ROWS}, ("nothing",), DEADLINE_S))


async def test_no_answer_in_time_is_a_timeout(server: InferenceServer, controls: Controls) -> None:
    await server.load("double-onnx")
    await server.infer(ask("double-onnx"))
    controls.freeze()
    try:
        with pytest.raises(BackendTimeout):
            await server.infer(ask("double-onnx", timeout_s=0.3))
    finally:
        controls.thaw()

    np.testing.assert_array_equal((await server.infer(ask("double-onnx"))).outputs["y__0"], ROWS * 2)


async def test_a_frozen_server_is_not_ready_and_says_nothing_of_its_models(
    server: InferenceServer, controls: Controls
) -> None:
    await server.load("double-onnx")
    controls.freeze()
    try:
        async with asyncio.timeout(FROZEN_LIMIT_S):
            ready, loaded, unknown = await asyncio.gather(
                server.is_ready(),
                server.serving("double-onnx"),
                server.serving("nowhere"),
                return_exceptions=True,
            )
    finally:
        controls.thaw()

    assert ready is False
    assert isinstance(loaded, BackendUnavailable)
    assert isinstance(unknown, BackendUnavailable)
    await until(server.is_ready)
    assert await server.serving("double-onnx") == (1,)
    assert await server.serving("nowhere") == ()


async def test_a_cancelled_request_is_cancelled(server: InferenceServer, controls: Controls) -> None:
    await server.load("double-onnx")
    controls.freeze()
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await server.infer(ask("double-onnx"))
    finally:
        controls.thaw()

    np.testing.assert_array_equal((await server.infer(ask("double-onnx"))).outputs["y__0"], ROWS * 2)


async def test_a_request_in_flight_ends_with_close(server: InferenceServer, controls: Controls) -> None:
    await server.load("double-onnx")
    controls.freeze()
    try:
        request = asyncio.create_task(server.infer(ask("double-onnx")))
        await asyncio.sleep(0)
        await server.close()
        with pytest.raises(BackendUnavailable):
            await request
    finally:
        controls.thaw()
    assert not await server.is_ready()
    with pytest.raises(BackendUnavailable):
        await server.infer(ask("double-onnx"))


async def test_an_outage_is_seen_and_overcome(server: InferenceServer, controls: Controls) -> None:
    await server.load("double-onnx")
    await server.infer(ask("double-onnx"))
    controls.kill()
    try:
        assert not await server.is_ready()
        for call in (server.serving, server.load, server.unload, server.describe, server.statistics):
            with pytest.raises(BackendUnavailable):
                await call("double-onnx")
        with pytest.raises(BackendUnavailable):
            await server.load("double-onnx", (1,))
        assert await server.gpu_memory() is None
        with pytest.raises(BackendUnavailable):
            await server.infer(ask("double-onnx"))
    finally:
        await asyncio.to_thread(controls.start)

    await until(server.is_ready)
    with pytest.raises(ModelUnavailable):  # nothing is loaded after a restart
        await server.infer(ask("double-onnx"))
    await server.load("double-onnx")
    np.testing.assert_array_equal((await server.infer(ask("double-onnx"))).outputs["y__0"], ROWS * 2)


async def test_statistics_grow_with_the_answers(server: InferenceServer) -> None:
    await server.load("double-onnx")
    before = await server.statistics("double-onnx")
    for _ in range(3):
        await server.infer(ask("double-onnx"))
    with pytest.raises(BackendRejected):
        await server.infer(ask("double-onnx", ROWS[:, :2]))

    async def counted() -> bool:  # Triton answers first and counts afterwards
        return (await server.statistics("double-onnx")).success_count >= before.success_count + 3

    await until(counted)
    after = await server.statistics("double-onnx")
    assert after.success_count == before.success_count + 3
    assert after.compute_ns > before.compute_ns
    assert after.queue_ns >= before.queue_ns
    assert abs((after.last_inference_at or 0.0) - time.time()) < DEADLINE_S


async def test_requests_at_the_same_time_keep_apart(server: InferenceServer) -> None:
    await server.load("double-onnx")
    await server.load("double-torch")
    wishes = [(model, ROWS * number) for number in range(20) for model in ("double-onnx", "double-torch")]
    responses = await asyncio.gather(*(server.infer(ask(model, rows)) for model, rows in wishes))

    for (_, rows), response in zip(wishes, responses, strict=True):
        np.testing.assert_array_equal(response.outputs["y__0"], rows * 2)


@pytest.mark.triton
async def test_the_embedded_triton_reports_memory(triton: EmbeddedTriton) -> None:
    server = TritonServer(triton.grpc_url, metrics_url=triton.metrics_url)
    try:
        await server.load("double-onnx")
        assert ((await server.statistics("double-onnx")).memory_bytes or 0) > 10_000_000
    finally:
        await server.close()


@pytest.mark.triton
async def test_the_memory_of_a_request_that_timed_out_rests(triton: EmbeddedTriton) -> None:
    controls = TritonControls(triton)
    sent: list[str] = []
    server = TritonServer(
        triton.grpc_url,
        shared_memory_bytes=2**20,
        transfers=TransferEvents(sent=sent.append, fell_back=lambda _: None),
    )
    await server.load("types")

    async def asked(timeout_s: float = DEADLINE_S) -> bool:
        inputs = {f"in_{kind}": np.zeros(2, models.numpy_type(TensorSpec("", kind, ()))) for kind in models.ONNX_TYPES}
        inputs["in_UINT8"] = server.tensor((200_000,), np.dtype(np.uint8))
        inputs["in_UINT8"][...] = 7
        await server.infer(InferRequest("types", inputs, ("out_UINT8",), timeout_s))
        return sent[-2:] == ["shared_memory", "shared_memory"]

    await until(asked)
    controls.freeze()
    try:
        with pytest.raises(BackendTimeout):
            await asked(0.3)
    finally:
        controls.thaw()
    assert server.shared_memory_slots["quarantined"] == 1

    assert await asked()
    assert server.shared_memory_slots["quarantined"] == 1
    await server.close()
