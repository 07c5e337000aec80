"""The files that settings name: whether they are there, can be read and hold what they should."""

from __future__ import annotations

from pathlib import Path

from gateway.config import Settings
from gateway.errors import ConfigError

FILES = (
    "aio_tls_ca_file",
    "aio_tls_cert_file",
    "aio_tls_key_file",
    "aio_sat_file",
    "aio_mqtt_password_file",
    "api_token_file",
)


def require_files(settings: Settings) -> None:
    """Raise ConfigError for the first of `missing_files`, rather than at each try to connect."""
    for error in missing_files(settings):
        raise error


def missing_files(settings: Settings) -> list[ConfigError]:
    """An error for each file of a setting that is not there, cannot be read, or is no certificate, key or token."""
    found = {name: said for name in FILES if (said := _unreadable(getattr(settings, name)))}
    if "api_token_file" not in found and settings.api_token_file and (said := _no_token(settings.api_token_file)):
        found["api_token_file"] = said
    if "aio_tls_ca_file" not in found and settings.aio_tls_ca_file and not _has_certificate(settings.aio_tls_ca_file):
        found["aio_tls_ca_file"] = _no_certificate(settings.aio_tls_ca_file)
    pair = ("aio_tls_cert_file", "aio_tls_key_file")
    if found.keys().isdisjoint(pair) and settings.aio_tls_cert_file and settings.aio_tls_key_file:
        found |= _unusable_pair(settings.aio_tls_cert_file, settings.aio_tls_key_file)
    return [ConfigError(said[0], where=name.upper(), fix=said[1]) for name, said in found.items()]


def _unreadable(path: Path | None) -> tuple[str, str] | None:
    """Why a file cannot be read, and the fix; a secret may well belong to another user."""
    if path is None:
        return None
    try:
        if not path.is_file():
            return f"there is no file '{path}'", "Correct the path or mount the file"
        path.open("rb").close()
    except OSError as error:
        return f"'{path}' cannot be read: {error.strerror}", "Let the user read it that runs the gateway"
    return None


def _no_token(path: Path) -> tuple[str, str] | None:
    """Why a readable file holds no token, and the fix: with such a one nobody would be let in."""
    fix = "Write the token into it, as one line of text in UTF-8"
    try:
        return None if path.read_text(encoding="utf-8").strip() else (f"'{path}' is empty", fix)
    except UnicodeDecodeError:
        return f"'{path}' is no text", fix
    except OSError as error:
        return f"'{path}' cannot be read: {error.strerror}", fix


def _has_certificate(path: Path) -> bool:
    import ssl  # most commands need none

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:  # what ssl raises is one too
        return False
    return True


def _no_certificate(path: Path) -> tuple[str, str]:
    return f"'{path}' holds no certificate in PEM form", "Name a file with -----BEGIN CERTIFICATE-----"


def _unusable_pair(certificate: Path, key: Path) -> dict[str, tuple[str, str]]:
    """The one of the two files that is at fault, why, and the fix; {} when they can be used."""
    import ssl

    try:
        # The password is never asked for: nobody sits before the gateway.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except OSError as error:
        if not _has_certificate(certificate):
            return {"aio_tls_cert_file": _no_certificate(certificate)}
        reason = str(getattr(error, "reason", ""))
        if reason == "KEY_VALUES_MISMATCH":
            fix = "Name the key with which the certificate was made"
            return {"aio_tls_key_file": (f"'{key}' does not belong to the certificate '{certificate}'", fix)}
        if reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
            why = reason.lower().replace("_", " ")
            return {"aio_tls_cert_file": (f"'{certificate}' cannot be used: {why}", "Have a new certificate made")}
        fix = "Name the PEM file of the key, without a password"
        return {"aio_tls_key_file": (f"'{key}' holds no private key in PEM form that can be read", fix)}
    return {}
