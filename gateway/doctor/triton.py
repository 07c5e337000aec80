"""Triton: whether it can be reached and obeys, what it offers, and whether its models fit their model.yaml."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.adapters.triton_errors import load_refusal
from gateway.adapters.triton_probe import IndexEntry, TritonFacts, TritonProbe
from gateway.config import Settings
from gateway.config_files import triton_tls
from gateway.doctor.drops import examine_drop, input_in_words
from gateway.doctor.findings import Area, Finding, Level
from gateway.doctor.providers import where_it_runs
from gateway.doctor.triton_metrics import SKEW_S, MetricsPage
from gateway.errors import BackendUnavailable, ConfigError, SnapshotError
from gateway.models.catalog import ServedVariant
from gateway.models.repository import LogicalModel
from gateway.models.signature import fit
from gateway.terminal.threads import apart

AREA = Area("Triton")
AWAY = "cannot be reached"
MODELS = Area("Models")
CLOCK = Area("Clock")
NEEDED = {"model_repository": "models could not be loaded", "statistics": "times and memory would be missing"}
"""Extensions of Triton's protocol, and what it would mean if they were not there."""
FLAGS = "Start Triton with --model-control-mode=explicit --strict-readiness=false"

NEEDS_ALLOWANCE = (2, 69)
"""The release from which on Triton takes no shared memory of clients unless it is told to."""
ALLOW_MEMORY = "Start Triton with --allow-client-shm=true, which it needs from 2.69 on"
MEMORY_FIX = (
    "Let Triton and the gateway share a /dev/shm that is large enough, as the same user or group: see "
    "docs/howto/shared-memory.md. Or set TRITON_SHARED_MEMORY=off"
)


@dataclass(frozen=True, slots=True)
class _Look:
    """With what the variants are looked at."""

    settings: Settings
    probe: TritonProbe
    facts: TritonFacts
    page: MetricsPage | None


async def check_triton(
    settings: Settings, models: list[LogicalModel], page: Awaitable[MetricsPage | None]
) -> list[Finding]:
    """Triton itself, then each variant of each model as it serves or as its files are."""
    probe = TritonProbe(settings.triton_grpc_url, tls=triton_tls(settings))
    try:
        facts = await probe.facts()
        findings = [*_server(settings, facts), await _memory(settings, probe, facts)]
        look = _Look(settings, probe, facts, await page)
        for model in models:
            for name, triton_model in model.spec.variants.items():
                findings += await _variant(look, model, ServedVariant(name, triton_model))
    except BackendUnavailable as error:
        reason = error.message.removeprefix("Triton cannot be reached ")
        fix = probe.trouble.fix if probe.trouble else "Start Triton, or correct TRITON_GRPC_URL; the gateway waits"
        found = AREA.problem(f"{AWAY} {reason}", where=settings.triton_grpc_url, fix=fix)
        return [found, *await apart(lambda: _from_files(settings.model_repository, models))]
    finally:
        await probe.close()
    # One clock is ahead of the other, whichever models show it.
    clocks = [each for each in findings if each.area == CLOCK.name]
    return [each for each in findings if each.area != CLOCK.name] + clocks[:1]


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


async def _memory(settings: Settings, probe: TritonProbe, facts: TritonFacts) -> Finding:
    """Whether input tensors can go through shared memory; all is served without it, only slower."""
    if settings.triton_shared_memory == "off":
        return AREA.ok("input tensors go in the requests (TRITON_SHARED_MEMORY=off)")
    problem = await probe.memory_problem(settings.shared_memory_max_bytes * settings.workers)
    if not problem:
        return AREA.ok("reads input tensors in shared memory of this machine: it has taken a segment of ours")
    flag = f"{ALLOW_MEMORY}. " if _release(facts.version) >= NEEDS_ALLOWANCE else ""
    return AREA.warning(
        f"input tensors go in the requests, for shared memory cannot be used: {problem}", fix=f"{flag}{MEMORY_FIX}"
    )


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of Triton's version; () for one that has none."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", version)
    return (int(found[1]), int(found[2])) if found else ()


async def _variant(look: _Look, model: LogicalModel, variant: ServedVariant) -> list[Finding]:
    where = f"{model.spec.name}/{variant.name}"
    repository = look.settings.model_repository
    entries = [entry for entry in look.facts.index if entry.name == variant.triton_model]
    if not entries:
        return [
            MODELS.problem(
                f"Triton does not see a model '{variant.triton_model}'",
                where=where,
                fix=f"Give Triton the folder {repository} as --model-repository, or correct `variants` in {model.path}",
            )
        ]
    if not any(entry.state == "READY" for entry in entries):
        explicit = look.facts.explicit is not False
        return [await _not_ready(entries, repository, model, variant, where, explicit=explicit)]
    try:
        served = fit(await look.probe.describe(variant.triton_model), model, variant)
        size = f" (input {input_in_words(served.plan)})" if served.plan else ""
        fits = MODELS.ok(f"serves version {served.version} and fits model.yaml{size}", where=where)
        return await _running(look, model, variant, fits)
    except (ConfigError, SnapshotError) as error:
        return [MODELS.problem(error.message, where=where, fix=error.fix)]


async def _running(look: _Look, model: LogicalModel, variant: ServedVariant, fits: Finding) -> list[Finding]:
    """With `fits` what it runs on: on the same line where that is as it should be."""
    placement = await look.probe.placement(variant.triton_model)
    wanted = model.spec.inference.gpu_enabled
    gpu_wanted = look.settings.gpu_enabled if wanted is None else wanted
    runs = where_it_runs(variant.triton_model, placement, look.page, fits.where, gpu_wanted=gpu_wanted)
    took = "" if placement.compute_ms is None else f", {placement.compute_ms:.1f} ms a request on average"
    if runs.level is Level.OK:
        findings = [replace(fits, what=f"{fits.what}; {placement.backend}, {runs.what}{took}")]
    else:
        findings = [replace(fits, what=f"{fits.what}; {placement.backend}{took}"), runs]
    ahead = (placement.last_inference_at or 0.0) - time.time()
    if ahead > SKEW_S:  # it can only be in the past by a clock that is right
        text = f"is {ahead:.0f} s or more behind that of Triton's machine, by the time of the model's last request"
        findings.append(CLOCK.warning(text, where=fits.where, fix="Let both follow a time server (NTP)"))
    return findings


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
