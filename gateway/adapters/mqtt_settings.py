"""All that an MQTT session needs to know; the composition fills it from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.credentials import BROKER, TlsFiles, read_secret
from gateway.errors import ConfigError
from gateway.messages import Publication


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """Files are read anew at each connect, and watched while connected: renewed ones count without a restart."""

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
    max_waiting_bytes: int = 16 * 1024 * 1024
    connect_timeout_s: float = 5.0
    answer_timeout_s: float = 5.0  # for CONNACK, SUBACK and AUTH, each
    look_at_files_s: float = 2.0  # between two looks at the files of certificates, passwords and tokens

    def __post_init__(self) -> None:
        if not self.client_id:
            raise ConfigError("The MQTT client id is empty", fix="Set AIO_MQTT_CLIENT_ID or GATEWAY_ID")

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def tls_files(self) -> TlsFiles | None:
        """The files for TLS; None for plain text."""
        return TlsFiles(BROKER, self.ca_file, self.cert_file, self.key_file) if self.tls else None

    @property
    def credential_files(self) -> tuple[Path, ...]:
        """All files that may be renewed while the session is up."""
        tls = self.tls_files
        return (*(tls.paths if tls else ()), *(path for path in (self.password_file, self.sat_file) if path))

    def check_renewal(self) -> None:
        """Raise ConfigError for the first of the files that cannot take the place of the ones before; blocks."""
        for problem in self.tls_files.renewal_problems() if self.tls_files else ():
            raise problem
        if self.password_file is not None:
            read_secret(self.password_file, "AIO_MQTT_PASSWORD_FILE")
        if self.sat_file is not None:
            read_secret(self.sat_file, "AIO_SAT_FILE")
