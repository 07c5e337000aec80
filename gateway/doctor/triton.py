"""Triton: whether it can be reached and obeys, what it offers, and whether its models fit their model.yaml."""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from gateway.adapters.tls import TlsError, explain
from gateway.adapters.triton_errors import load_refusal
from gateway.adapters.triton_memory import trust
from gateway.adapters.triton_probe import IndexEntry, TritonFacts, TritonProbe
from gateway.addresses import shown
from gateway.config import Settings
from gateway.config_files import triton_tls
from gateway.credentials import TlsFiles
from gateway.doctor.drops import examine_drop, input_in_words
from gateway.doctor.findings import Area, Finding
from gateway.errors import BackendUnavailable, ConfigError, SnapshotError
from gateway.models.catalog import ServedVariant
from gateway.models.repository import LogicalModel
from gateway.models.signature import fit
from gateway.terminal.threads import apart

AREA = Area("Triton")
MODELS = Area("Models")
CLOCK = Area("Clock")
NEEDED = {"model_repository": "models could not be loaded", "statistics": "times and memory would be missing"}
"""Extensions of Triton's protocol, and what it would mean if they were not there."""
METRICS_LIMIT_S = 3.0
METRICS_BYTES = 2 << 20
METRICS_MARK = b"nv_"
SKEW_S = 2.0
FLAGS = "Start Triton with --model-control-mode=explicit --strict-readiness=false"

MEMORY_FIX = (
    "Let Triton and the gateway share a /dev/shm that is large enough, as the same user or group: see "
    "docs/howto/shared-memory.md. Or set TRITON_SHARED_MEMORY=off"
)


async def check_triton(settings: Settings, models: list[LogicalModel]) -> list[Finding]:
    """Triton itself, then each variant of each model as it serves or as its files are."""
    probe = TritonProbe(settings.triton_grpc_url, tls=triton_tls(settings))
    try:
        facts = await probe.facts()
        findings = [*_server(settings, facts), await _memory(settings, probe)]
        for model in models:
            for name, triton_model in model.spec.variants.items():
                variant = ServedVariant(name, triton_model)
                findings.append(await _variant(probe, facts, settings.model_repository, model, variant))
    except BackendUnavailable as error:
        reason = error.message.removeprefix("Triton cannot be reached ")
        fix = probe.trouble.fix if probe.trouble else "Start Triton, or correct TRITON_GRPC_URL; the gateway waits"
        found = AREA.problem(f"cannot be reached {reason}", where=settings.triton_grpc_url, fix=fix)
        return [found, *await apart(lambda: _from_files(settings.model_repository, models))]
    finally:
        await probe.close()
    return findings


def _server(settings: Settings, facts: TritonFacts) -> Iterator[Finding]:
    yield AREA.ok(f"{facts.name} {facts.version} answers", where=settings.triton_grpc_url)
    for extension, meaning in NEEDED.items():
        if extension not in facts.extensions:
            yield AREA.problem(
                f"lacks the extension '{extension}': {meaning}", fix="Use NVIDIA's tritonserver, with this extension"
            )
    if facts.explicit:
        yield AREA.ok("loads models when it is asked to (--model-control-mode=explicit)")
    elif facts.explicit is None:
        yield AREA.unknown(f"does not say whether it loads models when it is asked to: {facts.control}", fix=FLAGS)
    else:
        yield AREA.problem("does not load models when it is asked to", fix=FLAGS)
    if facts.ready:
        yield AREA.ok("says that it is ready")
    else:
        yield AREA.warning(
            "is live, but says that it is not ready: with strict readiness one model that is loading or has failed "
            "does that",
            fix="Start Triton with --strict-readiness=false if anything asks it for its readiness",
        )


async def _memory(settings: Settings, probe: TritonProbe) -> Finding:
    """Whether input tensors can go through shared memory; all is served without it, only slower."""
    if settings.triton_shared_memory == "off":
        return AREA.ok("input tensors go in the requests (TRITON_SHARED_MEMORY=off)")
    problem = await probe.memory_problem(settings.shared_memory_max_bytes * settings.workers)
    if not problem:
        return AREA.ok("reads input tensors in shared memory of this machine")
    return AREA.warning(
        f"input tensors go in the requests, for shared memory cannot be used: {problem}", fix=MEMORY_FIX
    )


