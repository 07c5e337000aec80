"""TLS as a client: contexts from files, handshakes, and what the words of OpenSSL mean to the operator.

Only the configured authorities are trusted, the name of the other side is always checked, and nothing older than
TLS 1.2 is spoken. There is no way back to plain text: a handshake that fails ends the connection.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import socket
import ssl
import time
from collections.abc import Iterable
from pathlib import Path

from gateway.credentials import TRITON, TlsFiles, TlsNames
from gateway.errors import ConfigError, GatewayError

MAX_FILE_BYTES = 4 << 20
_EXPIRED, _NOT_YET_VALID = 10, 9
_WRONG_NAMES = {62, 64}  # host name, address
_STRANGER = {2, 18, 19, 20, 21}  # no issuer, or one that is not trusted
_PLAIN = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}
_TOO_OLD = {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE"}
_ALERT = "_ALERT_"
_NO_CERTIFICATE = {"CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE"}
_NOT_OUR_CERTIFICATE = {"PROTOCOL_VERSION", "INTERNAL_ERROR", "UNRECOGNIZED_NAME", "NO_APPLICATION_PROTOCOL"}


class TlsError(GatewayError):
    """TLS did not come about; the message names the file or setting that is at fault."""


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """A context as the files read now; raises ConfigError for one that cannot be used."""
    for problem in files.problems():
        raise problem
    try:
        context = ssl.create_default_context(cafile=files.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files.certificate is not None:
            context.load_cert_chain(files.certificate, files.key, password="")  # nosec B106
    except OSError as error:  # replaced between two looks
        where = files.names.certificate if files.certificate else files.names.ca
        raise ConfigError(f"the files for TLS cannot be read: {error}", where=where, fix="Wait, or see them") from error
    return context


def handshake(sock: socket.socket, files: TlsFiles, host: str, port: int) -> ssl.SSLSocket:
    """Wrap a connected socket; raises TlsError or ConfigError, and closes the socket then."""
    try:
        return tls_context(files).wrap_socket(sock, server_hostname=host)
    except ConfigError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise explain(error, files, host, port) from error


def diagnose(files: TlsFiles | None, host: str, port: int, limit_s: float) -> TlsError | None:
    """Why a gRPC channel, which keeps it to itself, finds no connection; None when TLS is not the reason. Blocks.

    Without `files`, for a plain channel, it asks whether the other side speaks TLS.
    """
    try:
        sock = socket.create_connection((host, port), timeout=limit_s)
    except (OSError, UnicodeError):
        return None
    with contextlib.closing(sock):
        return _answers_tls(sock, host, port) if files is None else _refused(sock, files, host, port, limit_s)


def explain(error: OSError, files: TlsFiles, host: str, port: int) -> TlsError:
    """What an error of the handshake, or of the first reads after it, means and how to mend it."""
    names, where = files.names, f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        message, fix = _distrust(error, files, host)
    else:
        reason = str(getattr(error, "reason", None) or "")
        if _ALERT in reason:
            message, fix = _refusal(reason.partition(_ALERT)[2], files)
        elif reason in _PLAIN:
            message, fix = _no_tls(names, where)
        elif reason in _TOO_OLD:
            message = f"{names.peer} speaks no TLS 1.2 or newer"
            fix = f"Allow TLS 1.2 or 1.3 at {names.peer}"
        elif isinstance(error, (ssl.SSLEOFError, ConnectionError)) or "UNEXPECTED_EOF" in reason:
            message = f"{names.peer} hung up in the TLS handshake"
            fix = f"Check that {where} is its TLS port; {_if_certificate_is_wanted(files)}"
        elif isinstance(error, TimeoutError):
            message = f"{names.peer} did not answer the TLS handshake"
            fix = f"Check that {where} is its TLS port, or set {names.switch}=false"
        else:
            message = f"TLS with {names.peer} failed ({reason or error})"
            fix = f"Check {names.switch}, the port, and the certificates"
    return TlsError(message, where=where, fix=fix)


def speaks_tls(names: TlsNames, where: str) -> TlsError:
    """The error for a plain connection to a port that wants TLS."""
    fix = f"Set {names.switch}=true, or name the port without TLS"
    return TlsError(f"{names.peer} wants TLS on this port, and {names.switch} is false", where=where, fix=fix)


def root_certificates(files: TlsFiles) -> bytes | None:
    """The trusted authorities in PEM form for gRPC, which would otherwise trust a list of its own, not the system's."""
    if files.ca is not None:
        return files.ca.read_bytes()
    system = ssl.get_default_verify_paths()
    folder = system.capath or "/etc/ssl/certs"
    for path in (system.cafile, f"{folder}/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"):
        if path and Path(path).is_file():
            return Path(path).read_bytes()
    return None


