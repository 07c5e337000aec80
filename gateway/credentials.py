"""The files of certificates, keys, passwords and tokens: whether they can be used, and what is wrong if not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from gateway.certificate_dates import ends_at
from gateway.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsNames:
    """What the settings of one TLS connection are called, for its errors."""

    peer: str
    switch: str
    address: str
    ca: str
    certificate: str
    key: str


BROKER = TlsNames(
    "the broker",
    "AIO_MQTT_USE_TLS",
    "AIO_BROKER_HOSTNAME",
    "AIO_TLS_CA_FILE",
    "AIO_TLS_CERT_FILE",
    "AIO_TLS_KEY_FILE",
)
TRITON = TlsNames(
    "Triton",
    "TRITON_USE_TLS",
    "TRITON_GRPC_URL",
    "TRITON_TLS_CA_FILE",
    "TRITON_TLS_CERT_FILE",
    "TRITON_TLS_KEY_FILE",
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom we trust and who we are in one TLS connection.

    Without `ca` the authorities are trusted that the system trusts; `certificate` and `key` are for mutual TLS and
    come together.
    """

    names: TlsNames
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those that are given."""
        return tuple(path for path in (self.ca, self.certificate, self.key) if path is not None)

    def problems(self) -> list[ConfigError]:
        """An error for each file that is not there, cannot be read, or is not what it should be."""
        given = {self.names.ca: self.ca, self.names.certificate: self.certificate, self.names.key: self.key}
        found = {name: said for name, path in given.items() if (said := unreadable(path) or _empty(path))}
        if self.ca and self.names.ca not in found and not _has_certificate(self.ca):
            found[self.names.ca] = _no_certificate(self.ca)
        if self.certificate and self.key and found.keys().isdisjoint((self.names.certificate, self.names.key)):
            found |= self._unusable_pair(self.certificate, self.key)
        return [ConfigError(said[0], where=name, fix=said[1]) for name, said in found.items()]

    def renewal_problems(self) -> list[ConfigError]:
        """As `problems`, and our own certificate that has ended: no reason to give up a connection with the one before.

        At the start it is none, since a clock without a battery may still be wrong then.
        """
        found = self.problems()
        if not found and self.certificate is not None and ends_at(self.certificate) < time.time():
            message, fix = f"'{self.certificate}' holds a certificate that has ended", "Put the renewed one there"
            found.append(ConfigError(message, where=self.names.certificate, fix=fix))
        return found

    def _unusable_pair(self, certificate: Path, key: Path) -> dict[str, tuple[str, str]]:
        """The one of the two files that is at fault, why, and the fix; {} when they can be used."""
        import ssl  # most commands need none

        try:
            # The password is never asked for: nobody sits before the gateway.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")  # nosec B106
        except OSError as error:
            if not _has_certificate(certificate):
                return {self.names.certificate: _no_certificate(certificate)}
            reason = str(getattr(error, "reason", ""))
            if reason == "KEY_VALUES_MISMATCH":
                fix = "Name the key with which the certificate was made"
                return {self.names.key: (f"'{key}' does not belong to the certificate '{certificate}'", fix)}
            if reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
                why = reason.lower().replace("_", " ")
                said = (f"'{certificate}' cannot be used: {why}", "Have a new certificate made")
                return {self.names.certificate: said}
            return {self.names.key: _no_key(key)}
        return {}


def unreadable(path: Path | None) -> tuple[str, str] | None:
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


def read_secret(path: Path, setting: str) -> str:
    """The password or token in the file, without the line's end; raises ConfigError with the setting and the file."""
    fix = f"Write the {'password' if 'PASSWORD' in setting else 'token'} into it, as one line of text in UTF-8"
    if said := unreadable(path):
        raise ConfigError(said[0], where=setting, fix=said[1])
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}' is no text", where=setting, fix=fix) from None
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}", where=setting, fix=fix) from error
    if not secret.strip():
        raise ConfigError(f"'{path}' is empty", where=setting, fix=fix)
    return secret


def _empty(path: Path | None) -> tuple[str, str] | None:
    try:
        if path is None or path.stat().st_size:
            return None
    except OSError as error:
        return f"'{path}' cannot be read: {error.strerror}", "Correct the path or mount the file"
    return f"'{path}' is empty", "Write it anew; a disk that was full leaves such files"


def _has_certificate(path: Path) -> bool:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:  # what ssl raises is one too
        return False
    return True


def _no_certificate(path: Path) -> tuple[str, str]:
    return f"'{path}' holds no certificate in PEM form", "Name a file with -----BEGIN CERTIFICATE-----"


def _no_key(path: Path) -> tuple[str, str]:
    try:
        is_encrypted = b"ENCRYPTED" in path.read_bytes()
    except OSError:
        is_encrypted = False
    if is_encrypted:
        return f"'{path}' is a key with a password", f"Take it off: openssl pkey -in {path} -out <file>"
    return f"'{path}' holds no private key in PEM form that can be read", "Name the PEM file of the key"