async def _variant(
    probe: TritonProbe, facts: TritonFacts, repository: Path, model: LogicalModel, variant: ServedVariant
) -> Finding:
    where = f"{model.spec.name}/{variant.name}"
    entries = [entry for entry in facts.index if entry.name == variant.triton_model]
    if not entries:
        return MODELS.problem(
            f"Triton does not see a model '{variant.triton_model}'",
            where=where,
            fix=f"Give Triton the folder {repository} as --model-repository, or correct `variants` in {model.path}",
        )
    if not any(entry.state == "READY" for entry in entries):
        return await _not_ready(entries, repository, model, variant, where, explicit=facts.explicit is not False)
    try:
        served = fit(await probe.describe(variant.triton_model), model, variant)
    except ConfigError as error:
        return MODELS.problem(error.message, where=where, fix=error.fix)
    except SnapshotError as error:
        return MODELS.problem(error.message, where=where, fix=error.fix)
    size = f" (input {input_in_words(served.plan)})" if served.plan else ""
    return MODELS.ok(f"serves version {served.version} and fits model.yaml{size}", where=where)


async def _not_ready(
    entries: list[IndexEntry],
    repository: Path,
    model: LogicalModel,
    variant: ServedVariant,
    where: str,
    *,
    explicit: bool,
) -> Finding:
    failed = [entry for entry in entries if entry.reason and entry.reason != "unloaded"]
    if failed:
        reason, fix = load_refusal(failed[0].reason)
        text = f"Triton could not load it: version {failed[0].version}: {reason}"
        return MODELS.problem(text, where=where, fix=fix)
    if not explicit:
        return MODELS.problem("Triton has not loaded it", where=where, fix=FLAGS)
    return await apart(lambda: _from_file(repository, model, variant, "not loaded; the gateway will do that"))


def _from_files(repository: Path, models: list[LogicalModel]) -> list[Finding]:
    return [
        _from_file(repository, model, ServedVariant(name, triton_model), "Triton was not asked")
        for model in models
        for name, triton_model in model.spec.variants.items()
    ]


def _from_file(repository: Path, model: LogicalModel, variant: ServedVariant, why: str) -> Finding:
    """What the files say of a variant that does not serve."""
    where = f"{model.spec.name}/{variant.name}"
    report = examine_drop(repository / variant.triton_model, model, variant.name)
    if report.problem is not None:
        place = f"{report.problem.where}: " if report.problem.where else ""
        return MODELS.problem(f"{place}{report.problem.message}", where=where, fix=report.problem.fix)
    if report.served is None:
        return MODELS.unknown(f"{why}; {report.open[0]}", where=where)
    return MODELS.ok(f"{why}; its files fit model.yaml", where=where)


async def check_metrics(settings: Settings) -> list[Finding]:
    """Triton's metrics page, and the clock by it where it says a time."""
    if settings.triton_metrics_url is None:
        return [
            AREA.ok("TRITON_METRICS_URL is not set: comparisons carry no memory of the models"),
            CLOCK.unknown("neither MQTT nor Triton's gRPC tells the time, so nothing was compared"),
        ]
    where = shown(settings.triton_metrics_url)
    try:
        page, date = await _page(settings.triton_metrics_url, triton_tls(settings))
    except ConfigError as error:
        return [AREA.failed(error)]
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        reason = _why_no_page(error)
        if (tls := triton_tls(settings)) and (found := _tls_error(error, tls, settings.triton_metrics_url)):
            return [AREA.warning(f"the metrics cannot be read: {found.message}", where=where, fix=found.fix)]
        return [
            AREA.warning(
                f"the metrics cannot be read: {reason}",
                where=where,
                fix="Start Triton with --allow-metrics=true, or correct TRITON_METRICS_URL",
            )
        ]
    if METRICS_MARK not in page:
        fix = "Correct TRITON_METRICS_URL; usually http://<host>:8002/metrics"
        return [AREA.warning("that page is not Triton's metrics", where=where, fix=fix)]
    return [AREA.ok("metrics can be read", where=where), _skew(date)]


def _tls_error(error: BaseException | None, tls: TlsFiles, url: str) -> TlsError | None:
    """What of TLS is behind an error of httpx, which keeps it two causes deep."""
    parts = urlsplit(url)
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return explain(error, tls, parts.hostname or "", parts.port or 443)
        error = error.__cause__ or error.__context__
    return None


def _why_no_page(error: Exception) -> str:
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


def _skew(date: str | None) -> Finding:
    try:
        there = email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return CLOCK.unknown("neither MQTT nor Triton tells the time, so nothing was compared")
    skew = time.time() - there
    if abs(skew) <= SKEW_S:
        return CLOCK.ok("agrees with the clock of Triton's machine")
    where = "behind" if skew < 0 else "ahead of"
    return CLOCK.warning(
        f"is {abs(skew):.0f} s {where} that of Triton's machine", fix="Let both follow a time server (NTP)"
    )
