"""Where a model really runs: on the GPU that was meant, with TensorRT, or on the CPU after all.

Triton tells where it has placed a model, the embedded backends which provider they have got; NVIDIA's ONNX Runtime
backend tells nothing. So it is said what is certain and what is inferred.
"""

from __future__ import annotations

from gateway.adapters.triton_probe import Placement
from gateway.doctor.findings import Area, Finding
from gateway.doctor.triton_metrics import MetricsPage

MODELS = Area("Models")
TENSORRT = "TensorRT"
CPU = "the CPU"
NAMES = {
    "CPUExecutionProvider": CPU,
    "CUDAExecutionProvider": "CUDA",
    "TensorrtExecutionProvider": TENSORRT,
    "cpu": CPU,
    "cuda": "CUDA",
}
CONTEXT_BYTES = 100 << 20
"""Less than CUDA alone takes of a GPU as soon as anything runs there."""
MEANT = "; if the CPU is meant, say so: GPU_ENABLED=false, or gpu_enabled: false in model.yaml"
GIVE_GPU = (
    "Give Triton the GPU (nvidia-smi must list it where Triton runs; in a container --gpus all, in Kubernetes "
    f"nvidia.com/gpu), and load the model again{MEANT}"
)
GIVE_PROVIDER = (
    "Give the backend an onnxruntime or PyTorch for the GPU, and the libraries of CUDA and TensorRT of its release, or "
    "use NVIDIA's tritonserver image; then load the model again"
)
ELSEWHERE = {
    frozenset({"MODEL"}): "decides itself where it runs, and does not say where",
    frozenset({"CPU", "GPU"}): "has instances on the GPU and on the CPU, as config.pbtxt says",
}
COMPARE = "Compare its time with that of a variant on the CPU, or read Triton's log with --log-verbose=1 while it loads"


def where_it_runs(
    model: str, placement: Placement, page: MetricsPage | None, where: str, *, gpu_wanted: bool | None
) -> Finding:
    """What is certain or can be inferred of one loaded Triton model.

    `gpu_wanted` is what model.yaml or GPU_ENABLED says: False means that the CPU is meant, None nothing.
    """
    asks = _asks(placement, gpu_wanted=gpu_wanted)
    said = (page.providers.get(model) if page else None) or frozenset()
    if said:
        return _as_said(frozenset(NAMES.get(each, each) for each in said), asks, placement, where)
    if placement.kinds == {"CPU"}:
        if not asks:
            return MODELS.ok(f"runs on {CPU}, where Triton has placed it", where=where)
        return MODELS.warning(
            f"asks for {asks}, and Triton has placed it on {CPU}: that is certain, whatever else config.pbtxt says",
            where=where,
            fix=GIVE_GPU,
        )
    if placement.kinds == {"GPU"}:
        return _on_gpu(placement, page, where)
    return MODELS.unknown(ELSEWHERE.get(placement.kinds, "does not say where it runs"), where=where)


def _asks(placement: Placement, *, gpu_wanted: bool | None) -> str:
    """What somebody wants for it; empty when nobody wants more than a CPU."""
    if gpu_wanted is False and "GPU" not in placement.kinds:
        return ""
    if "tensorrt" in placement.accelerators or placement.backend.startswith("tensorrt"):
        return TENSORRT
    if placement.accelerators:
        return ", ".join(placement.accelerators)
    return "a GPU" if gpu_wanted or "GPU" in placement.kinds else ""


def _as_said(runs_on: frozenset[str], asks: str, placement: Placement, where: str) -> Finding:
    on = " and ".join(sorted(runs_on))
    if asks and CPU in runs_on:
        # A backend that could use no GPU was given one; else Triton had none for it.
        fix = GIVE_PROVIDER if "GPU" in placement.kinds else GIVE_GPU
        return MODELS.warning(f"asks for {asks} and runs on {on}, as its backend says", where=where, fix=fix)
    if asks == TENSORRT and TENSORRT not in runs_on:
        return MODELS.warning(
            f"asks for {TENSORRT} and runs on {on} without it, as its backend says", where=where, fix=GIVE_PROVIDER
        )
    return MODELS.ok(f"runs on {on}, as its backend says", where=where)


def _on_gpu(placement: Placement, page: MetricsPage | None, where: str) -> Finding:
    on = f"GPU {', '.join(map(str, placement.gpus))}" if placement.gpus else "a GPU"
    if placement.backend.startswith("tensorrt"):
        return MODELS.ok(f"runs on {on}: a {TENSORRT} engine runs there or not at all", where=where)
    if page is not None and not page.gpu_used_bytes:
        text = f"Triton has placed it on {on}, but its metrics name no GPU: whether it runs there is not certain"
        return MODELS.unknown(text, where=where, fix=f"Start Triton with --allow-gpu-metrics=true. {COMPARE}")
    if page is not None and max(page.gpu_used_bytes.values()) < CONTEXT_BYTES:
        return MODELS.warning(
            f"Triton has placed it on {on}, but no GPU has {CONTEXT_BYTES >> 20} MiB in use: inferred from that, it "
            f"runs on {CPU}",
            where=where,
            fix=GIVE_PROVIDER,
        )
    if placement.accelerators and placement.backend.startswith("onnxruntime"):
        text = (
            f"Triton has placed it on {on}: that is certain. Whether {', '.join(placement.accelerators)} takes it is "
            "not said: what it cannot take runs on CUDA or the CPU without a word"
        )
        return MODELS.unknown(text, where=where, fix=COMPARE)
    return MODELS.ok(f"runs on {on}, where Triton has placed it", where=where)
