"""The command line: `edge-gateway`. Errors of the user are one line with the fix, exit code 2, no traceback."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway import __version__
from gateway.config import Settings, load_settings, require_files, suspicious_variables
from gateway.errors import ConfigError, GatewayError
from gateway.terminal.overview import Overview

if TYPE_CHECKING:
    from gateway.adapters.mqtt import MqttBroker, MqttSettings

FILE = click.Path(exists=False, path_type=Path)
RECEIVE_MARGIN = 1000
"""Unacknowledged messages beyond those which the queue holds: a snapshot that waits for its model holds back the
acknowledgements of those behind it, and must not stop the broker from sending. Their payloads are not kept."""


_PORT = click.IntRange(1, 65535)
_REPOSITORY = click.option(
    "--repository",
    type=FILE,
    default=lambda: Path(os.environ.get("MODEL_REPOSITORY", "model_repository")),
    help="Folder of models for Triton.  [default: $MODEL_REPOSITORY or ./model_repository]",
)


@click.group(
    cls=Overview,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="edge-gateway")
@click.pass_context
def cli(context: click.Context) -> None:
    """Camera snapshots over MQTT, answered by two variants of a model on an NVIDIA Triton server."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@_REPOSITORY
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    envvar="DEMO_SECONDS",
    help="End after so many seconds; 0: never.  [default: $DEMO_SECONDS or never]",
)
@click.option("--rate", default=4.0, show_default=True, type=click.FloatRange(0.1, 100), help="Frames a second.")
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


@cli.command()
@click.option("--config", type=FILE, help="gateway.yaml to read; the environment wins.  [default: $GATEWAY_CONFIG]")
def serve(config: Path | None) -> None:
    """Run the gateway between a broker and a Triton.

    It waits for both, says so, and becomes ready when they are there (http://localhost:8080/ready). SIGTERM or Ctrl-C
    finishes what was accepted, then ends.
    """
    from gateway.logs import configure_logging

    settings = load_settings(config)
    configure_logging(settings.log_level, settings.log_format)
    _check_environment(settings)
    sys.exit(asyncio.run(_serve(settings)))


async def _serve(settings: Settings) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's core writes to stderr, past the log
    from gateway.adapters.mqtt import MqttBroker
    from gateway.adapters.triton import TritonServer
    from gateway.admin.status import status_publication
    from gateway.app import Gateway, stop_on_signals
    from gateway.metrics import Metrics

    metrics = Metrics()
    mqtt = mqtt_settings(
        settings,
        client_id=settings.client_id,
        subscriptions=tuple(pattern.subscription for pattern in settings.patterns),
        will=status_publication(settings, "offline", reason="connection lost"),
        session_expiry_s=settings.aio_mqtt_session_expiry,
    )
    broker = MqttBroker(mqtt, events=lambda name: metrics.broker_events.labels(name).inc())
    triton = TritonServer(settings.triton_grpc_url, metrics_url=settings.triton_metrics_url)
    gateway = Gateway(settings, broker, triton, metrics)
    stop_on_signals(gateway)
    return await gateway.run()


def mqtt_settings(settings: Settings, **more: Any) -> MqttSettings:
    """How to reach the broker; `more` says what for."""
    from gateway.adapters.mqtt import MqttSettings

    require_files(settings)
    return MqttSettings(
        host=settings.aio_broker_hostname,
        port=settings.aio_broker_tcp_port,
        protocol=settings.mqtt_protocol,
        keep_alive_s=settings.aio_mqtt_keep_alive,
        username=settings.aio_mqtt_username,
        password_file=settings.aio_mqtt_password_file,
        sat_file=settings.aio_sat_file,
        tls=settings.aio_mqtt_use_tls,
        ca_file=settings.aio_tls_ca_file,
        cert_file=settings.aio_tls_cert_file,
        key_file=settings.aio_tls_key_file,
        max_payload_bytes=settings.max_payload_bytes,
        inbox_max_bytes=settings.queue_max_bytes + settings.max_payload_bytes,
        receive_maximum=min(65_535, settings.queue_max_messages + settings.max_in_flight + RECEIVE_MARGIN),
        **more,
    )


@cli.command()
@_REPOSITORY
@click.option("--mqtt-port", type=_PORT, help="[default: a free one]")
@click.option("--grpc-port", type=_PORT, help="[default: a free one]")
@click.option("--http-port", type=_PORT, help="[default: a free one]")
@click.option("--metrics-port", type=_PORT, help="[default: a free one]")
def stack(
    repository: Path, mqtt_port: int | None, grpc_port: int | None, http_port: int | None, metrics_port: int | None
) -> None:
    """Run an embedded broker and Triton for `serve`.

    Says what to export so that the other commands find them.
    """
    _require_folder(repository)
    from gateway.local.stack import run_stack

    sys.exit(
        run_stack(repository, mqtt_port=mqtt_port, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port)
    )


@cli.command()
@_REPOSITORY
@click.option("--grpc-port", type=_PORT, help="[default: a free one]")
@click.option("--http-port", type=_PORT, help="[default: a free one]")
@click.option("--metrics-port", type=_PORT, help="[default: a free one]")
def triton(repository: Path, grpc_port: int | None, http_port: int | None, metrics_port: int | None) -> None:
    """Run the embedded Triton alone on a repository."""
    _require_folder(repository)
    from gateway.local.stack import run_triton

    sys.exit(run_triton(repository, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port))


