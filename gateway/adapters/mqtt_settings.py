"""All that an MQTT session needs to know; the composition fills it from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.errors import ConfigError
from gateway.messages import Publication


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """Files are read anew at each connect, so that renewed passwords, tokens and certificates count."""

    client_id: str
    host: str = "localhost"
    port: int = 1883
    protocol: Literal["5", "3.1.1"] = "5"
    keep_alive_s: int = 30
    session_expiry_s: int = 86_400  # 0: the broker forgets the session at its end, for short visits

    username: str | None = None
    password_file: Path | None = None
    sat_file: Path | None = None  # service-account token of Azure IoT Operations; MQTT 5 only
    tls: bool = False
    ca_file: Path | None = None  # without it, the certificates that the system trusts
    cert_file: Path | None = None
    key_file: Path | None = None

    subscriptions: tuple[str, ...] = ()
    optional_subscriptions: tuple[str, ...] = ()  # a broker that refuses them is none the worse
    will: Publication | None = None

    max_payload_bytes: int = 8 * 1024 * 1024
    receive_maximum: int = 128  # unacknowledged messages that the broker may send; MQTT 5 only
    inbox_max_messages: int = 1024
    inbox_max_bytes: int = 64 * 1024 * 1024
    publish_window: int = 100  # publications in flight, or fewer where the broker's Receive Maximum says so
    max_waiting_publications: int = 10_000
    connect_timeout_s: float = 5.0
    answer_timeout_s: float = 10.0  # for CONNACK and SUBACK, each

    def __post_init__(self) -> None:
        if not self.client_id:
            raise ConfigError("The MQTT client id is empty", fix="Set AIO_MQTT_CLIENT_ID or GATEWAY_ID")

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"
