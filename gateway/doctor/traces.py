"""The receiver of traces: whether it takes them, found out with a message that holds none."""

from __future__ import annotations

import asyncio
import importlib.util

import httpx

from gateway.addresses import shown
from gateway.config import Settings
from gateway.doctor.findings import Area, Finding
from gateway.doctor.triton_metrics import skew, why_no_answer

AREA = Area("Traces")
PATH = "/v1/traces"
LIMIT_S = 3.0
PROTOBUF = "application/x-protobuf"
INSTALL = "In the gateway's environment: pip install 'triton-edge-gateway[tracing]'"


async def check_traces(settings: Settings) -> list[Finding]:
    """Nothing where they are off; an export without spans, which is what nobody sees, where they are on."""
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        return []
    where = shown(endpoint)
    if importlib.util.find_spec("opentelemetry") is None:
        text = "OpenTelemetry is not installed, which OTEL_EXPORTER_OTLP_ENDPOINT needs"
        return [AREA.problem(text, where=where, fix=INSTALL)]
    fix = "Check OTEL_EXPORTER_OTLP_ENDPOINT and the receiver; usually http://<host>:4318, OTLP over HTTP"
    try:
        answer = await _head_of_answer(endpoint.rstrip("/") + PATH)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return [AREA.warning(f"the receiver cannot be reached: {why_no_answer(error)}", where=where, fix=fix)]
    if answer.status_code in (401, 403):
        text = f"the receiver asks who we are ({answer.status_code}); the gateway sends OTEL_EXPORTER_OTLP_HEADERS, "
        return [AREA.unknown(f"{text}which were not sent from here", where=where)]
    if not answer.is_success:
        text = f"the receiver takes no traces at {PATH}: the answer is {answer.status_code}"
        return [AREA.warning(text, where=where, fix=fix)]
    share = f"{settings.otel_traces_sampler_arg:.0%} of the snapshots"
    found = [AREA.ok(f"the receiver takes traces; {share} will have one", where=where)]
    date = answer.headers.get("date")
    return [*found, skew(date, "the receiver of traces")] if date else found


async def _head_of_answer(url: str) -> httpx.Response:
    """Without its body, which may have no end."""
    async with (
        asyncio.timeout(LIMIT_S),
        httpx.AsyncClient(timeout=LIMIT_S) as client,  # of each read; the limit above holds for all of it
        client.stream("POST", url, content=b"", headers={"Content-Type": PROTOBUF}) as answer,
    ):
        return answer
