"""A real Triton for the tests of this folder, on a repository which each test adds its models to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

from gateway.local.tritonserver import EmbeddedTriton
from tests.local.tiny_models import FILES, Double, add_model, onnx_double, pbtxt, torch_model

CALL_TIMEOUT_S = 120  # a hung Triton fails the test instead of holding it


class Server:
    """The running Triton with the few calls that the tests make."""

    def __init__(self, triton: EmbeddedTriton) -> None:
        self.triton = triton
        self.client = grpc.InferenceServerClient(triton.grpc_url)
        self.loaded: list[str] = []

    def load(self, name: str, config: str | None = None) -> None:
        self.loaded.append(name)
        self.client.load_model(name, config=config, client_timeout=CALL_TIMEOUT_S)

    def ask(
        self, name: str, inputs: dict[str, np.ndarray[Any, Any]], outputs: list[str], version: str = ""
    ) -> dict[str, np.ndarray[Any, Any]]:
        """One request; the outputs that came back, by name."""
        result = self.client.infer(
            name,
            [tensor(key, array) for key, array in inputs.items()],
            model_version=version,
            outputs=[grpc.InferRequestedOutput(key) for key in outputs],
            client_timeout=CALL_TIMEOUT_S,
        )
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def stubs(self, name: str) -> list[psutil.Process]:
        """The stub processes that serve a model."""
        children = psutil.Process(self.triton.pid).children()
        return [child for child in children if any(f"/{name}/" in word for word in child.cmdline())]


def tensor(name: str, array: np.ndarray[Any, Any]) -> grpc.InferInput:
    """An input of a request."""
    made = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository of `server`; a test adds models under names of its own."""
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="session")
def running(repository: Path) -> Iterator[Server]:
    """One Triton for all tests of this folder that do not kill it."""
    with EmbeddedTriton(repository) as triton:
        server = Server(triton)
        yield server
        server.client.close()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """That Triton; what the test loads is unloaded after it, for each torch process takes 240 MB."""
    before = len(running.loaded)
    yield running
    while len(running.loaded) > before:
        running.client.unload_model(running.loaded.pop(), client_timeout=CALL_TIMEOUT_S)


@pytest.fixture
def add_double(tmp_path: Path) -> Callable[..., Path]:
    """Adds the model y = x + x as `onnx` or `torch` variant."""

    def add(repository: Path, name: str, variant: str, **config: Any) -> Path:
        output = "y" if variant == "onnx" else "y__0"
        content = onnx_double() if variant == "onnx" else torch_model(Double(), tmp_path / "double.pt")
        text = pbtxt(variant, inputs={"x": ("FP32", [3])}, outputs={output: ("FP32", [3])}, **config)
        return add_model(repository, name, text, FILES[variant], content)

    return add
