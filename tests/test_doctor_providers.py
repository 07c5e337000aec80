"""Where a model really runs: what is certain, what is inferred, and a fall back to the CPU that nobody noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.triton_probe import Placement
from gateway.doctor.findings import Level
from gateway.doctor.providers import where_it_runs
from gateway.doctor.triton_metrics import MetricsPage, parse_page

CPU, GPU = frozenset({"CPU"}), frozenset({"GPU"})
BUSY = MetricsPage({"GPU-1": 2 << 30})


def placed(kinds: frozenset[str], *accelerators: str, backend: str = "onnxruntime") -> Placement:
    return Placement(backend, kinds, (0,) if "GPU" in kinds else (), accelerators, 3.0, None)


def said(*providers: str) -> MetricsPage:
    return MetricsPage({}, {"m": frozenset(providers)})


@pytest.mark.parametrize(
    ("placement", "page", "gpu_wanted", "level", "text"),
    [
        # Nobody wants more than a CPU.
        (placed(CPU), None, False, Level.OK, "runs on the CPU, where Triton has placed it"),
        (placed(CPU), said("CPUExecutionProvider"), False, Level.OK, "runs on the CPU, as its backend says"),
        # Somebody wants more, and the CPU it is.
        (placed(CPU), None, True, Level.WARNING, "asks for a GPU, and Triton has placed it on the CPU"),
        (placed(CPU, "tensorrt"), None, None, Level.WARNING, "asks for TensorRT, and Triton has placed it on the CPU"),
        (placed(GPU), said("CPUExecutionProvider"), False, Level.WARNING, "asks for a GPU and runs on the CPU"),
        (placed(GPU, backend="pytorch"), said("cpu"), False, Level.WARNING, "asks for a GPU and runs on the CPU"),
        (
            placed(GPU), said("CPUExecutionProvider", "CUDAExecutionProvider"), False, Level.WARNING,
            "runs on CUDA and the CPU",
        ),
        (
            placed(GPU, "tensorrt"), said("CUDAExecutionProvider"), False, Level.WARNING,
            "asks for TensorRT and runs on CUDA without it",
        ),
        (placed(GPU), MetricsPage({"GPU-1": 3 << 20}), False, Level.WARNING, "inferred from that, it runs on the CPU"),
        # As it was meant.
        (placed(CPU, "tensorrt"), None, None, Level.WARNING, "GPU_ENABLED=false"),
        (placed(CPU, "tensorrt"), said("cpu"), False, Level.OK, "runs on the CPU, as its backend says"),
        (placed(GPU, "tensorrt"), said("TensorrtExecutionProvider"), True, Level.OK, "runs on TensorRT"),
        (placed(GPU), BUSY, True, Level.OK, "runs on GPU 0, where Triton has placed it"),
        (placed(GPU, backend="tensorrt"), BUSY, True, Level.OK, "there or not at all"),
        # What cannot be told.
        (placed(GPU, "tensorrt"), BUSY, True, Level.UNKNOWN, "Whether tensorrt takes it is not said"),
        (placed(GPU), MetricsPage(), True, Level.UNKNOWN, "its metrics name no GPU"),
        (placed(frozenset({"MODEL"}), backend="python"), BUSY, True, Level.UNKNOWN, "decides itself"),
        (placed(frozenset()), None, False, Level.UNKNOWN, "does not say"),
    ],
)  # fmt: skip
def test_where_it_runs(
    placement: Placement, page: MetricsPage | None, gpu_wanted: bool | None, level: Level, text: str
) -> None:
    found = where_it_runs("m", placement, page, "model/onnx", gpu_wanted=gpu_wanted)
    assert (found.level, found.where) == (level, "model/onnx")
    assert text in found.what + found.fix
    assert found.fix or level in (Level.OK, Level.UNKNOWN)


def test_what_the_page_tells() -> None:
    page = parse_page(
        "# TYPE edge_backend_resident_memory_bytes gauge\n"
        'edge_backend_resident_memory_bytes{instance="a",model="m",provider="CUDAExecutionProvider",version="1"} 5e7\n'
        'edge_backend_resident_memory_bytes{instance="b",model="m",provider="CPUExecutionProvider",version="1"} 0\n'
        'edge_backend_resident_memory_bytes{instance="c",model="older",version="1"} 5e7\n'
        'edge_backend_resident_memory_bytes{instance="c",model=broken\n'
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1048576\n'
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-2"} NaN\n'
    )
    assert page.providers == {"m": {"CUDAExecutionProvider"}}, "0 is the one before, which is gone"
    assert page.gpu_used_bytes == {"GPU-1": 1 << 20}


@given(st.text())
def test_no_page_breaks_it(text: str) -> None:
    parse_page(f"nv_gpu_memory_used_bytes{{{text}\nedge_backend_resident_memory_bytes{{{text}")
