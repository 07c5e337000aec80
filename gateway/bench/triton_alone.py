"""Triton without anything in front of it: finished tensors by tritonclient, at the concurrency that serves it best."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException, shared_memory

from gateway.bench.records import TritonAlone
from gateway.bench.site import Model
from gateway.bench.usage import Usage
from gateway.errors import StackError

CONCURRENCIES = (1, 2, 4, 8, 16)
WORTH_IT = 1.03
"""The search ends where twice as many requests at once bring less than this."""
TIMEOUT_S = 30.0
INPUT = "images"
COUNTS = ("nv_inference_count", "nv_inference_exec_count")
"""Of Triton's metrics: inferences, and executions, each of a batch of them."""


class TritonClient:
    """Asks one model again and again with the same tensor, several requests in flight; a context manager's content."""

    def __init__(self, client: Any, model: str, inputs: list[Any]) -> None:
        self._client = client
        self._model = model
        self._inputs = inputs

    def rate(self, concurrency: int, seconds: float) -> tuple[float, int]:
        """Answers a second, and how many there were; raises StackError when Triton refuses one."""
        free = threading.Semaphore(concurrency)
        failures: list[Exception] = []

        def arrived(result: object, error: Exception | None) -> None:
            if error is not None:
                failures.append(error)
            free.release()

        sent, started = 0, time.perf_counter()
        while (time.perf_counter() < started + seconds or not sent) and not failures:
            self._take(free, failures)
            self._client.async_infer(self._model, self._inputs, callback=arrived)
            sent += 1
        for _ in range(concurrency):
            self._take(free, failures)
        return sent / (time.perf_counter() - started), sent

    def _take(self, free: threading.Semaphore, failures: list[Exception]) -> None:
        answered = free.acquire(timeout=TIMEOUT_S)
        if failures or not answered:
            why = str(failures[0]) if failures else f"no answer within {TIMEOUT_S:.0f} s"
            raise StackError(f"Triton does not answer {self._model}: {why}", fix="See its log, and try again")


@contextlib.contextmanager
def connected(url: str, model: Model, transport: str) -> Iterator[TritonClient]:
    """A client for the model's first variant; `transport` is bytes or shared-memory."""
    tensor = np.random.default_rng(0).random((1, 3, model.height, model.width), dtype=np.float32)
    name = model.variants["onnx"]
    entry = grpc_client.InferInput(INPUT, tensor.shape, "FP32")
    with contextlib.ExitStack() as stack:
        client = grpc_client.InferenceServerClient(url)
        stack.callback(client.close)
        if transport == "bytes":
            entry.set_data_from_numpy(tensor)
        else:
            region = f"bench-{uuid.uuid4().hex[:12]}"
            handle = shared_memory.create_shared_memory_region(region, f"/{region}", tensor.nbytes)
            stack.callback(shared_memory.destroy_shared_memory_region, handle)
            shared_memory.set_shared_memory_region(handle, [tensor])
            client.register_system_shared_memory(region, f"/{region}", tensor.nbytes)
            stack.callback(_unregister, client, region)
            entry.set_shared_memory(region, tensor.nbytes)
        yield TritonClient(client, name, [entry])


def _unregister(client: Any, region: str) -> None:
    """Triton lets go of a tensor a moment after it has answered."""
    given_up_at = time.monotonic() + TIMEOUT_S
    while True:
        try:
            client.unregister_system_shared_memory(region)
        except InferenceServerException as error:
            if "in use" not in str(error) or time.monotonic() > given_up_at:
                raise StackError(f"Triton keeps the bench's shared memory: {error}", fix="Run it again") from error
            time.sleep(0.01)
        else:
            return


def search(url: str, triton_pid: int, model: Model, transport: str, seconds: float) -> TritonAlone:
    """The best concurrency, found by doubling until it brings nothing more."""
    pids = {"triton": triton_pid, "client": os.getpid()}
    with connected(url, model, transport) as client:
        client.rate(2, min(0.3, seconds))
        rates: dict[int, float] = {}
        spent: dict[int, dict[str, float]] = {}
        for concurrency in CONCURRENCIES:
            before = Usage.read(pids)
            rates[concurrency], answered = client.rate(concurrency, seconds)
            spent[concurrency] = Usage.read(pids).since(before, answered)
            if concurrency > 1 and rates[concurrency] < WORTH_IT * rates[concurrency // 2]:
                break
    best = max(rates, key=lambda concurrency: rates[concurrency])
    cpu = spent[best]
    return TritonAlone(model.name, transport, rates, best, rates[best], cpu["triton"], cpu["client"])


def read_counts(metrics_url: str) -> Mapping[str, float]:
    """Inferences and executions of all models together, as Triton has counted them; zeros where it does not tell."""
    try:
        lines = httpx.get(metrics_url, timeout=5.0, trust_env=False).text.splitlines()
    except httpx.HTTPError:
        lines = []
    return {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
        for name in COUNTS
    }
