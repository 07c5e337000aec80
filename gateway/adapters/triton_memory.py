"""Resident memory per model from Triton's Prometheus metrics: a figure for people, so it never fails anything."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

GAUGE = "edge_backend_resident_memory_bytes"
REFRESH_S = 10.0
TIMEOUT_S = 2.0
MAX_BYTES = 2 * 1024 * 1024


class ResidentMemory:
    """The gauge that the embedded backends report; read at most every 10 s, at most 2 MiB of text."""

    def __init__(self, metrics_url: str) -> None:
        self._url = metrics_url
        self._client: httpx.AsyncClient | None = None
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._bytes: Mapping[str, int] = {}

    async def of(self, model: str) -> int | None:
        """Bytes of all versions of the model; None when Triton's metrics do not tell."""
        async with self._reading:
            if time.monotonic() - self._read_at >= REFRESH_S:
                self._bytes = await self._read()
                self._read_at = time.monotonic()
        return self._bytes.get(model)

    async def close(self) -> None:
        """Free the connection."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _read(self) -> Mapping[str, int]:
        try:
            if self._client is None:
                # For plain http no certificates are read, which would take 20 ms and some memory.
                self._client = httpx.AsyncClient(timeout=TIMEOUT_S, verify=self._url.startswith("https:"))
            async with asyncio.timeout(TIMEOUT_S), self._client.stream("GET", self._url) as response:
                response.raise_for_status()
                return parse_gauge(await _limited_text(response.aiter_bytes()))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            return {}


def parse_gauge(text: str) -> Mapping[str, int]:
    """Bytes by model, summed over its versions; raises ValueError on lines that are no metrics."""
    # The parser takes some 20 us a line, on the event loop: it sees only the lines of this gauge.
    lines = "\n".join(line for line in text.splitlines() if line.startswith(f"{GAUGE}{{"))
    totals: dict[str, int] = defaultdict(int)
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            if math.isfinite(sample.value):
                totals[sample.labels.get("model", "")] += int(sample.value)
    return dict(totals)


async def _limited_text(chunks: AsyncIterator[bytes]) -> str:
    text = bytearray()
    async for chunk in chunks:
        text += chunk
        if len(text) > MAX_BYTES:
            raise ValueError(f"Triton's metrics are larger than {MAX_BYTES} bytes")
    return text.decode()
