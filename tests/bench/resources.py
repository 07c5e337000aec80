"""What the gateway itself takes: time to ready, memory, CPU, its own share of latency. `make bench-resources`.

Not a test: it asserts nothing and its figures are those of this machine at this moment.
"""

from __future__ import annotations

import statistics
import time

import psutil

from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import REPOSITORY, RealSite

STARTS = 5
SNAPSHOTS = 200


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def starts(broker: EmbeddedBroker, triton: EmbeddedTriton) -> list[float]:
    """Seconds from exec to /ready, Triton up and its models loaded by the first start, which is left out."""
    taken = []
    for _ in range(STARTS + 1):
        with RealSite(broker, triton) as site:
            began = time.monotonic()
            site.start()
            site.wait_ready()
            taken.append(time.monotonic() - began)
    return taken[1:]


def one_after_the_other(site: RealSite, images: list[bytes], backend: str) -> dict[str, float]:
    """A closed loop of one camera: CPU a snapshot, and what of the time to the result is not Triton's."""
    process = psutil.Process(site.process.pid)
    already, before, total = len(site.results), cpu_seconds(process), SNAPSHOTS
    for number in range(total):
        image = images[number % len(images)]
        site.send(json_snapshot(image, f"camera-{backend}", number=number, backend_preference=backend))
        site.wait_for(results=already + number + 1, errors=0)
    own = [
        body["metadata"]["timings_ms"]["total"] - body["metadata"]["timings_ms"]["infer"]
        for body in site.results[already:]
    ]
    cuts = statistics.quantiles(own, n=100)
    return {
        "cpu_ms": (cpu_seconds(process) - before) / total * 1000,
        "own_p50_ms": cuts[49],
        "own_p99_ms": cuts[98],
        "memory_mb": site.memory_mb(),
    }


def main() -> None:
    """Print all figures."""
    images = [frame(TEST_SEEDS[number], 0) for number in range(4)]
    with EmbeddedBroker() as broker, EmbeddedTriton(REPOSITORY) as triton:
        taken = starts(broker, triton)
        print(f"start to ready, Triton up: median {statistics.median(taken):.2f} s, worst {max(taken):.2f} s")
        with RealSite(broker, triton) as site:
            site.start()
            site.wait_ready()
            print(f"resident memory, idle: {site.memory_mb():.0f} MB")
            single = one_after_the_other(site, images, "onnx")
            dual = one_after_the_other(site, images, "dual")
            print(f"single: {single['cpu_ms']:.1f} ms CPU a snapshot; resident {single['memory_mb']:.0f} MB")
            print(f"all but Triton, single: p50 {single['own_p50_ms']:.1f} ms, p99 {single['own_p99_ms']:.1f} ms")
            more = 100 * (dual["cpu_ms"] / single["cpu_ms"] - 1)
            print(f"dual: {dual['cpu_ms']:.1f} ms CPU a snapshot, {more:+.0f} %; resident {dual['memory_mb']:.0f} MB")
        sizes = ", ".join(f"{len(image) / 1000:.0f}" for image in images)
        print(f"1080p JPEG of {sizes} kB as JSON, sample model at 256x448, {SNAPSHOTS} snapshots each")


if __name__ == "__main__":
    main()