class FileWatch:
    """Tells which files have new content. A look is a `stat` of each; they are read when that has changed.

    New content counts when two looks in a row have found it, so that a file which is being written is left alone.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Takes the files as they read now for known; blocks."""
        self._paths = tuple(paths)
        self._stats = self._stat()
        self._known = self._digests()
        self._pending: dict[Path, str] | None = None
        self._refused: dict[Path, str] | None = None

    def changed(self) -> tuple[Path, ...]:
        """The files with new content that holds still; blocks for as long as it takes to read them."""
        stats = self._stat()
        if stats == self._stats and self._pending is None:
            return ()
        self._stats, before, now = stats, self._pending, self._digests()
        self._pending = None if now in (self._known, self._refused) else now
        if self._pending is None or self._pending != before:
            return ()
        return tuple(path for path in self._paths if now[path] != self._known[path])

    def accept(self) -> None:
        """What was found is known from now on."""
        self._known, self._pending, self._refused = self._pending or self._known, None, None

    def refuse(self) -> None:
        """What was found cannot be used: it is not told again."""
        self._refused, self._pending = self._pending, None

    def _stat(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                status = os.stat(path)  # noqa: PTH116 - through the links that Kubernetes exchanges
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return found

    def _digests(self) -> dict[Path, str]:
        return {path: _digest(path) for path in self._paths}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(MAX_FILE_BYTES)).hexdigest()
    except OSError:
        return ""


def _refused(sock: socket.socket, files: TlsFiles, host: str, port: int, limit_s: float) -> TlsError | None:
    """Shake hands as gRPC does, and wait for the first bytes: with TLS 1.3 a refusal comes after the handshake."""
    try:
        context = tls_context(files)
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(sock, server_hostname=host) as secured:
            secured.settimeout(limit_s)
            with contextlib.suppress(TimeoutError):
                return None if secured.recv(1) else _hung_up(files, f"{host}:{port}")
    except ConfigError as error:
        return TlsError(error.message, where=error.where, fix=error.fix)
    except OSError as error:
        return explain(error, files, host, port)
    return None


def _answers_tls(sock: socket.socket, host: str, port: int) -> TlsError | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: the question is only whether TLS is spoken at all
    try:
        context.wrap_socket(sock, server_hostname=host).close()
    except ssl.SSLError as error:
        if _ALERT not in str(error.reason):
            return None
    except OSError:
        return None
    return speaks_tls(TRITON, f"{host}:{port}")


def _distrust(error: ssl.SSLCertVerificationError, files: TlsFiles, host: str) -> tuple[str, str]:
    """Why we do not trust the other side's certificate, and the fix."""
    names, code = files.names, error.verify_code
    trusted = f"{names.ca} ('{files.ca}')" if files.ca else f"this system ({names.ca} is not set)"
    clock = f"check this machine's clock, which says {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    if code == _EXPIRED:
        if files.ca is not None and _all_expired(files.ca):
            return f"the certificates in {trusted} have expired", f"Put the new authority of {names.peer} there"
        return f"the certificate of {names.peer} has expired", f"Renew it there, or {clock}"
    if code == _NOT_YET_VALID:
        return f"the certificate of {names.peer} is not yet valid", f"Correct the clocks; {clock}"
    if code in _WRONG_NAMES:
        fix = f"Set {names.address} to a name that is in it, or have it made for '{host}'"
        return f"the certificate of {names.peer} is not for '{host}'", fix
    if code in _STRANGER:
        fix = f"Put the certificate of the authority that signed it into the file of {names.ca}"
        return f"the certificate of {names.peer} is not signed by an authority that {trusted} trusts", fix
    return f"the certificate of {names.peer} is not accepted ({error.verify_message})", "Have a proper one made"


def _refusal(alert: str, files: TlsFiles) -> tuple[str, str]:
    """What an alert of the other side means: nearly always that it does not like our certificate."""
    names, words = files.names, alert.lower().replace("_", " ")
    is_missing = alert in _NO_CERTIFICATE and files.certificate is None
    if not is_missing and (alert in _NOT_OUR_CERTIFICATE or files.certificate is None):
        return f"{names.peer} refuses TLS ({words})", f"See the log of {names.peer}; check the port and {names.address}"
    return _not_recognized(files, words)


def _not_recognized(files: TlsFiles, why: str) -> tuple[str, str]:
    """The other side wants a certificate of us, or another one than it was shown."""
    names = files.names
    if files.certificate is None:
        return f"{names.peer} wants a certificate of the gateway ({why})", f"Set {names.certificate} and {names.key}"
    message = f"{names.peer} refuses the certificate '{files.certificate}' of {names.certificate} ({why})"
    return message, f"Renew it, or have it signed by an authority that {names.peer} trusts"


def _no_tls(names: TlsNames, where: str) -> tuple[str, str]:
    fix = f"Name its TLS port, or set {names.switch}=false if plain text will do"
    return f"what listens at {where} speaks no TLS", fix


def _hung_up(files: TlsFiles, where: str) -> TlsError:
    """The error for a gRPC server that ends the connection in place of its first words, as it does without an alert
    when it does not like our certificate."""
    message, fix = _not_recognized(files, "it hung up after the TLS handshake")
    return TlsError(message, where=where, fix=fix)


def _if_certificate_is_wanted(files: TlsFiles) -> str:
    if files.certificate is None:
        return f"if it wants a certificate of the gateway, set {files.names.certificate} and {files.names.key}"
    return f"it may refuse the certificate '{files.certificate}' of {files.names.certificate}: see its log"


def _all_expired(path: Path) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
    return bool(ends) and max(ends) < time.time()
