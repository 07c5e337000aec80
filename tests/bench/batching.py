"""What dynamic batching brings, and what waiting for a batch costs: by max_queue_delay, preferred sizes and requests.

Not a test: it asserts nothing and its figures are those of this machine at this moment. Each request is followed by
the next one after a pause as long as a picture takes to be decoded, as it is behind the gateway.
Run it with `python -m tests.bench.batching`; `--quick` takes a second for each row.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tritonclient.grpc import aio as grpc

from gateway.local.tritonserver import EmbeddedTriton

REPOSITORY = Path(__file__).parents[2] / "model_repository"
SAMPLE = "industrial-safety-onnx"
FIXED = "fixed-cost"
DELAYS_US = (None, 0, 100, 500, 1000, 2000)
"""None: without dynamic batching."""
DECODING_S = 0.004
FIXED_MODEL = """
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.010 + 0.0002 * len(requests))
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(each, "x").as_numpy())])
            for each in requests
        ]
"""
FIXED_CONFIG = """
name: "fixed-cost"
backend: "python"
max_batch_size: 16
input [ { name: "x" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 16 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; times in ms."""

    rate: float
    p50: float
    p95: float
    batch: float
    """Pictures in one execution, on average."""


@contextmanager
def triton() -> Iterator[tuple[EmbeddedTriton, Path]]:
    """A Triton with the sample model, and with one that takes 10 ms for each execution and 0.2 ms for each picture."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        shutil.copytree(REPOSITORY / SAMPLE, repository / SAMPLE)
        (repository / FIXED / "1").mkdir(parents=True)
        (repository / FIXED / "1" / "model.py").write_text(FIXED_MODEL)
        (repository / FIXED / "config.pbtxt").write_text(FIXED_CONFIG)
        with EmbeddedTriton(repository) as server:
            yield server, repository


def configure(folder: Path, delay_us: int | None, preferred: tuple[int, ...]) -> None:
    """Write what is to hold from the next load on."""
    file = folder / "config.pbtxt"
    text = re.sub(r"dynamic_batching \{[^}]*\}\n?", "", file.read_text())
    if delay_us is not None:
        sizes = f"  preferred_batch_size: {list(preferred)}\n" if preferred else ""
        text += f"dynamic_batching {{\n  max_queue_delay_microseconds: {delay_us}\n{sizes}}}\n"
    file.write_text(text)


async def measure(client: grpc.InferenceServerClient, model: str, requests: int, seconds: float) -> Row:
    """Keep so many requests going for so long."""
    shape, name = ((1, 3, 256, 448), "images") if model == SAMPLE else ((1, 16), "x")
    given = grpc.InferInput(name, shape, "FP32")
    given.set_data_from_numpy(np.random.default_rng(0).random(shape, np.float32))
    latencies: list[float] = []
    chance = random.Random(0)
    ends_at = time.monotonic() + seconds

    async def ask() -> None:
        while time.monotonic() < ends_at:
            await asyncio.sleep(DECODING_S * chance.uniform(0.5, 1.5))
            started = time.monotonic()
            await client.infer(model, [given])
            latencies.append((time.monotonic() - started) * 1000)

    before = await counts(client, model)
    await asyncio.gather(*(ask() for _ in range(requests)))
    after = await counts(client, model)
    latencies.sort()
    return Row(
        rate=len(latencies) / seconds,
        p50=statistics.median(latencies),
        p95=latencies[int(0.95 * len(latencies))],
        batch=(after[0] - before[0]) / (after[1] - before[1]),
    )


async def counts(client: grpc.InferenceServerClient, model: str) -> tuple[int, int]:
    """Pictures and executions since the model was loaded."""
    found = (await client.get_inference_statistics(model)).model_stats[0]
    return found.inference_count, found.execution_count


async def compare(server: EmbeddedTriton, repository: Path, model: str, seconds: float) -> None:
    """Print a table of one model."""
    client = grpc.InferenceServerClient(server.grpc_url)
    print(f"\n{model}\n  delay us  preferred  requests     rate/s   p50 ms   p95 ms   batch")
    configurations: list[tuple[int | None, tuple[int, ...]]] = [(delay, ()) for delay in DELAYS_US]
    configurations += [(500, (4, 8)), (2000, (4, 8))]
    for delay_us, preferred in configurations:
        configure(repository / model, delay_us, preferred)
        await client.load_model(model)
        await measure(client, model, 4, 0.5)
        for requests in (1, 2, 4, 8, 16):
            row = await measure(client, model, requests, seconds)
            delay = "off" if delay_us is None else str(delay_us)
            sizes = ",".join(map(str, preferred)) or "-"
            print(
                f"  {delay:>8}  {sizes:>9}  {requests:>8}  {row.rate:>9.1f}  {row.p50:>7.1f}  {row.p95:>7.1f}"
                f"  {row.batch:>6.2f}",
                flush=True,
            )
    await client.close()


def main() -> None:
    """Measure both models."""
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    seconds = 1.0 if options.parse_args().quick else 4.0
    with triton() as (server, repository):
        for model in (FIXED, SAMPLE):
            asyncio.run(compare(server, repository, model, seconds))


if __name__ == "__main__":
    main()
