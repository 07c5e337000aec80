"""The files that settings name: whether they are there, can be read and hold what they should."""

from __future__ import annotations

from pathlib import Path

from gateway.config import Settings
from gateway.credentials import BROKER, TRITON, TlsFiles, read_secret
from gateway.errors import ConfigError

SECRETS = ("aio_sat_file", "aio_mqtt_password_file", "api_token_file", "api_read_token_file")


def broker_tls(settings: Settings) -> TlsFiles | None:
    """The files for TLS to the broker; None where it is not wanted."""
    if not settings.aio_mqtt_use_tls:
        return None
    return TlsFiles(BROKER, settings.aio_tls_ca_file, settings.aio_tls_cert_file, settings.aio_tls_key_file)


def triton_tls(settings: Settings) -> TlsFiles | None:
    """The files for TLS to Triton; None where it is not wanted."""
    if not settings.triton_use_tls:
        return None
    return TlsFiles(TRITON, settings.triton_tls_ca_file, settings.triton_tls_cert_file, settings.triton_tls_key_file)


def certificate_files(settings: Settings) -> list[tuple[str, Path]]:
    """The settings whose files hold certificates that end some day, and the files."""
    given = [tls for tls in (broker_tls(settings), triton_tls(settings)) if tls is not None]
    pairs = [pair for tls in given for pair in ((tls.names.ca, tls.ca), (tls.names.certificate, tls.certificate))]
    return [(name, path) for name, path in pairs if path is not None]


def require_files(settings: Settings) -> None:
    """Raise ConfigError for the first of `missing_files`, rather than at each try to connect."""
    for error in missing_files(settings):
        raise error


def missing_files(settings: Settings) -> list[ConfigError]:
    """An error for each file of a setting that is not there, cannot be read, or is no certificate, key or token."""
    found = [error for tls in (broker_tls(settings), triton_tls(settings)) if tls for error in tls.problems()]
    for name in SECRETS:
        path = getattr(settings, name)
        if path is None:
            continue
        try:
            read_secret(path, name.upper())
        except ConfigError as error:
            found.append(error)
    return found
