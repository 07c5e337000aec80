"""Both Python-based backends in the real tritonserver: types, batches, errors, configuration."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from gateway.local.backend_directory import find_sources, find_wheel
from tests.local import tiny_models
from tests.local.conftest import CALL_TIMEOUT_S, Server, tensor
from tests.local.tiny_models import (
    FILES,
    add_model,
    onnx_double,
    onnx_lookup,
    onnx_model,
    parameters,
    pbtxt,
    torch_model,
)

pytestmark = pytest.mark.triton

VARIANTS = ["onnx", "torch"]
OUTPUT = {"onnx": "y", "torch": "y__0"}
ONES = np.ones((1, 3), np.float32)
ROW = ("FP32", [3])

ECHO = {
    "a": ("FP32", np.float32, TensorProto.FLOAT),
    "b": ("FP16", np.float16, TensorProto.FLOAT16),
    "c": ("UINT8", np.uint8, TensorProto.UINT8),
    "d": ("INT64", np.int64, TensorProto.INT64),
    "e": ("INT8", np.int8, TensorProto.INT8),
    "f": ("INT32", np.int32, TensorProto.INT32),
    "g": ("BOOL", np.bool_, TensorProto.BOOL),
    "h": ("FP64", np.float64, TensorProto.DOUBLE),
}


def echo(variant: str, folder: Path) -> bytes:
    if variant == "torch":
        return torch_model(tiny_models.Echo(), folder / "echo.pt")
    nodes = [helper.make_node("Identity", [name], [f"out{n}"]) for n, name in enumerate(ECHO)]
    return onnx_model(
        nodes,
        [(name, kind, ["n", 2]) for name, (_, _, kind) in ECHO.items()],
        [(f"out{n}", kind, ["n", 2]) for n, (_, _, kind) in enumerate(ECHO.values())],
    )


BATCHES = [0, 4]


def echo_outputs(variant: str) -> list[str]:
    return [f"out{n}" if variant == "onnx" else f"OUT__{n}" for n in range(len(ECHO))]


@pytest.fixture(scope="module")
def echo_model(running: Server, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for variant, batch in itertools.product(VARIANTS, BATCHES):
        dims = [2] if batch else [-1, 2]
        config = pbtxt(
            variant,
            inputs={name: (kind, dims) for name, (kind, _, _) in ECHO.items()},
            outputs=dict(zip(echo_outputs(variant), [(kind, dims) for kind, _, _ in ECHO.values()], strict=True)),
            max_batch_size=batch,
        )
        name, content = f"echo-{variant}-{batch}", echo(variant, tmp_path_factory.mktemp("echo"))
        add_model(repository, name, config, FILES[variant], content)
        running.load(name)


@pytest.mark.usefixtures("echo_model")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_type_comes_back_as_it_went_in(server: Server, variant: str, batch: int) -> None:
    inputs = {name: np.array([[0, 1], [1, 0]]).astype(kind) for name, (_, kind, _) in ECHO.items()}
    answers = server.ask(f"echo-{variant}-{batch}", inputs, echo_outputs(variant))
    for output, sent in zip(echo_outputs(variant), inputs.values(), strict=True):
        assert answers[output].dtype == sent.dtype
        np.testing.assert_array_equal(answers[output], sent)


@pytest.mark.usefixtures("echo_model")
@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_requested_outputs_come_back(server: Server, variant: str) -> None:
    inputs = {name: np.zeros((1, 2), kind) for name, (_, kind, _) in ECHO.items()}
    wanted = echo_outputs(variant)[3:5]
    assert sorted(server.ask(f"echo-{variant}-4", inputs, wanted)) == sorted(wanted)


def ask_together(server: Server, name: str, inputs: list[np.ndarray[Any, Any]]) -> list[Any]:
    """Send all before the first answer; each answer is a result or the exception."""
    answers: dict[int, Any] = {}

    def remember(number: int) -> Callable[[Any, Any], None]:
        return lambda result, error: answers.__setitem__(number, error or result)

    for number, array in enumerate(inputs):
        server.client.async_infer(name, [tensor("x", array)], remember(number), client_timeout=CALL_TIMEOUT_S)
    deadline = time.monotonic() + CALL_TIMEOUT_S
    while len(answers) < len(inputs):
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.01)
    return [answers[number] for number in range(len(inputs))]


def together(size: int) -> str:
    """A dynamic batcher that waits until `size` rows are there."""
    return f"dynamic_batching {{ preferred_batch_size: [{size}] max_queue_delay_microseconds: 30000000 }}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_requests_of_different_sizes_share_one_run(
    server: Server, repository: Path, add_double: Callable[..., Path], variant: str
) -> None:
    name = f"batched-{variant}"
    one = "instance_group [{ count: 1 kind: KIND_CPU }]"
    add_double(repository, name, variant, max_batch_size=6, extra=f"{one}\n{together(6)}")
    server.load(name)
    inputs = [np.full((size, 3), size, np.float32) for size in (1, 2, 3)]
    for sent, answer in zip(inputs, ask_together(server, name, inputs), strict=True):
        np.testing.assert_array_equal(answer.as_numpy(OUTPUT[variant]), sent * 2)
    statistics = server.client.get_inference_statistics(name).model_stats[0]
    assert statistics.inference_count == 6
    assert statistics.execution_count == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_failing_request_does_not_fail_its_neighbours(
    server: Server, repository: Path, tmp_path: Path, variant: str
) -> None:
    name = f"lookup-{variant}"
    content = onnx_lookup() if variant == "onnx" else torch_model(tiny_models.Lookup(), tmp_path / "lookup.pt")
    config = pbtxt(
        variant,
        inputs={"x": ("INT64", [1])},
        outputs={OUTPUT[variant]: ("FP32", [1])},
        max_batch_size=3,
        extra=f"instance_group [{{ count: 1 kind: KIND_CPU }}]\n{together(3)}",
    )
    add_model(repository, name, config, FILES[variant], content)
    server.load(name)
    good, bad, last = ask_together(server, name, [np.array([[number]]) for number in (1, 99, 3)])
    assert good.as_numpy(OUTPUT[variant]).tolist() == [[11.0]]
    assert last.as_numpy(OUTPUT[variant]).tolist() == [[13.0]]
    assert isinstance(bad, InferenceServerException)
    assert f"model '{name}'" in str(bad)


def test_onnx_fills_in_what_config_pbtxt_leaves_out(server: Server, repository: Path) -> None:
    add_model(repository, "bare", pbtxt("onnx"), "model.onnx", onnx_double())
    server.load("bare")
    config = server.client.get_model_config("bare").config
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("x", 11, [3])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("y", 11, [3])]
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    np.testing.assert_array_equal(server.ask("bare", {"x": ONES}, ["y"])["y"], ONES * 2)


def test_onnx_with_a_fixed_first_axis_is_not_batched(server: Server, repository: Path) -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    model = onnx_model([node], [("x", TensorProto.FLOAT, [1, 3])], [("y", TensorProto.FLOAT, [1, 3])])
    add_model(repository, "fixed", pbtxt("onnx"), "model.onnx", model)
    server.load("fixed")
    config = server.client.get_model_config("fixed").config
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 3]
    np.testing.assert_array_equal(server.ask("fixed", {"x": ONES}, ["y"])["y"], ONES * 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_default_model_filename_names_the_file(
    server: Server, repository: Path, add_double: Callable[..., Path], variant: str
) -> None:
    name = f"named-{variant}"
    extra = 'default_model_filename: "weights.bin"'
    path = add_double(repository, name, variant, max_batch_size=2, extra=extra)
    path.rename(path.with_name("weights.bin"))
    server.load(name)
    np.testing.assert_array_equal(server.ask(name, {"x": ONES}, [OUTPUT[variant]])[OUTPUT[variant]], ONES * 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_instances_are_two_processes(
    server: Server, repository: Path, add_double: Callable[..., Path], variant: str
) -> None:
    name = f"twice-{variant}"
    add_double(repository, name, variant, max_batch_size=2, extra="instance_group [{ count: 2 kind: KIND_CPU }]")
    server.load(name)
    assert len(server.stubs(name)) == 2
    for answer in ask_together(server, name, [ONES] * 6):
        np.testing.assert_array_equal(answer.as_numpy(OUTPUT[variant]), ONES * 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_follow_the_parameter(server: Server, repository: Path, tmp_path: Path, variant: str) -> None:
    key = {"onnx": "intra_op_thread_count", "torch": "INTRA_OP_THREAD_COUNT"}[variant]
    content = onnx_double() if variant == "onnx" else torch_model(tiny_models.Parallel(), tmp_path / "parallel.pt")
    counts = []
    for threads in (1, 4):
        name = f"threads-{threads}-{variant}"
        extra = f"instance_group [{{ count: 1 kind: KIND_CPU }}]\n{parameters(**{key: threads})}"
        add_model(
            repository,
            name,
            pbtxt(
                variant,
                inputs={"x": ("FP32", [3])},
                outputs={OUTPUT[variant]: ("FP32", [3])},
                max_batch_size=2,
                extra=extra,
            ),
            FILES[variant],
            content,
        )
        server.load(name)
        (stub,) = server.stubs(name)
        counts.append(stub.num_threads())
    assert counts[1] - counts[0] >= 3  # torch makes more than one pool of that size


NAMING = {
    # name: (module, input names for a and b as config.pbtxt lists them, outputs for the sum and the difference)
    "by-argument": (tiny_models.SumAndDifference(), {"b": "b", "a": "a"}, ("OUTPUT__0", "OUTPUT__1")),
    "by-index": (tiny_models.SumAndDifference(), {"b": "INPUT__1", "a": "INPUT__0"}, ("sum__0", "rest__1")),
    "by-order": (tiny_models.SumAndDifference(), {"a": "first", "b": "second"}, ("sum", "rest")),
    "from-dict": (tiny_models.FromDict(), {"b": "b", "a": "a"}, ("OUTPUT__0", "OUTPUT__1")),
    "as-list": (tiny_models.AsList(), {"a": "a", "b": "b"}, ("OUTPUT__0", "OUTPUT__1")),
    "as-dict": (tiny_models.AsDict(), {"a": "a", "b": "b"}, ("total", "difference")),
}


@pytest.mark.parametrize("name", NAMING)
def test_torchscript_arguments_and_results_find_their_names(
    server: Server, repository: Path, tmp_path: Path, name: str
) -> None:
    module, inputs, (total, difference) = NAMING[name]
    config = pbtxt(
        "torch",
        inputs={given: ("FP32", [2]) for given in inputs.values()},
        outputs={difference: ("FP32", [2]), total: ("FP32", [2])}
        if name != "by-order"
        else {total: ("FP32", [2]), difference: ("FP32", [2])},
        max_batch_size=2,
    )
    add_model(repository, name, config, "model.pt", torch_model(module, tmp_path / "module.pt"))
    server.load(name)
    values = {"a": np.array([[5, 7]], np.float32), "b": np.array([[1, 2]], np.float32)}
    answers = server.ask(name, {given: values[key] for key, given in inputs.items()}, [total, difference])
    assert answers[total].tolist() == [[6.0, 9.0]]
    assert answers[difference].tolist() == [[4.0, 5.0]]


def test_an_operator_of_torchvision_is_asked_for_by_name(server: Server, repository: Path, tmp_path: Path) -> None:
    torch.library.define("torchvision::of_the_future", "(Tensor x) -> Tensor")
    config = pbtxt("torch", inputs={"x": ("FP32", [3])}, outputs={"y__0": ("FP32", [3])}, max_batch_size=2)
    content = torch_model(tiny_models.FromTorchvision(), tmp_path / "torchvision.pt")
    add_model(repository, "from-torchvision", config, "model.pt", content)
    with pytest.raises(InferenceServerException, match=r"of_the_future.*install torchvision"):
        server.load("from-torchvision")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_metrics_tell_the_memory_of_a_model(
    server: Server, repository: Path, add_double: Callable[..., Path], variant: str
) -> None:
    name = f"memory-{variant}"
    add_double(repository, name, variant, max_batch_size=2)
    server.load(name)
    with urllib.request.urlopen(server.triton.metrics_url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    series = [line for line in lines if line.startswith("edge_backend_resident_memory_bytes{") and name in line]
    assert series
    assert all('provider="c' in line.lower() for line in series), "CPUExecutionProvider, or cpu"
    assert all('version="1"' in line and float(line.rsplit(" ", 1)[1]) > 20e6 for line in series)


@pytest.fixture(scope="module")
def onnx_backend() -> ModuleType:
    """The ONNX backend's module itself, for what no machine without a GPU can show through Triton."""
    paths = [str(find_sources()), str(find_wheel() / "backends" / "python")]
    sys.path[:0] = paths
    try:
        spec = importlib.util.spec_from_file_location("onnx_backend", find_sources() / "onnxruntime" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        del sys.path[: len(paths)]


ACCELERATED = {
    "optimization": {
        "execution_accelerators": {
            "gpu_execution_accelerator": [
                {
                    "name": "tensorrt",
                    "parameters": {
                        "precision_mode": "FP16",
                        "max_workspace_size_bytes": "1073741824",
                        "trt_engine_cache_enable": "1",
                    },
                }
            ]
        }
    }
}


def test_tensorrt_and_cuda_are_used_where_there_is_a_gpu(onnx_backend: ModuleType) -> None:
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    options = {
        "device_id": 1,
        "trt_fp16_enable": True,
        "trt_int8_enable": False,
        "trt_max_workspace_size": "1073741824",
        "trt_engine_cache_enable": "1",
    }
    assert onnx_backend.providers(ACCELERATED, 1, available) == [
        ("TensorrtExecutionProvider", options),
        ("CUDAExecutionProvider", {"device_id": 1}),
        ("CPUExecutionProvider", {}),
    ]


def test_without_a_gpu_the_accelerator_is_left_alone(onnx_backend: ModuleType) -> None:
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_backend.providers(ACCELERATED, None, available) == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_accelerator_in_config_pbtxt_does_no_harm_without_a_gpu(
    server: Server, repository: Path, add_double: Callable[..., Path], variant: str
) -> None:
    name = f"accelerated-{variant}"
    accelerator = '{ name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } }'
    extra = f"optimization {{ execution_accelerators {{ gpu_execution_accelerator: [{accelerator}] }} }}"
    add_double(repository, name, variant, max_batch_size=2, extra=extra)
    server.load(name)
    np.testing.assert_array_equal(server.ask(name, {"x": ONES}, [OUTPUT[variant]])[OUTPUT[variant]], ONES * 2)
