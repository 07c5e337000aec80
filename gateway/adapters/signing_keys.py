"""Keys and certificates of model signatures: reading them from PEM files, and which of them may sign.

Needs the extra `signing`; what comes of it is imported when it is used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import ConfigError
from gateway.regular_file import open_regular

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from OpenSSL import crypto

MAX_PEM_BYTES = 1 << 20
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""What OpenSSF model signatures are made with."""
_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
# Of OpenSSL's X509_V_ERR_*: the authority is not among those that are trusted, or only seems to be.
_NOT_VALID_YET, _EXPIRED, _FOREIGN = 9, 10, frozenset({2, 7, 18, 19, 20, 21, 30})


def read_public_keys(path: Path) -> tuple[ec.EllipticCurvePublicKey, ...]:
    """The public keys of a PEM file, one or, while keys change, several; raises ConfigError."""
    from cryptography.hazmat.primitives import serialization

    fix = "Name a file with an EC public key with MODEL_PUBLIC_KEY_FILE or --public-key"
    content = _read_pem(path, fix)
    if b"PRIVATE KEY-----" in content:
        extract = f"openssl pkey -in {path} -pubout -out public.pem"
        raise ConfigError("is a private key", where=str(path), fix=f"Give the gateway only the public one: {extract}")
    if b"-----BEGIN CERTIFICATE-----" in content:
        raise ConfigError(
            "is a certificate", where=str(path), fix="Name it with MODEL_CERTIFICATE_FILE or --certificate instead"
        )
    blocks = _PUBLIC_KEY.findall(content)
    if not blocks:
        raise ConfigError("has no public key in PEM", where=str(path), fix=fix)
    try:
        keys = [serialization.load_pem_public_key(block) for block in blocks]
    except Exception as error:  # different from version to version of the library, and none is worth a traceback
        raise ConfigError("is no readable public key in PEM", where=str(path), fix=fix) from error
    return tuple(_elliptic(key, str(path)) for key in keys)


def read_certificates(path: Path, fix: str) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM file, at least one; raises ConfigError."""
    from cryptography import x509

    content = _read_pem(path, fix)
    try:
        return read_wholly(x509.load_pem_x509_certificates(content))
    except Exception as error:
        raise ConfigError("is no readable certificate in PEM", where=str(path), fix=fix) from error


def read_wholly(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The same, with all that is otherwise parsed only when it is asked for; raises whatever the library does."""
    found = tuple(certificates)
    for each in found:
        _ = (each.subject, each.extensions, each.public_key(), each.not_valid_after_utc, each.not_valid_before_utc)
    return found


def read_authorities(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of the authorities that are trusted; raises ConfigError."""
    return read_certificates(
        path, "Name the PEM certificate of the authority with MODEL_CERTIFICATE_FILE or --certificate"
    )


def read_private_key(path: Path, password: Callable[[], str]) -> ec.EllipticCurvePrivateKey:
    """The private key of a PEM file; `password` is asked only for an encrypted one; raises ConfigError."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    fix = "Name a file with an EC private key with --private-key"
    content = _read_pem(path, fix)
    given = password().encode() if _is_encrypted(content) else None
    try:
        key = serialization.load_pem_private_key(content, given)
    except Exception as error:
        what = "the password is wrong, or the file is damaged" if given else "is no readable private key in PEM"
        raise ConfigError(what, where=str(path), fix=fix) from error
    _elliptic(key.public_key(), str(path))
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _is_encrypted(pem: bytes) -> bool:
    """In either of the two formats that OpenSSL writes."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def key_name(key: ec.EllipticCurvePublicKey) -> str:
    """The SHA-256 by which a signature names the key that it was made with."""
    from cryptography.hazmat.primitives import serialization

    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def subject_of(certificate: x509.Certificate) -> str:
    """Whom a certificate names, in one line that a terminal may show: it may be a stranger's."""
    name = certificate.subject.rfc4514_string()[:200] or "a certificate without a name"
    return name if name.isprintable() else ascii(name)


def check_may_sign(certificate: x509.Certificate, where: str, at: datetime) -> None:
    """Raise ConfigError unless the certificate is valid at that time and meant for signatures.

    The library takes the time from the certificate itself, so that none ever expires, and takes those of TLS servers
    too, of which a company's authority has issued many.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    _elliptic(certificate.public_key(), where)
    subject = subject_of(certificate)
    if at > certificate.not_valid_after_utc:
        when = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        fix = "Sign again with a certificate that is valid"
        raise ConfigError(f"the certificate of {subject} expired on {when}", where=where, fix=fix)
    if at < certificate.not_valid_before_utc:
        when = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        fix = "Check the clock of this machine, or sign with a certificate that is valid"
        raise ConfigError(f"the certificate of {subject} is not valid before {when}", where=where, fix=fix)
    usages = {type(each.value): each.value for each in certificate.extensions}
    usage, purposes = usages.get(x509.KeyUsage), usages.get(x509.ExtendedKeyUsage)
    signs = isinstance(usage, x509.KeyUsage) and usage.digital_signature
    code = not isinstance(purposes, x509.ExtendedKeyUsage) or ExtendedKeyUsageOID.CODE_SIGNING in purposes
    if not signs or not code:
        raise ConfigError(
            f"the certificate of {subject} is not meant for signing models",
            where=where,
            fix="Use one with keyUsage digitalSignature and, where it has an extendedKeyUsage, codeSigning",
        )


def check_chain(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], where: str, at: datetime
) -> None:
    """Raise ConfigError unless the authorities vouch for the first of `chain` then, if need be through the others."""
    from OpenSSL import crypto

    store = crypto.X509Store()
    store.set_time(at)
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    leaf, *between = (crypto.X509.from_cryptography(each) for each in chain)
    try:
        crypto.X509StoreContext(store, leaf, between).verify_certificate()
    except crypto.X509StoreContextError as error:
        raise _not_vouched_for(error, chain[0], where) from error


def _not_vouched_for(error: crypto.X509StoreContextError, leaf: x509.Certificate, where: str) -> ConfigError:
    number, text = error.errors[0], " ".join(str(error).split())[:200]
    subject = subject_of(error.certificate.to_cryptography())
    if number in (_EXPIRED, _NOT_VALID_YET):
        what = "has expired" if number == _EXPIRED else "is not valid yet"
        fix = "Renew the certificate of the authority, and check the clock of this machine"
        return ConfigError(f"the certificate of the authority {subject} {what}", where=where, fix=fix)
    if number in _FOREIGN:
        return ConfigError(
            f"the certificate of {subject_of(leaf)} is not of an authority of MODEL_CERTIFICATE_FILE",
            where=where,
            fix="Sign with a certificate of that authority, and give those in between with --chain",
        )
    fix = "Sign with a certificate of the authority of MODEL_CERTIFICATE_FILE"
    return ConfigError(f"the certificate of {subject} is refused: {text}", where=where, fix=fix)


def _elliptic(key: object, where: str) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        kind = f"curve {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else "another kind"
        fix = f"Use one on the curve {', '.join(CURVES.values())}: openssl ecparam -name prime256v1 -genkey -noout"
        raise ConfigError(f"the key is of {kind}; model signatures take EC keys", where=where, fix=fix)
    return key


def _read_pem(path: Path, fix: str) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_PEM_BYTES + 1) or b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", where=str(path), fix=fix) from error
    if len(content) > MAX_PEM_BYTES:
        raise ConfigError("is larger than 1 MiB, so no key and no certificate", where=str(path), fix=fix)
    return content