@cli.command()
@click.argument("pictures", nargs=-1, required=True, type=FILE)
@click.option(
    "--topic", help="Topic to publish to.  [default: the first of MQTT_INPUT_TOPICS that fits, for this place]"
)
@click.option(
    "--as",
    "form",
    type=click.Choice(["json", "raw"]),
    default="json",
    show_default=True,
    help="JSON with the picture in base64, or the bytes of the file as they are.",
)
@click.option("--device", default="camera-01", show_default=True, help="Camera to appear as.")
@click.option("--model", help="model_name to ask for (JSON form).")
@click.option("--backend", help="backend_preference: onnx, torch or dual (JSON form).")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1), help="Rounds through all pictures.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Pictures a second at most.")
@click.option(
    "--timeout",
    default=15.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for the broker before giving up.",
)
def send(
    pictures: tuple[Path, ...],
    topic: str | None,
    form: str,
    device: str,
    model: str | None,
    backend: str | None,
    repeat: int,
    rate: float | None,
    timeout: float,
) -> None:
    """Publish PICTURES as a camera would.

    They are JPEG or PNG files, or folders of them. The answers come to `edge-gateway watch`.
    """
    from gateway.messages import Publication
    from gateway.terminal.send import default_topic, find_pictures, json_snapshot, unpublishable
    from gateway.terminal.send import send as publish_all

    settings = load_settings()
    target = default_topic(settings, form, device) if topic is None else topic
    if problem := unpublishable(target):
        raise ConfigError(f"'{target}' {problem}", where="--topic", fix="Name one topic with --topic")
    if form == "raw" and (model or backend):
        raise ConfigError("--model and --backend need the JSON form", where="send", fix="Leave --as raw out")
    asked = {"model_name": model, "backend_preference": backend}
    more = {name: value for name, value in asked.items() if value}

    def taken_now(path: Path) -> Publication:
        image = _read(path)
        return Publication(target, image if form == "raw" else json_snapshot(image, device, **more))

    found = [(path.name, partial(taken_now, path)) for path in find_pictures(pictures)]
    broker = _person(settings, "send", ())
    work = publish_all(broker, _address(settings), found, repeat=repeat, rate=rate, timeout_s=timeout)
    sys.exit(_run(work))


@cli.command()
@click.option("--count", type=click.IntRange(1), help="End after so many results and errors.")
@click.option("--json", "raw", is_flag=True, help="Print the messages themselves, one a line.")
def watch(count: int | None, raw: bool) -> None:
    """Show results, comparisons, errors and status live."""
    from gateway.terminal.watch import watch as show_all
    from gateway.terminal.watch import watched_topics

    settings = load_settings()
    broker = _person(settings, "watch", watched_topics(settings))
    sys.exit(_run(show_all(broker, _address(settings), count=count, raw=raw)))


def _require_folder(repository: Path) -> None:
    """Before anything is started."""
    if not repository.is_dir():
        fix = "Name the folder of the models with --repository or MODEL_REPOSITORY"
        raise ConfigError("no such folder", where=str(repository), fix=fix)


def _person(settings: Settings, what: str, subscriptions: tuple[str, ...]) -> MqttBroker:
    """A short session of a person, which the broker forgets at its end; only errors are logged."""
    from gateway.adapters.mqtt import MqttBroker
    from gateway.logs import configure_logging

    if settings.log_level == "debug":
        configure_logging("debug", "text")
    else:
        configure_logging("warning", "sentence")
    client_id = f"edge-gateway-{what}-{uuid.uuid4().hex[:8]}"
    return MqttBroker(mqtt_settings(settings, client_id=client_id, subscriptions=subscriptions, session_expiry_s=0))


def _address(settings: Settings) -> str:
    return f"{settings.aio_broker_hostname}:{settings.aio_broker_tcp_port}"


def _run(work: Coroutine[Any, Any, int]) -> int:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `edge-gateway watch | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more
        return 128 + signal.SIGPIPE


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), fix="Check its permissions") from error


def _check_environment(settings: Settings) -> None:
    import structlog

    log = structlog.get_logger(__name__)
    for warning in suspicious_variables(os.environ):
        log.warning(warning)
    if settings.model_config_path is None and not settings.model_repository.is_dir():
        raise ConfigError(
            "no such folder", where=f"MODEL_REPOSITORY={settings.model_repository}", fix="Name the folder of the models"
        )


def main() -> None:
    """Entry point: errors that a person can mend end in one line and exit code 2."""
    try:
        code = cli.main(prog_name="edge-gateway", standalone_mode=False)
    except click.ClickException as error:
        sys.exit(_complain(_usage_error(error)))
    except click.Abort:
        sys.exit(128 + signal.SIGINT)
    except GatewayError as error:
        sys.exit(_complain(str(error)))
    except BaseExceptionGroup as group:
        errors, defects = group.split(GatewayError)
        if errors is None or defects is not None:
            raise
        sys.exit(_complain(*map(str, _leaves(errors))))
    sys.exit(code)


def _usage_error(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "edge-gateway"
    return f"{text}{'' if text.endswith(('.', '?')) else '.'} See {path} --help"


def _complain(*lines: str) -> int:
    for line in lines:
        click.echo(f"edge-gateway: {line}", err=True)
    return 2


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
