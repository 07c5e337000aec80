"""`edge-gateway doctor`: what is wrong with an installation."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.broker import mqtt_settings, visitor_id
from gateway.commands.options import CONFIG, JSON, examples
from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.doctor.findings import Check, Finding
    from gateway.doctor.triton_metrics import MetricsPage
    from gateway.models.repository import LogicalModel

LIMIT_S = 12.0
"""Of each examination; all of them run side by side."""


@click.command(
    epilog=examples("edge-gateway doctor", "edge-gateway doctor --config gateway.yaml --json | jq .findings")
)
@CONFIG
@JSON
def doctor(config: Path | None, as_json: bool) -> None:
    """Say what is wrong with this installation and how to mend it.

    Looks at the settings, the broker, Triton, the models, the clocks, this machine and the receiver of traces, with
    sessions of its own: a running gateway does not notice. Publishes one small message below each topic of answers.
    Exit code 0 without problems (warnings are none), 1 with some, 2 when the settings cannot be used.
    """
    from gateway.doctor.findings import as_json as to_json
    from gateway.doctor.findings import as_text
    from gateway.logs import configure_logging, use_colour
    from gateway.terminal.progress import busy

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core writes to stderr what the findings say
    configure_logging("error", "sentence")
    settings = load_settings(config)
    with busy("Looking at this installation", quiet=as_json):
        findings = asyncio.run(_examine(settings, config))
    result = to_json(findings)
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        click.echo(as_text(findings, colour=use_colour(sys.stdout)))
    sys.exit(0 if result["ok"] else 1)


async def _examine(settings: Settings, config: Path | None) -> list[Finding]:
    from gateway.doctor.findings import Check, examine
    from gateway.doctor.machine import CLOCK, CONFIGURATION, MACHINE, MODELS, check_configuration, check_machine
    from gateway.doctor.traces import AREA as TRACES
    from gateway.doctor.traces import check_traces
    from gateway.doctor.triton import AREA as TRITON
    from gateway.doctor.triton_endpoints import check_metrics_of, settings_of_each
    from gateway.terminal.threads import apart

    pages: dict[str, asyncio.Future[MetricsPage | None]] = {
        endpoint: asyncio.get_running_loop().create_future() for endpoint in settings.triton_endpoints
    }
    checks = [
        Check(CONFIGURATION, apart(lambda: check_configuration(settings, config)), LIMIT_S),
        _broker(settings),
        Check(TRITON, _triton_and_models(settings, list(pages.values())), LIMIT_S),
        *(
            Check(TRITON, check_metrics_of(one, pages[one.triton_grpc_url], settings), LIMIT_S)
            for one in settings_of_each(settings)
        ),
        Check(TRACES, check_traces(settings), LIMIT_S),
        Check(MACHINE, apart(lambda: check_machine(settings)), LIMIT_S),
    ]
    order = [area.name for area in (CONFIGURATION, checks[1].area, TRITON, MODELS, CLOCK, MACHINE, TRACES)]
    found = await examine(checks, _still_looking if sys.stderr.isatty() else None)
    return sorted(found, key=lambda finding: order.index(finding.area))


def _still_looking(areas: list[str]) -> None:
    click.echo(f"Still looking at: {', '.join(areas)}", err=True)


def _broker(settings: Settings) -> Check:
    from gateway.doctor.broker import AREA, check_broker, probed_topics
    from gateway.doctor.findings import Check

    async def work() -> list[Finding]:
        client_id = visitor_id("doctor")
        mqtt = mqtt_settings(
            settings,
            client_id=client_id,
            subscriptions=probed_topics(settings, client_id),
            session_expiry_s=0,
            receive_maximum=1,  # of the snapshots that come meanwhile the broker sends one at most
        )
        return await check_broker(settings, replace(mqtt, max_payload_bytes=1024))

    return Check(AREA, work(), LIMIT_S)


async def _triton_and_models(settings: Settings, pages: Sequence[asyncio.Future[MetricsPage | None]]) -> list[Finding]:
    from gateway.doctor.machine import check_models
    from gateway.doctor.triton_endpoints import check_tritons
    from gateway.terminal.threads import apart

    models, errors = await apart(lambda: _read_models(settings))
    return [*check_models(settings, models, errors), *await check_tritons(settings, models, pages)]


def _read_models(settings: Settings) -> tuple[list[LogicalModel], list[ConfigError]]:
    from gateway.commands.models import read_models

    try:
        return read_models(settings)
    except ConfigError as error:  # of the repository itself
        return [], [error]
