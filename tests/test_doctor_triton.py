"""`edge-gateway doctor` on a Triton with a GPU, as NVIDIA's is on site: what it says, without one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as messages

from gateway.doctor.findings import Finding, Level
from gateway.doctor.triton import check_triton
from gateway.doctor.triton_endpoints import check_tritons
from gateway.doctor.triton_metrics import MetricsPage
from gateway.models.repository import read_served
from tests.adapters.triton_wire import Wire, listening
from tests.flow.builders import settings, signature
from tests.harness import write_model

NAMES = ("detector-onnx", "detector-torch")


def serve(wire: Wire, version: str = "2.69.0", last_inference: float = 0.0) -> None:
    """Two variants on GPU 0, of which the ONNX one asks for TensorRT."""
    metadata = messages.ServerMetadataResponse(name="triton", version=version)
    metadata.extensions.extend(["model_repository", "statistics"])
    index = messages.RepositoryIndexResponse()
    figures = messages.ModelStatisticsResponse()
    figures.model_stats.add(version="1", last_inference=int(last_inference * 1000))
    figures.model_stats[0].inference_stats.success.count = 10
    figures.model_stats[0].inference_stats.compute_infer.ns = 35_000_000
    for name in NAMES:
        index.models.add(name=name, version="1", state="READY")
    wire.says(
        ServerMetadata=metadata,
        ServerReady=messages.ServerReadyResponse(ready=True),
        RepositoryModelUnload=messages.RepositoryModelUnloadResponse(),
        RepositoryIndex=index,
        ModelStatistics=figures,
    )
    wire.answers |= {"ModelMetadata": _metadata, "ModelConfig": _config, "SystemSharedMemoryRegister": _not_allowed}


async def _metadata(payload: bytes, _context: Any) -> bytes:
    name = messages.ModelMetadataRequest.FromString(payload).name
    said, known = messages.ModelMetadataResponse(name=name, versions=["1"]), signature(name)
    for tensors, specs in ((said.inputs, known.inputs), (said.outputs, known.outputs)):
        for spec in specs:
            tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return bytes(said.SerializeToString())


async def _config(payload: bytes, _context: Any) -> bytes:
    name = messages.ModelConfigRequest.FromString(payload).name
    said = messages.ModelConfigResponse()
    said.config.max_batch_size = signature(name).max_batch_size
    said.config.backend = "onnxruntime" if name.endswith("onnx") else "pytorch"
    said.config.instance_group.add(kind="KIND_GPU", count=1, gpus=[0])
    if name.endswith("onnx"):
        said.config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    return bytes(said.SerializeToString())


async def _not_allowed(_payload: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "client shared memory is not allowed")
    raise AssertionError("abort raises")


async def examined(folder: Path, page: MetricsPage | None, **triton: Any) -> list[Finding]:
    write_model(folder)
    models, errors = read_served(folder, None)
    assert not errors
    read: asyncio.Future[MetricsPage | None] = asyncio.get_running_loop().create_future()
    read.set_result(page)
    async with listening() as (wire, address):
        serve(wire, **triton)
        return await check_triton(settings(triton_grpc_url=address, model_repository=folder), models, read)


async def test_a_gpu_that_works_is_told_and_what_nobody_can_tell_is_not_claimed(tmp_path: Path) -> None:
    found = [each for each in await examined(tmp_path, MetricsPage({"GPU-1": 2 << 30})) if each.area == "Models"]
    serves, unsure, torch = found
    assert serves.what.endswith("; onnxruntime, 3.5 ms a request on average")
    assert (unsure.level, "Whether tensorrt takes it is not said" in unsure.what) == (Level.UNKNOWN, True)
    assert torch.what.endswith("; pytorch, runs on GPU 0, where Triton has placed it, 3.5 ms a request on average")


async def test_a_gpu_with_nothing_in_it_is_a_fall_back(tmp_path: Path) -> None:
    found = await examined(tmp_path, MetricsPage({"GPU-1": 3 << 20}))
    warnings = [each for each in found if each.area == "Models" and each.level is Level.WARNING]
    assert [each.where for each in warnings] == ["detector/onnx", "detector/torch"]
    assert all("inferred from that, it runs on the CPU" in each.what for each in warnings)


async def test_shared_memory_that_has_to_be_allowed_names_the_flag_where_there_is_one(tmp_path: Path) -> None:
    for version, named in (("2.69.0", True), ("2.70.1", True), ("2.68.0", False), ("nightly", False)):
        found = await examined(tmp_path, None, version=version)
        (memory,) = (each for each in found if "shared memory cannot be used" in each.what)
        assert "client shared memory is not allowed" in memory.what
        assert ("--allow-client-shm=true" in memory.fix) is named


async def test_a_request_from_the_future_tells_of_the_clock(tmp_path: Path) -> None:
    ahead = await examined(tmp_path, None, last_inference=time.time() + 600)
    (clock,) = (each.what for each in ahead if each.area == "Clock")
    assert "s or more behind that of Triton's machine" in clock
    past = await examined(tmp_path, None, last_inference=time.time() - 600)
    assert not [each for each in past if each.area == "Clock"], "a model may not have been asked for long"


async def test_of_several_each_is_looked_at_and_one_that_is_away_is_a_warning(tmp_path: Path) -> None:
    write_model(tmp_path)
    models, _ = read_served(tmp_path, None)
    loop = asyncio.get_running_loop()
    async with listening() as (wire, address):
        serve(wire)
        both = {"triton_grpc_url": f"{address},127.0.0.1:1", "triton_placement": ("model=*-torch -> 127.0.0.1:1",)}
        pages = [loop.create_future(), loop.create_future()]
        for page in pages:
            page.set_result(None)
        found = await check_tritons(settings(**both, model_repository=tmp_path), models, pages)
        nowhere = {"triton_grpc_url": "127.0.0.1:1,localhost:1"}
        none = await check_tritons(settings(**nowhere, model_repository=tmp_path), models, pages)

    assert all(each.where.startswith((address, "127.0.0.1:1")) for each in found)
    (away,) = (each for each in found if each.where == "127.0.0.1:1")
    assert (away.level, away.what.startswith("cannot be reached")) == (Level.WARNING, True)
    assert [each.where for each in found if each.area == "Models" and each.level is Level.OK]
    assert not any(each.where.endswith("detector/torch") for each in found), "it is not placed there"
    assert [each.where for each in none if each.level is Level.PROBLEM and each.area == "Triton"] == [
        "127.0.0.1:1",
        "localhost:1",
    ]
