"""`edge-gateway serve`: the gateway itself."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.broker import mqtt_settings
from gateway.commands.options import CONFIG, examples
from gateway.config import Settings
from gateway.config_files import certificate_files, triton_tls
from gateway.config_reading import load_settings
from gateway.config_warnings import settings_warnings

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.errors import ConfigError
    from gateway.models.repository import LogicalModel
    from gateway.ports import Broker
    from gateway.rollout.lease import Lease
    from gateway.rollout.verify import Checks


@click.command(epilog=examples("edge-gateway serve", "edge-gateway serve --config gateway.yaml"))
@CONFIG
def serve(config: Path | None) -> None:
    """Run the gateway between a broker and a Triton.

    It waits for both, says so, and becomes ready when they are there (http://localhost:8080/ready). SIGTERM or Ctrl-C
    finishes what was accepted, then ends. SIGHUP reads the configuration again.
    """
    from gateway.logs import configure_logging

    settings = load_settings(config)
    configure_logging(settings.log_level, settings.log_format)
    _check_environment(settings)
    sys.exit(asyncio.run(_serve(settings, config)))


async def _serve(settings: Settings, config_file: Path | None) -> int:
    from gateway.app import stop_on_signals
    from gateway.thread_pool import use_fixed_threads

    use_fixed_threads()
    gateway = compose(settings, config_file)
    stop_on_signals(gateway)
    code = await gateway.run()
    if gateway.stuck:  # Python would wait for its thread; everything else has ended in order
        sys.stderr.flush()
        os._exit(code)
    return code


def compose(settings: Settings, config_file: Path | None = None) -> Gateway:
    """The gateway and all that it is made of; nothing is connected yet. Raises ConfigError."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core writes to stderr, past the log
    from gateway.adapters.mqtt import MqttBroker
    from gateway.adapters.triton import TritonServer
    from gateway.admin.model_commands import command_topics
    from gateway.admin.status import status_publication
    from gateway.app import Gateway
    from gateway.certificate_dates import Expiry
    from gateway.layouts.custom import load_custom_layouts
    from gateway.metrics import Metrics

    if settings.layouts_dir is not None:
        load_custom_layouts(settings.layouts_dir)  # before any model.yaml is read, which may name one of them
    metrics = Metrics()
    for setting, path in certificate_files(settings):
        metrics.certificate_expiry_timestamp_seconds.labels(setting).set_function(Expiry(path))
    mqtt = mqtt_settings(
        settings,
        client_id=settings.client_id,
        subscriptions=tuple(pattern.subscription for pattern in settings.patterns),
        optional_subscriptions=command_topics(settings),
        will=status_publication(settings, "offline", reason="connection lost"),
        session_expiry_s=settings.aio_mqtt_session_expiry,
    )
    broker: Broker = MqttBroker(mqtt, events=lambda name: metrics.broker_events.labels(name).inc())
    if settings.spool_dir is not None:  # SQLite's memory is for those who want it
        from gateway.adapters.spooling import with_spool

        broker = with_spool(broker, settings, settings.spool_dir, metrics)
    triton = TritonServer(settings.triton_grpc_url, metrics_url=settings.triton_metrics_url, tls=triton_tls(settings))
    return Gateway(settings, broker, triton, metrics, config_file, _checks(settings), _lease(settings))


def _checks(settings: Settings) -> Checks:
    """What a drop has to pass, as far as its files tell; raises ConfigError for a key that is no key."""
    from gateway.doctor.drops import examine_drop
    from gateway.rollout.verify import Checks

    def examine(folder: Path, model: LogicalModel, variant: str, version: int) -> ConfigError | None:
        return examine_drop(folder, model, variant, version).problem

    if settings.model_public_key_file is None and settings.model_certificate_file is None:
        return Checks(examine)
    from gateway.adapters.signatures import SignatureVerifier, check_configured

    check_configured(settings.model_public_key_file, settings.model_certificate_file)
    verifier = SignatureVerifier(settings.model_public_key_file, settings.model_certificate_file)
    return Checks(examine, verifier.verify)


def _lease(settings: Settings) -> Lease | None:
    """What tells which gateway runs the rollouts; raises ConfigError outside of the cluster that it is wanted from."""
    if settings.rollout_lease == "file":
        return None
    from gateway.adapters.kubernetes_lease import KubernetesLease
    from gateway.rollout.lease import new_identity

    return KubernetesLease.in_cluster(new_identity(settings.gateway_id), name=settings.rollout_lease_name)


def _check_environment(settings: Settings) -> None:
    import structlog

    log = structlog.get_logger(__name__)
    for warning in settings_warnings(settings, os.environ):
        log.warning(warning)
