"""`edge-gateway serve`: the gateway itself."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.affinity import Cores, cores_for
from gateway.commands.broker import mqtt_settings
from gateway.commands.options import CONFIG, FILE, examples
from gateway.config import Settings
from gateway.config_files import certificate_files, triton_tls
from gateway.config_reading import load_settings
from gateway.config_warnings import settings_warnings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.adapters.mqtt import MqttBroker
    from gateway.adapters.triton import TritonServer
    from gateway.adapters.triton_pool import TritonPool
    from gateway.app import Gateway, Part
    from gateway.metrics import Metrics
    from gateway.models.repository import LogicalModel
    from gateway.ports import Broker, SpanSink
    from gateway.rollout.lease import Lease
    from gateway.rollout.verify import Checks


@click.command(epilog=examples("edge-gateway serve", "edge-gateway serve --config gateway.yaml --workers 4"))
@CONFIG
@click.option("--workers", type=click.IntRange(1, 64), help="Processes that share the work.  [default: $WORKERS or 1]")
@click.option("--as-worker", nargs=3, type=int, hidden=True, help="Index, channel and parent of one of WORKERS.")
@click.option("--http-socket", type=FILE, hidden=True, help="Where the front asks this worker.")
def serve(
    config: Path | None, workers: int | None, as_worker: tuple[int, int, int] | None, http_socket: Path | None
) -> None:
    """Run the gateway between a broker and a Triton.

    It waits for both, says so, and becomes ready when they are there (http://localhost:8080/ready). SIGTERM or Ctrl-C
    finishes what was accepted, then ends. SIGHUP reads the configuration again.
    """
    from gateway.without_rich import import_without_rich

    import_without_rich("structlog")
    from gateway.logs import configure_logging

    if workers is not None:
        os.environ["WORKERS"] = str(workers)  # wins over gateway.yaml, at every reload and in the workers too
    settings = load_settings(config)
    configure_logging(settings.log_level, settings.log_format)
    if as_worker is not None or settings.workers == 1:  # the front asks no Triton
        import_without_rich("httpx")
    if as_worker is not None and http_socket is not None:
        from gateway.commands.workers import run_worker

        sys.exit(run_worker(settings, config, as_worker, http_socket))
    _check_environment(settings)
    if settings.workers > 1:
        from gateway.commands.workers import run_front

        sys.exit(run_front(settings, config))
    cores = cores_for(settings)
    cores.pin_loop()
    sys.exit(asyncio.run(_serve(settings, config, cores)))


async def _serve(settings: Settings, config_file: Path | None, cores: Cores) -> int:
    from gateway.allocator import set_start_aside
    from gateway.app import stop_on_signals
    from gateway.service_manager import ServiceManager
    from gateway.thread_pool import use_fixed_threads

    use_fixed_threads()
    gateway = compose(settings, config_file, cores=cores)
    stop_on_signals(gateway)
    set_start_aside()
    return finish(await gateway.run(ServiceManager.of(os.environ)), gateway.stuck)


def finish(code: int, stuck: bool) -> int:
    """The exit code; where a thread never ends, for which Python would wait, the process ends here."""
    from gateway.logs import finish_logging

    if stuck:
        finish_logging()
        sys.stderr.flush()
        os._exit(code)
    return code


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What one of several workers has in place of a session of its own."""

    broker: Broker
    part: Part
    lease: Lease | None
    """None for the lead, which contends for the lease as one process does."""


def compose(
    settings: Settings,
    config_file: Path | None = None,
    metrics: Metrics | None = None,
    worker: WorkerParts | None = None,
    cores: Cores | None = None,
) -> Gateway:
    """The gateway and all that it is made of; nothing is connected yet. Raises ConfigError."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core writes to stderr, past the log
    from gateway.app import Gateway
    from gateway.flow.quiet_libtiff import silence_libtiff
    from gateway.layouts.custom import load_custom_layouts
    from gateway.metrics import Metrics

    if settings.layouts_dir is not None:
        load_custom_layouts(settings.layouts_dir)  # before any model.yaml is read, which may name one of them
    silence_libtiff()
    metrics = metrics or Metrics()
    if worker is None:
        metrics.workers.set(1)
        broker, _ = session(settings, metrics)
    else:
        broker = worker.broker
    triton = _triton(settings, metrics)
    checks, part = _checks(settings), worker.part if worker else None
    lease = (worker and worker.lease) or _lease(settings)
    spans = _spans(settings, metrics, one_of_several=worker is not None)
    return Gateway(settings, broker, triton, metrics, config_file, checks, lease, part, cores, spans)


def session(settings: Settings, metrics: Metrics) -> tuple[Broker, MqttBroker]:
    """The gateway's session with the broker, with its spool; and the part of it that speaks MQTT."""
    from gateway.adapters.mqtt import MqttBroker
    from gateway.admin.status import status_publication
    from gateway.certificate_dates import Expiry

    for setting, path in certificate_files(settings):
        metrics.certificate_expiry_timestamp_seconds.labels(setting).set_function(Expiry(path))
    mqtt = mqtt_settings(
        settings,
        client_id=settings.client_id,
        subscriptions=tuple(pattern.subscription for pattern in settings.patterns),
        optional_subscriptions=settings.command_topics,
        will=status_publication(settings, "offline", reason="connection lost"),
        session_expiry_s=settings.aio_mqtt_session_expiry,
    )
    own = MqttBroker(mqtt, events=lambda name: metrics.broker_events.labels(name).inc())
    if settings.spool_dir is not None:  # SQLite's memory is for those who want it
        from gateway.adapters.spooling import with_spool

        return with_spool(own, settings, settings.spool_dir, metrics), own
    return own, own


def _triton(settings: Settings, metrics: Metrics) -> TritonServer | TritonPool:
    """Triton, or several as one, with their share of the metrics."""
    from gateway.adapters.triton import TransferEvents, TritonServer

    transfers = TransferEvents(
        sent=lambda transport: metrics.tensor_transfers.labels(transport).inc(),
        fell_back=lambda reason: metrics.shared_memory_fallbacks.labels(reason).inc(),
    )
    endpoints = settings.triton_endpoints
    room = settings.shared_memory_max_bytes if settings.triton_shared_memory == "auto" else 0
    tritons = {
        endpoint: TritonServer(
            endpoint,
            metrics_url=metrics_url,
            tls=triton_tls(settings),
            shared_memory_bytes=room // len(endpoints),
            transfers=transfers,
        )
        for endpoint, metrics_url in zip(endpoints, settings.triton_metrics_urls, strict=True)
    }
    each = tuple(tritons.values())
    metrics.shared_memory_bytes.set_function(lambda: sum(triton.shared_memory_bytes for triton in each))
    for state in ("free", "leased", "quarantined"):
        slots = partial(lambda state: sum(triton.shared_memory_slots.get(state, 0) for triton in each), state)
        metrics.shared_memory_slots.labels(state).set_function(slots)
    if len(each) == 1:
        return each[0]
    from gateway.adapters.triton_pool import TritonPool
    from gateway.adapters.triton_pool_member import Limits

    limits = Limits.within(min(settings.infer_timeout_ms, settings.snapshot_deadline_ms) / 1000)
    return TritonPool(tritons, metrics, settings.placement_rules, limits)


def _spans(settings: Settings, metrics: Metrics, *, one_of_several: bool) -> SpanSink | None:
    """Where traces go; raises ConfigError without the extra that they need."""
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    from gateway import __version__

    try:
        from gateway.adapters.otlp import OtlpSpans
    except ImportError as error:
        raise ConfigError(
            f"traces need OpenTelemetry, which is not installed ({error})",
            where="OTEL_EXPORTER_OTLP_ENDPOINT",
            fix="In the gateway's environment: pip install 'triton-edge-gateway[tracing]'",
        ) from error
    attributes = {
        "service.name": "edge-gateway",
        "service.version": __version__,
        "service.instance.id": f"{settings.gateway_id}-{os.getpid()}" if one_of_several else settings.gateway_id,
        "edge_gateway.gateway_id": settings.gateway_id,
        "edge_gateway.facility": settings.facility,
        "edge_gateway.business_unit": settings.business_unit,
    }
    count = metrics.trace_spans.labels
    return OtlpSpans(
        settings.otel_exporter_otlp_endpoint, attributes, lambda outcome, number: count(outcome).inc(number)
    )


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
        log.warning("A setting may not do what is meant", reason=warning)
