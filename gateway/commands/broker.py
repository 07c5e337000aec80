"""How the commands reach the broker: the gateway's own session, and the short visit of a person."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from gateway.config import Settings
from gateway.config_files import require_files

if TYPE_CHECKING:
    from gateway.adapters.mqtt import MqttBroker, MqttSettings

RECEIVE_MARGIN = 1000
"""Unacknowledged messages beyond those which the queue holds: a snapshot that waits for its model holds back the
acknowledgements of those behind it, and must not stop the broker from sending. Their payloads are not kept."""


def mqtt_settings(settings: Settings, **more: Any) -> MqttSettings:
    """How to reach the broker; `more` says what for, and wins."""
    from gateway.adapters.mqtt import MqttSettings

    require_files(settings)
    held = settings.queue_max_messages + settings.max_in_flight
    given: dict[str, Any] = {
        "host": settings.aio_broker_hostname,
        "port": settings.aio_broker_tcp_port,
        "protocol": settings.mqtt_protocol,
        "keep_alive_s": settings.aio_mqtt_keep_alive,
        "username": settings.aio_mqtt_username,
        "password_file": settings.aio_mqtt_password_file,
        "sat_file": settings.aio_sat_file,
        "tls": settings.aio_mqtt_use_tls,
        "ca_file": settings.aio_tls_ca_file,
        "cert_file": settings.aio_tls_cert_file,
        "key_file": settings.aio_tls_key_file,
        "max_payload_bytes": settings.max_payload_bytes,
        "inbox_max_bytes": settings.queue_max_bytes + settings.max_payload_bytes,
        "receive_maximum": min(65_535, settings.workers * held + RECEIVE_MARGIN),
    }
    return MqttSettings(**given | more)


def visitor(settings: Settings, what: str, subscriptions: tuple[str, ...]) -> MqttBroker:
    """A short session of a person, which the broker forgets at its end; only errors are logged."""
    from gateway.adapters.mqtt import MqttBroker
    from gateway.logs import configure_logging

    if settings.log_level == "debug":
        configure_logging("debug", "text")
    else:
        configure_logging("warning", "sentence")
    return MqttBroker(
        mqtt_settings(settings, client_id=visitor_id(what), subscriptions=subscriptions, session_expiry_s=0)
    )


def visitor_id(what: str) -> str:
    """A client id that no gateway and no other visitor has."""
    return f"edge-gateway-{what}-{uuid.uuid4().hex[:8]}"


def address(settings: Settings) -> str:
    """host:port of the broker."""
    return f"{settings.aio_broker_hostname}:{settings.aio_broker_tcp_port}"


def run_visit(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end, or until Ctrl-C or the end of the pipe that is written to; returns the exit code."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `edge-gateway watch | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more
        return 128 + signal.SIGPIPE
