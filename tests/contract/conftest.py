"""The two inference servers with the same models: one in memory, and one real Triton for all contract tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.adapters.triton import TritonServer
from gateway.local.tritonserver import EmbeddedTriton
from gateway.ports import InferenceServer
from gateway.testing import MemoryTriton
from tests import triton_models as models
from tests.contract.inference_servers import Controls, MemoryControls, TritonControls

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


@pytest.fixture(params=["memory", pytest.param("triton", marks=pytest.mark.triton)])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[tuple[InferenceServer, Controls]]:
    server: InferenceServer
    controls: Controls
    if request.param == "memory":
        server = memory_server()
        controls = MemoryControls(server)
    else:
        embedded: EmbeddedTriton = request.getfixturevalue("triton")
        server = TritonServer(embedded.grpc_url, metrics_url=embedded.metrics_url, shared_memory_bytes=8 * 2**20)
        controls = TritonControls(embedded)
    yield server, controls
    await server.close()


@pytest.fixture
def server(both: tuple[InferenceServer, Controls]) -> InferenceServer:
    return both[0]


@pytest.fixture
def controls(both: tuple[InferenceServer, Controls]) -> Controls:
    return both[1]
