"""`edge-gateway demo`, `stack` and `triton`: what runs on this machine without a site around it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.commands.options import FILE, JSON, PORT, REPOSITORY, FiniteRange, examples, require_folder
from gateway.errors import ConfigError


@click.command(epilog=examples("edge-gateway demo", "edge-gateway demo --seconds 30 --rate 10 --output /tmp/pictures"))
@REPOSITORY
@click.option(
    "--seconds",
    type=FiniteRange(0),
    envvar="DEMO_SECONDS",
    help="End after so many seconds; 0: never.  [default: $DEMO_SECONDS or never]",
)
@click.option("--rate", default=4.0, show_default=True, type=FiniteRange(0.1, 100), help="Frames a second.")
@click.option("--output", type=FILE, default=Path("demo-output"), show_default=True, help="Folder for the pictures.")
def demo(repository: Path, seconds: float | None, rate: float, output: Path) -> None:
    """Run broker, Triton, gateway and two cameras on this machine.

    Results appear as they come, pictures with boxes in the output folder. Ctrl-C ends all of it with a summary.
    """
    if not list(repository.glob("*/model.yaml")):
        raise ConfigError(
            "no folder there has a model.yaml, so there is nothing to show",
            where=str(repository),
            fix="Name the folder of the models with --repository or MODEL_REPOSITORY",
        )
    from gateway.local.demo import run_demo

    sys.exit(run_demo(repository, seconds=seconds or None, rate=rate, output=output))


@click.command(
    epilog=examples(
        "edge-gateway stack",
        "edge-gateway stack --mqtt-port 1883 --grpc-port 8001",
        "edge-gateway stack --json | jq -r .triton.grpc",
    )
)
@REPOSITORY
@click.option("--mqtt-port", type=PORT, help="[default: a free one]")
@click.option("--grpc-port", type=PORT, help="[default: a free one]")
@click.option("--http-port", type=PORT, help="[default: a free one]")
@click.option("--metrics-port", type=PORT, help="[default: a free one]")
@JSON
def stack(
    repository: Path,
    mqtt_port: int | None,
    grpc_port: int | None,
    http_port: int | None,
    metrics_port: int | None,
    as_json: bool,
) -> None:
    """Run an embedded broker and Triton for `serve`.

    Says what to export so that the other commands find them; with --json that and all addresses in one line, as soon
    as everything is up.
    """
    require_folder(repository)
    from gateway.local.stack import run_stack

    sys.exit(
        run_stack(
            repository,
            mqtt_port=mqtt_port,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            as_json=as_json,
        )
    )


@click.command(epilog=examples("edge-gateway triton --repository model_repository --grpc-port 8001"))
@REPOSITORY
@click.option("--grpc-port", type=PORT, help="[default: a free one]")
@click.option("--http-port", type=PORT, help="[default: a free one]")
@click.option("--metrics-port", type=PORT, help="[default: a free one]")
@JSON
def triton(
    repository: Path, grpc_port: int | None, http_port: int | None, metrics_port: int | None, as_json: bool
) -> None:
    """Run the embedded Triton alone on a repository."""
    require_folder(repository)
    from gateway.local.stack import run_triton

    sys.exit(
        run_triton(repository, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, as_json=as_json)
    )
