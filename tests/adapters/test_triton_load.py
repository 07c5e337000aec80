"""What TritonServer sends to load and unload versions, and what it makes of a server that answers oddly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from google.protobuf import json_format  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as messages

from gateway.adapters.triton import TritonServer
from gateway.adapters.triton_config import MAX_CONFIG_BYTES
from gateway.adapters.triton_crashes import SETTLED_S, Crashes
from gateway.adapters.triton_override import override
from gateway.errors import BackendUnavailable, ConfigError, ModelUnavailable
from gateway.messages import InferRequest
from tests.adapters.triton_wire import Wire, listening

CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 3] }]
version_policy: { latest { num_versions: 2 } }
instance_group [{ kind: KIND_CPU count: 2 }]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 }
"""
DEADLINE_S = 20.0
ENDED = "Stub process 'm_0_0' is not healthy."


class Shelf:
    """A Triton with one model `m`: the versions 1 to 3 are in its folder, and loads pass over others, as Triton does.

    Nothing crashed comes back by a load of what is loaded already.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.ready: set[int] = set()
        self.crashed: set[int] = set()
        self.loads: list[dict[str, Any] | None] = []
        wire.answers.update(
            RepositoryModelLoad=self.load,
            RepositoryModelUnload=self.unload,
            ModelMetadata=self.metadata,
            ModelInfer=self.infer,
        )

    async def load(self, payload: bytes, context: Any) -> bytes:
        request = messages.RepositoryModelLoadRequest.FromString(payload)
        text = request.parameters["config"].string_param
        self.loads.append(json.loads(text) if text else None)
        wished = {int(version) for version in self.wished[-1]} & {1, 2, 3} if text else {3}
        self.crashed &= self.ready & wished
        self.ready = wished
        return b""

    async def unload(self, payload: bytes, context: Any) -> bytes:
        self.ready, self.crashed = set(), set()
        return b""

    async def metadata(self, payload: bytes, context: Any) -> bytes:
        if not self.ready:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' has no available versions")
        answer = messages.ModelMetadataResponse(name="m", versions=[str(version) for version in self.ready])
        encoded: bytes = answer.SerializeToString()
        return encoded

    async def infer(self, payload: bytes, context: Any) -> bytes:
        request = messages.ModelInferRequest.FromString(payload)
        version = int(request.model_version or max(self.ready))
        if version in self.crashed:
            await context.abort(grpc.StatusCode.INTERNAL, ENDED)
        encoded: bytes = messages.ModelInferResponse(model_version=str(version)).SerializeToString()
        return encoded

    @property
    def wished(self) -> list[list[str]]:
        """The versions of each load."""
        return [load["version_policy"]["specific"]["versions"] if load else [] for load in self.loads]


@pytest.fixture
async def triton() -> AsyncIterator[tuple[Shelf, TritonServer]]:
    async with listening() as (wire, url):
        server = TritonServer(url)
        yield Shelf(wire), server
        await server.close()


def asking(version: str = "") -> InferRequest:
    return InferRequest("m", {"x": np.ones(1, np.float32)}, (), DEADLINE_S, version)


# --- the override -----------------------------------------------------------------------------------------


def test_an_override_is_the_configuration_with_these_versions() -> None:
    sent = json.loads(override("m", (2, 1, 2), CONFIG))

    assert sent["name"] == "m"
    assert sent["version_policy"] == {"specific": {"versions": ["1", "2"]}}
    assert (sent["platform"], sent["max_batch_size"]) == ("onnxruntime_onnx", 8)
    assert sent["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", "3"]}]
    assert sent["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert sent["parameters"] == {"intra_op_thread_count": {"string_value": "1"}}
    assert sent["dynamic_batching"] == {"max_queue_delay_microseconds": "18446744073709551615"}


def test_without_a_configuration_only_the_versions_are_said() -> None:
    assert json.loads(override("m", (7,), None)) == {"name": "m", "version_policy": {"specific": {"versions": ["7"]}}}


VERSIONS = st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=5)


@given(VERSIONS, VERSIONS, st.integers(0, 2**31 - 1))
def test_the_same_wish_is_the_same_text_and_triton_can_read_it(
    versions: list[int], others: list[int], batch: int
) -> None:
    config = f"max_batch_size: {batch} version_policy: {{ specific {{ versions: {others} }} }}"
    sent = override("m", versions, config)
    read = json_format.Parse(sent, model_config_pb2.ModelConfig())

    assert sent == override("m", reversed(versions), config)
    assert list(read.version_policy.specific.versions) == sorted(set(versions))
    assert read.max_batch_size == batch


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("max_batch_size: many", "line 1"),
        ("platfrom: 'x'", "did you mean 'platform'"),
        ("name: 'other'", "for the model 'other'"),
        ("#" * (MAX_CONFIG_BYTES + 1), "1 MiB"),
    ],
)
async def test_a_configuration_that_cannot_be_sent(
    triton: tuple[Shelf, TritonServer], config: str, reason: str
) -> None:
    shelf, server = triton
    with pytest.raises(ConfigError, match=reason) as wrong:
        await server.load("m", (1,), config)

    assert "'m'" in wrong.value.where
    assert wrong.value.fix
    assert shelf.loads == []


# --- loads ------------------------------------------------------------------------------------------------


async def test_a_load_without_versions_sends_no_configuration(triton: tuple[Shelf, TritonServer]) -> None:
    shelf, server = triton
    await server.load("m", (), "not even readable")

    assert shelf.loads == [None]
    assert await server.serving("m") == (3,)


async def test_what_served_before_leaves_only_when_all_have_come(triton: tuple[Shelf, TritonServer]) -> None:
    shelf, server = triton
    await server.load("m", (1,), CONFIG)
    await server.load("m", (2, 3), CONFIG)
    assert shelf.wished == [["1"], ["1", "2", "3"], ["2", "3"]]

    with pytest.raises(ModelUnavailable, match="version 9"):
        await server.load("m", (1, 9), CONFIG)
    assert shelf.wished[3:] == [["1", "2", "3", "9"], ["2", "3"]]
    assert await server.serving("m") == (2, 3)


async def test_a_version_whose_folder_has_gone_is_named_and_the_others_serve(
    triton: tuple[Shelf, TritonServer],
) -> None:
    shelf, server = triton
    shelf.ready = {1, 9}
    with pytest.raises(ModelUnavailable, match="version 9: not in the model's folder"):
        await server.load("m", (1, 9), CONFIG)

    assert await server.serving("m") == (1,)


async def test_no_word_after_a_load_changes_nothing(triton: tuple[Shelf, TritonServer]) -> None:
    """Else a Triton too busy to list its models would be told to unload them."""
    shelf, server = triton
    await server.load("m", (1,), CONFIG)

    async def silent(payload: bytes, context: Any) -> bytes:
        if len(shelf.loads) > 1:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        return await shelf.metadata(payload, context)

    shelf.wire.answers["ModelMetadata"] = silent
    with pytest.raises(BackendUnavailable, match="busy"):
        await server.load("m", (1, 2), CONFIG)

    assert shelf.wished == [["1"], ["1", "2"]]
    assert shelf.ready == {1, 2}


async def test_an_unload_that_does_not_end_is_told() -> None:
    async with listening() as (wire, url):
        listed = messages.ModelMetadataResponse(name="m", versions=["1"])
        wire.says(RepositoryModelUnload=messages.RepositoryModelUnloadResponse(), ModelMetadata=listed)
        server = TritonServer(url, call_timeout_s=0.3)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(ModelUnavailable, match="in time"):
                await server.unload("m")
        await server.close()


# --- crashed processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2", ""])
async def test_a_crashed_version_does_not_serve_and_is_loaded_again(
    triton: tuple[Shelf, TritonServer], version: str
) -> None:
    shelf, server = triton
    await server.load("m", (1, 2), CONFIG)
    shelf.crashed = {2}
    with pytest.raises(ModelUnavailable, match="has ended"):
        await server.infer(asking(version))
    assert await server.serving("m") == (1,)
    await server.infer(asking("1"))
    assert await server.serving("m") == (1,)

    await server.load("m", (1, 2), CONFIG)

    assert shelf.wished[1:] == [["1"], ["1", "2"]]  # the other one never left
    assert await server.serving("m") == (1, 2)
    assert (await server.infer(asking(version))).model_version == "2"


async def test_a_crashed_model_without_versions_is_unloaded_first(triton: tuple[Shelf, TritonServer]) -> None:
    shelf, server = triton
    await server.load("m")
    shelf.crashed = {3}
    with pytest.raises(ModelUnavailable):
        await server.infer(asking())
    assert await server.serving("m") == ()
    await server.load("m")

    assert shelf.crashed == set()
    assert await server.serving("m") == (3,)


async def test_after_a_restart_nothing_has_crashed(triton: tuple[Shelf, TritonServer]) -> None:
    shelf, server = triton
    await server.load("m")
    shelf.crashed = {3}
    with pytest.raises(ModelUnavailable):
        await server.infer(asking())
    shelf.ready = set()
    assert await server.serving("m") == ()
    shelf.ready = {3}

    assert await server.serving("m") == (3,)


async def test_a_version_that_somebody_else_has_loaded_again_serves(triton: tuple[Shelf, TritonServer]) -> None:
    shelf, server = triton
    await server.load("m", (1, 2), CONFIG)
    shelf.crashed = {1}
    with pytest.raises(ModelUnavailable):
        await server.infer(asking("1"))
    shelf.ready, shelf.crashed = {2}, set()
    assert await server.serving("m") == (2,)
    shelf.ready = {1, 2}

    assert await server.serving("m") == (1, 2)


def test_an_answer_counts_once_no_request_has_failed_for_a_while() -> None:
    now = 100.0
    crashes = Crashes(lambda: now)
    crashes.crashed("m", "1", 0)
    crashes.crashed("m", "", 0)
    now += SETTLED_S - 1
    crashes.answered("m", "1")  # another process of the same version
    crashes.crashed("m", "1", 0)
    now += SETTLED_S - 1
    crashes.answered("m", "1")
    assert crashes.among("m", (1, 2)) == {1, 2}
    now += 2
    crashes.answered("other", "1", "")
    assert crashes.among("m", (1, 2)) == {1, 2}
    crashes.answered("m", "1")
    assert crashes.among("m", (1, 2)) == {2}
    crashes.answered("m", "", "2")
    assert crashes.among("m", (1, 2)) == set()


async def test_a_late_word_of_a_crashed_process_says_nothing_of_the_next(triton: tuple[Shelf, TritonServer]) -> None:
    shelf, server = triton
    await server.load("m", (1,), CONFIG)
    arrived, go = asyncio.Event(), asyncio.Event()

    async def late(payload: bytes, context: Any) -> bytes:
        arrived.set()
        await go.wait()
        await context.abort(grpc.StatusCode.INTERNAL, ENDED)
        raise AssertionError("abort raises")

    shelf.wire.answers["ModelInfer"] = late
    request = asyncio.create_task(server.infer(asking("1")))
    async with asyncio.timeout(DEADLINE_S):
        await arrived.wait()
        await server.load("m", (1,), CONFIG)
        go.set()
        with pytest.raises(ModelUnavailable):
            await request

    assert await server.serving("m") == (1,)
