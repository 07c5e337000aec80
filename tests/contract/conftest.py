"""The inference servers with the same models: in memory and real, one alone and two behind the gateway's pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.adapters.triton import TritonServer
from gateway.adapters.triton_pool import TritonPool
from gateway.adapters.triton_pool_member import PoolServer
from gateway.local.tritonserver import EmbeddedTriton
from gateway.metrics import Metrics
from gateway.ports import InferenceServer
from gateway.testing import MemoryTriton
from tests import triton_models as models
from tests.contract.inference_servers import All, Controls, MemoryControls, TritonControls

BROKEN = 3
"""The version of `times` that cannot be loaded."""


def memory_server() -> MemoryTriton:
    server = MemoryTriton()
    for name in ("double-onnx", "double-torch"):
        server.add_model(models.double_signature(name), models.double)
    server.add_model(models.types_signature("types"), models.identities)
    server.add_model(models.double_signature("broken"), models.double)
    server.refuse_load("broken", "version 1: cannot read the model: no model")
    for name, versions in (("times", (1, 2, BROKEN)), ("bare", (1, 2))):
        for version in versions:
            server.add_model(models.times_signature(name, version), models.times(version))
    server.refuse_load("times", "cannot read the model: no model", BROKEN)
    return server


@pytest.fixture(scope="package")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    repository = tmp_path_factory.mktemp("models")
    models.write_double_onnx(repository, "double-onnx")
    models.write_double_torch(repository, "double-torch")
    models.write_types_onnx(repository, "types")
    models.write_broken_onnx(repository, "broken")
    models.write_times_onnx(repository, "times", (1, 2))
    models.write_broken_version(repository, "times", BROKEN)
    models.write_times_onnx(repository, "bare", (1, 2), config=False)
    with EmbeddedTriton(repository=repository) as running:
        yield running


@pytest.fixture(scope="package")
def second_triton(triton: EmbeddedTriton) -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(repository=triton.repository) as running:
        yield running


def client(triton: EmbeddedTriton) -> TritonServer:
    return TritonServer(triton.grpc_url, metrics_url=triton.metrics_url, shared_memory_bytes=8 * 2**20)


def one_server(request: pytest.FixtureRequest) -> tuple[PoolServer, Controls]:
    if request.param == "memory":
        server = memory_server()
        return server, MemoryControls(server)
    embedded: EmbeddedTriton = request.getfixturevalue("triton")
    return client(embedded), TritonControls(embedded)


def pool(request: pytest.FixtureRequest) -> tuple[TritonPool, Controls]:
    servers: list[PoolServer]
    controls: list[Controls]
    if request.param == "memory pool":
        servers = [memory_server(), memory_server()]
        controls = [MemoryControls(each) for each in servers if isinstance(each, MemoryTriton)]
    else:
        tritons = [request.getfixturevalue(name) for name in ("triton", "second_triton")]
        servers, controls = [client(each) for each in tritons], [TritonControls(each) for each in tritons]
    return TritonPool({f"triton-{index}:8001": each for index, each in enumerate(servers)}, Metrics()), All(controls)


@pytest.fixture(
    params=[
        "memory",
        pytest.param("triton", marks=pytest.mark.triton),
        "memory pool",
        pytest.param("triton pool", marks=pytest.mark.triton),
    ]
)
async def both(request: pytest.FixtureRequest) -> AsyncIterator[tuple[InferenceServer, Controls]]:
    server, controls = pool(request) if request.param.endswith("pool") else one_server(request)
    yield server, controls
    await server.close()


@pytest.fixture
def server(both: tuple[InferenceServer, Controls]) -> InferenceServer:
    return both[0]


@pytest.fixture
def controls(both: tuple[InferenceServer, Controls]) -> Controls:
    return both[1]
