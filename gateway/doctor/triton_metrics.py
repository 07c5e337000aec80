"""Triton's metrics page: whether it can be read, and what it tells of GPUs.

Triton sends no Date with it; where a proxy in front adds one, the clock is compared with that.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import ssl
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from gateway.adapters.tls import TlsError, explain
from gateway.adapters.triton_memory import GPU_USED_GAUGE, MODEL_GAUGE, trust
from gateway.addresses import shown
from gateway.config import Settings
from gateway.config_files import triton_tls
from gateway.credentials import TlsFiles
from gateway.doctor.findings import Area, Finding
from gateway.errors import ConfigError

AREA = Area("Triton")
CLOCK = Area("Clock")
METRICS_LIMIT_S = 3.0
METRICS_BYTES = 2 << 20
METRICS_MARK = b"nv_"
SKEW_S = 2.0
NO_TIME = (
    "was not compared with those of the broker and of Triton, which do not tell theirs; results carry the cameras' own "
    "times"
)


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """What of Triton's metrics tells where models run."""

    gpu_used_bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory in use of each GPU that Triton reports on, by its UUID."""
    providers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By Triton model the execution providers, or devices, that its instances say they run on; the embedded backends
    alone say so."""


async def check_metrics(settings: Settings, page: asyncio.Future[MetricsPage | None]) -> list[Finding]:
    """Triton's metrics page, which goes to `page` for others to look into: None when it cannot be read."""
    try:
        return await _check(settings, page)
    finally:
        if not page.done():
            page.set_result(None)


async def _check(settings: Settings, page: asyncio.Future[MetricsPage | None]) -> list[Finding]:
    if settings.triton_metrics_url is None:
        text = "TRITON_METRICS_URL is not set: comparisons carry no memory of the models, and no GPU is seen"
        return [AREA.ok(text), CLOCK.unknown(NO_TIME)]
    where = shown(settings.triton_metrics_url)
    try:
        content, date = await _page(settings.triton_metrics_url, triton_tls(settings))
    except ConfigError as error:
        return [AREA.failed(error)]
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        reason = why_no_answer(error)
        if (tls := triton_tls(settings)) and (found := _tls_error(error, tls, settings.triton_metrics_url)):
            return [AREA.warning(f"the metrics cannot be read: {found.message}", where=where, fix=found.fix)]
        return [
            AREA.warning(
                f"the metrics cannot be read: {reason}",
                where=where,
                fix="Start Triton with --allow-metrics=true, or correct TRITON_METRICS_URL",
            )
        ]
    if METRICS_MARK not in content:
        fix = "Correct TRITON_METRICS_URL; usually http://<host>:8002/metrics"
        return [AREA.warning("that page is not Triton's metrics", where=where, fix=fix)]
    read = parse_page(content.decode(errors="replace"))
    page.set_result(read)
    gpus = len(read.gpu_used_bytes)
    seen = f"{gpus} GPU{'s' * (gpus != 1)}" if gpus else "no GPU"
    return [AREA.ok(f"metrics can be read, and name {seen}", where=where), skew(date, "what serves Triton's metrics")]


def parse_page(text: str) -> MetricsPage:
    """The gauges of one page; lines that are no metrics are passed over."""
    prefixes = (f"{MODEL_GAUGE}{{", f"{GPU_USED_GAUGE}{{")
    used: dict[str, int] = {}
    providers: dict[str, set[str]] = defaultdict(set)
    for name, labels, value in _samples(line for line in text.splitlines() if line.startswith(prefixes)):
        if name == GPU_USED_GAUGE:
            used[labels.get("gpu_uuid", "")] = int(value)
        elif value > 0 and (provider := labels.get("provider")):  # 0 once an instance is gone
            providers[labels.get("model", "")].add(provider)
    return MetricsPage(used, {model: frozenset(names) for model, names in providers.items()})


def _samples(lines: Iterable[str]) -> Iterable[tuple[str, dict[str, str], float]]:
    for line in lines:
        try:
            for family in text_string_to_metric_families(line):
                yield from (
                    (each.name, each.labels, each.value) for each in family.samples if math.isfinite(each.value)
                )
        except ValueError:
            continue


def _tls_error(error: BaseException | None, tls: TlsFiles, url: str) -> TlsError | None:
    """What of TLS is behind an error of httpx, which keeps it two causes deep."""
    parts = urlsplit(url)
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return explain(error, tls, parts.hostname or "", parts.port or 443)
        error = error.__cause__ or error.__context__
    return None


def why_no_answer(error: Exception) -> str:
    """In our words where httpx would repeat the address, with the password in it."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the answer is {error.response.status_code} {error.response.reason_phrase}"
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | ValueError):
        return "it is no address that can be asked"
    return str(error) or type(error).__name__


async def _page(url: str, tls: TlsFiles | None) -> tuple[bytes, str | None]:
    """At most 2 MiB of it, and what it says in Date."""
    verify, _ = trust(url, tls)
    async with (
        httpx.AsyncClient(timeout=METRICS_LIMIT_S, verify=verify) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        page = bytearray()
        async for chunk in response.aiter_bytes():
            page += chunk
            if len(page) > METRICS_BYTES:
                break
        return bytes(page), response.headers.get("date")


def skew(date: str | None, whose: str) -> Finding:
    """This machine's clock against the Date of an answer over HTTP."""
    try:
        there = email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return CLOCK.unknown(NO_TIME)
    ahead = time.time() - there
    if abs(ahead) <= SKEW_S:
        return CLOCK.ok(f"agrees with the clock of {whose}")
    where = "behind" if ahead < 0 else "ahead of"
    return CLOCK.warning(f"is {abs(ahead):.0f} s {where} that of {whose}", fix="Let both follow a time server (NTP)")
