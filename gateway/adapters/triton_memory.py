"""Memory of models and GPUs from Triton's Prometheus metrics; what cannot be read is unknown, never an error."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from gateway.adapters.tls import FileWatch, tls_context
from gateway.credentials import TlsFiles
from gateway.errors import ConfigError
from gateway.ports import GpuMemory

MODEL_GAUGE = "edge_backend_resident_memory_bytes"
GPU_USED_GAUGE = "nv_gpu_memory_used_bytes"
GPU_TOTAL_GAUGE = "nv_gpu_memory_total_bytes"
GAUGES = (MODEL_GAUGE, GPU_USED_GAUGE, GPU_TOTAL_GAUGE)
MODELS_REFRESH_S = 10.0
GPU_REFRESH_S = 2.0  # Triton itself measures no more often, and a load is decided by it
TIMEOUT_S = 2.0
MAX_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Bytes by model, summed over its versions, and the memory of each GPU."""

    models: Mapping[str, int] = field(default_factory=dict)
    gpus: tuple[GpuMemory, ...] = ()


class MemoryMetrics:
    """The gauges of the embedded backends and of the GPUs; at most 2 MiB of text, one look at a time."""

    def __init__(self, metrics_url: str, tls: TlsFiles | None = None) -> None:
        """Over https `tls` says whom to trust and who we are; without it the system's authorities are trusted."""
        self._url = metrics_url
        self._tls = tls
        self._files: FileWatch | None = None
        self._client: httpx.AsyncClient | None = None
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._figures = MemoryFigures()

    async def of(self, model: str) -> int | None:
        """Bytes of all versions of the model, at most 10 s old; None when Triton's metrics do not tell."""
        return (await self._no_older_than(MODELS_REFRESH_S)).models.get(model)

    async def gpu(self) -> GpuMemory | None:
        """The GPU with the most free memory, at most 2 s old; None when Triton's metrics name none."""
        gpus = (await self._no_older_than(GPU_REFRESH_S)).gpus
        return max(gpus, key=lambda gpu: gpu.total - gpu.used, default=None)

    async def close(self) -> None:
        """Free the connection."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _no_older_than(self, age_s: float) -> MemoryFigures:
        async with self._reading:
            if time.monotonic() - self._read_at >= age_s:
                self._figures = await self._read()
                self._read_at = time.monotonic()
            return self._figures

    async def _read(self) -> MemoryFigures:
        try:
            client = await self._current_client()
            async with asyncio.timeout(TIMEOUT_S), client.stream("GET", self._url) as response:
                response.raise_for_status()
                return parse_gauges(await _limited_text(response.aiter_bytes()))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ConfigError):
            return MemoryFigures()

    async def _current_client(self) -> httpx.AsyncClient:
        """Made anew when the files for TLS were renewed."""
        if self._files is not None and self._files.changed():
            self._files.accept()
            await self.close()
        if self._client is None:
            verify, self._files = trust(self._url, self._tls)
            self._client = httpx.AsyncClient(timeout=TIMEOUT_S, verify=verify)
        return self._client


def trust(url: str, tls: TlsFiles | None) -> tuple[ssl.SSLContext | bool, FileWatch | None]:
    """Whom to trust at this address, as httpx takes it, and the files that say so; raises ConfigError.

    For plain http no certificates are read, which would take 20 ms and some memory.
    """
    if not url.startswith("https:") or tls is None:
        return url.startswith("https:"), None
    files = FileWatch(tls.paths)
    return tls_context(tls), files


def parse_gauges(text: str) -> MemoryFigures:
    """The figures of one page; raises ValueError on lines that are no metrics."""
    # The parser takes some 20 us a line, on the event loop: it sees only the lines of these gauges.
    prefixes = tuple(f"{gauge}{{" for gauge in GAUGES)
    lines = "\n".join(line for line in text.splitlines() if line.startswith(prefixes))
    sums: dict[str, dict[str, int]] = {gauge: defaultdict(int) for gauge in GAUGES}
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            if math.isfinite(sample.value):
                label = "model" if sample.name == MODEL_GAUGE else "gpu_uuid"
                sums[sample.name][sample.labels.get(label, "")] += int(sample.value)
    used, total = sums[GPU_USED_GAUGE], sums[GPU_TOTAL_GAUGE]
    return MemoryFigures(
        models=dict(sums[MODEL_GAUGE]),
        gpus=tuple(GpuMemory(used[gpu], total[gpu]) for gpu in total if gpu in used),
    )


async def _limited_text(chunks: AsyncIterator[bytes]) -> str:
    text = bytearray()
    async for chunk in chunks:
        text += chunk
        if len(text) > MAX_BYTES:
            raise ValueError(f"Triton's metrics are larger than {MAX_BYTES} bytes")
    return text.decode()
