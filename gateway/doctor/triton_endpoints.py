"""Several Tritons: each looked at as if it were the only one, and each finding with the endpoint that it is about."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from gateway.config import Settings
from gateway.doctor.findings import Finding, Level
from gateway.doctor.triton import AREA, AWAY, check_triton
from gateway.doctor.triton_metrics import MetricsPage, check_metrics
from gateway.models.repository import LogicalModel
from gateway.triton_endpoints import places_of

Page = asyncio.Future[MetricsPage | None]


def settings_of_each(settings: Settings) -> list[Settings]:
    """The settings as they would be of each Triton alone, with its share of the shared memory."""
    endpoints = settings.triton_endpoints
    return [
        settings.model_copy(
            update={
                "triton_grpc_url": endpoint,
                "triton_metrics_url": metrics_url,
                "shared_memory_max_bytes": settings.shared_memory_max_bytes // len(endpoints),
            }
        )
        for endpoint, metrics_url in zip(endpoints, settings.triton_metrics_urls, strict=True)
    ]


async def check_tritons(settings: Settings, models: Sequence[LogicalModel], pages: Sequence[Page]) -> list[Finding]:
    """Every Triton with the models that it may have; one that is away is no more than a warning while others answer."""
    alone = settings_of_each(settings)
    checks = (
        check_triton(one, [_placed(model, one, settings) for model in models], page)
        for one, page in zip(alone, pages, strict=True)
    )
    found = await asyncio.gather(*checks)
    if len(alone) == 1:
        return found[0]
    away = [any(_is_away(each) for each in findings) for findings in found]
    every: list[Finding] = []
    for one, findings, is_away in zip(alone, found, away, strict=True):
        if is_away and not all(away):
            findings = [replace(each, level=Level.WARNING) for each in findings if _is_away(each)]
        every += (_named(each, one) for each in findings)
    return every


async def check_metrics_of(one: Settings, page: Page, settings: Settings) -> list[Finding]:
    """The metrics page of one Triton; each finding names it where there are several."""
    found = await check_metrics(one, page)
    return found if len(settings.triton_endpoints) == 1 else [_named(each, one) for each in found]


def _is_away(finding: Finding) -> bool:
    return finding.area == AREA.name and finding.what.startswith(AWAY)


def _named(finding: Finding, one: Settings) -> Finding:
    endpoint, where = one.triton_grpc_url, finding.where
    if endpoint == where:
        return finding
    return replace(finding, where=f"{endpoint}: {where}" if where else endpoint)


def _placed(model: LogicalModel, one: Settings, settings: Settings) -> LogicalModel:
    """The model with those of its variants that may be at this Triton."""
    rules, endpoints = settings.placement_rules, settings.triton_endpoints
    variants = {
        name: triton_model
        for name, triton_model in model.spec.variants.items()
        if one.triton_grpc_url in places_of(rules, endpoints, triton_model)
    }
    return replace(model, spec=model.spec.model_copy(update={"variants": variants}))
