"""OpenSSF model signatures over the files of a drop: a Sigstore bundle with the SHA-256 of every file.

The library verifies who signed; what was signed is compared with digests that the caller has computed, so that what
is verified is what is loaded. Needs the extra `signing`; what comes of it is imported when it is used.
"""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.adapters.signing_keys import (
    check_chain,
    check_may_sign,
    key_name,
    read_authorities,
    read_certificates,
    read_private_key,
    read_public_keys,
    read_wholly,
    subject_of,
)
from gateway.errors import ConfigError
from gateway.regular_file import open_regular

if TYPE_CHECKING:
    from cryptography import x509
    from model_signing.manifest import Manifest

MAX_SIGNATURE_BYTES = 8 << 20
"""Four hundred bytes a file are enough, so this is for twice as many as a drop may have."""
MAX_CERTIFICATES = 16
"""In one signature."""
MAX_NAMED = 3
"""Files that a refusal names, of each kind."""
_LIBRARIES = ("model_signing", "cryptography", "OpenSSL")
_SIGN = "sign this version with `edge-gateway models sign`"
_SIGN_AGAIN = "Copy the signature again, or " + _SIGN


class _Key(msgspec.Struct):
    hint: str = ""


class _Certificate(msgspec.Struct, rename="camel"):
    raw_bytes: str


class _Chain(msgspec.Struct):
    certificates: list[_Certificate]


class _Material(msgspec.Struct, rename="camel"):
    public_key: _Key | None = None
    x509_certificate_chain: _Chain | None = None
    certificate: _Certificate | None = None


class _Signature(msgspec.Struct):
    sig: str


class _Envelope(msgspec.Struct, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[_Signature]


class _Bundle(msgspec.Struct, rename="camel"):
    """What is needed of a Sigstore bundle; all else is skipped without memory being spent on it."""

    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


@dataclass(frozen=True, slots=True)
class SignatureVerifier:
    """Accepts drops signed by one key of a public key file, or by a certificate of one authority; give one of both.

    The files are read at each use, so a key that is replaced counts at once. Blocks, so not for the event loop.
    """

    public_key: Path | None = None
    """PEM file of one or more EC public keys: MODEL_PUBLIC_KEY_FILE."""
    certificate: Path | None = None
    """PEM file of one or more authorities: MODEL_CERTIFICATE_FILE."""

    def verify(
        self,
        signature: Path | bytes,
        digests: Mapping[str, str],
        bytecode: Sequence[str] = (),
        at: float | None = None,
    ) -> str:
        """Who signed exactly these files, in words; raises ConfigError for all that is not so.

        `digests` has the SHA-256 in hex of each file of the drop, by its path in the repository. `bytecode` has the
        folders of compiled Python, which no signature is over, and which Triton would run all the same. Certificates
        have to be valid now, or at the time `at` in seconds since 1970, when the version went into service.
        """
        _require_installed()
        where = str(signature) if isinstance(signature, Path) else "model.sig"
        bundle = _parsed(_read(signature) if isinstance(signature, Path) else signature, where)
        if self.public_key is not None:
            signer, verifier = self._of_key(self.public_key, bundle, where)
        elif self.certificate is not None:
            when = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
            signer, verifier = self._of_certificate(self.certificate, bundle, where, when)
        else:
            raise ValueError("a verifier needs a public key or a certificate")
        _compare(_signed_digests(verifier, bundle, where), digests, where)
        if bytecode:
            fix = "Remove it, and run Triton with PYTHONDONTWRITEBYTECODE=1, so that it writes none"
            raise ConfigError(f"compiled Python, which cannot be signed: {_some(bytecode)}", where=where, fix=fix)
        return signer

    def _of_key(self, path: Path, bundle: _Bundle, where: str) -> tuple[str, Any]:
        from cryptography.hazmat.primitives import serialization
        from model_signing._signing.sign_ec_key import Verifier

        keys = {key_name(key): key for key in read_public_keys(path)}
        if bundle.verification_material.public_key is None:
            raise ConfigError(
                f"is {_kind(bundle)}, and MODEL_PUBLIC_KEY_FILE asks for one made with a key",
                where=where,
                fix="Sign with the private key alone, or configure MODEL_CERTIFICATE_FILE instead",
            )
        named = bundle.verification_material.public_key.hint
        if named not in keys:
            theirs = f"key {named[:16]!a}" if named else "a key that it does not name"
            ours = ", ".join(name[:16] for name in keys)
            fix = "Sign this version with the private key that belongs to MODEL_PUBLIC_KEY_FILE"
            raise ConfigError(f"is signed by {theirs}, not by {ours} of {path}", where=where, fix=fix)
        pem = keys[named].public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return f"key {named[:16]}", Verifier(_held(pem))

    def _of_certificate(self, path: Path, bundle: _Bundle, where: str, at: datetime) -> tuple[str, Any]:
        from model_signing._signing.sign_certificate import Verifier

        authorities = read_authorities(path)
        if bundle.verification_material.x509_certificate_chain is None:
            raise ConfigError(
                f"is {_kind(bundle)}, and MODEL_CERTIFICATE_FILE asks for one made with a certificate",
                where=where,
                fix="Sign with --certificate too, or configure MODEL_PUBLIC_KEY_FILE instead",
            )
        chain = _certificates(bundle.verification_material.x509_certificate_chain, where)
        check_may_sign(chain[0], where, at)
        check_chain(chain, authorities, where, at)
        return subject_of(chain[0]), Verifier([_held(_pem(authorities))])


def check_configured(public_key: Path | None, certificate: Path | None) -> None:
    """Raise ConfigError when drops could not be verified with these settings; takes a third of a second at most."""
    if public_key is None and certificate is None:
        return
    _require_installed()
    try:
        if public_key is not None:
            read_public_keys(public_key)
        elif certificate is not None:
            read_authorities(certificate)
    except ConfigError as error:
        name = "MODEL_PUBLIC_KEY_FILE" if public_key is not None else "MODEL_CERTIFICATE_FILE"
        raise ConfigError(error.message, where=f"{name}={error.where}", fix=error.fix) from error


def sign_files(
    digests: Mapping[str, str],
    name: str,
    private_key: Path,
    password: Callable[[], str],
    certificate: Path | None = None,
    chain: Sequence[Path] = (),
) -> bytes:
    """The content of a signature file over these files; `password` is asked only for an encrypted key.

    `name` is that of the model, for people. `certificate` is the signer's own, `chain` those up to the authority.
    Raises ConfigError, also for a certificate that the gateway would refuse.
    """
    _require_installed()
    from model_signing._signing.signing import Payload

    signature = _signer(private_key, password, certificate, chain).sign(Payload(_manifest(digests, name)))
    content: str = signature.bundle.to_json()
    return content.encode()


def _signer(private_key: Path, password: Callable[[], str], certificate: Path | None, chain: Sequence[Path]) -> Any:
    from cryptography.hazmat.primitives import serialization
    from model_signing._signing import sign_certificate, sign_ec_key

    own, between = [], []
    if certificate is not None:
        own = list(read_certificates(certificate, "Name the signer's certificate in PEM with --certificate"))
        check_may_sign(own[0], str(certificate), datetime.now(UTC))
        between = [each for path in chain for each in read_certificates(path, "Name certificates in PEM with --chain")]
    elif chain:
        fix = "Name the signer's own certificate with --certificate"
        raise ConfigError("--chain without --certificate", fix=fix)
    key = read_private_key(private_key, password)
    # Decrypted here: the library cannot do it beside a certificate. It stays in memory.
    pem = _held(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    if not own:
        return sign_ec_key.Signer(pem)
    if own[0].public_key() != key.public_key():
        fix = "Name the certificate that was issued for this key"
        raise ConfigError(f"does not belong to the key {private_key}", where=str(certificate), fix=fix)
    # The library takes no empty chain, and an own certificate in it does no harm.
    return sign_certificate.Signer(pem, _held(_pem(own[:1])), [_held(_pem([*own[1:], *between] or own))])


def _manifest(digests: Mapping[str, str], name: str) -> Manifest:
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest

    method = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    items = [
        manifest.FileManifestItem(path=Path(path), digest=Digest("sha256", bytes.fromhex(digest)))
        for path, digest in digests.items()
    ]
    return manifest.Manifest(name, items, manifest.SerializationType.from_args(method))


def _require_installed() -> None:
    """Raise ConfigError without the extra `signing`, or with versions that do not fit."""
    fix = "In the gateway's environment: pip install 'triton-edge-gateway[signing]'"
    if any(importlib.util.find_spec(name) is None for name in _LIBRARIES):
        raise ConfigError("model-signing is not installed", fix=fix)
    try:
        import model_signing._signing.sign_certificate  # noqa: F401 - it imports all that is used here
    except ImportError as error:
        raise ConfigError(f"model-signing cannot be used: {error}", fix=fix) from error


# --- what lies on disk ----------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_SIGNATURE_BYTES + 1) or b""
    except FileNotFoundError as error:
        raise ConfigError("the drop is not signed: no such file", where=str(path), fix=_SIGN.capitalize()) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the signature cannot be read: {reason}", where=str(path), fix="Check the file and its permissions"
        ) from error
    return content


def _parsed(content: bytes, where: str) -> _Bundle:
    """Raises ConfigError; nothing is trusted yet."""
    if len(content) > MAX_SIGNATURE_BYTES:
        what = f"is larger than {MAX_SIGNATURE_BYTES >> 20} MiB, so no signature of a model"
        raise ConfigError(what, where=where, fix=_SIGN_AGAIN)
    try:
        bundle = msgspec.json.decode(content, type=_Bundle)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        what = f"is no signature of a model, or a damaged one: {' '.join(str(error).split())[:200]}"
        raise ConfigError(what, where=where, fix=_SIGN_AGAIN) from error
    if len(bundle.dsse_envelope.signatures) != 1:
        count = len(bundle.dsse_envelope.signatures)
        raise ConfigError(f"has {count} signatures in place of one", where=where, fix=_SIGN_AGAIN)
    return bundle


def _kind(bundle: _Bundle) -> str:
    material = bundle.verification_material
    if material.public_key is not None:
        return "a signature made with a key"
    if material.x509_certificate_chain is not None:
        return "a signature made with a certificate"
    return "a signature made with an identity of Sigstore" if material.certificate else "a signature without a key"


def _certificates(chain: _Chain, where: str) -> tuple[x509.Certificate, ...]:
    from cryptography import x509

    if not 1 <= len(chain.certificates) <= MAX_CERTIFICATES:
        count = len(chain.certificates)
        raise ConfigError(f"has {count} certificates in place of 1 to {MAX_CERTIFICATES}", where=where, fix=_SIGN_AGAIN)
    try:
        ders = [base64.b64decode(each.raw_bytes, validate=True) for each in chain.certificates]
        return read_wholly(x509.load_der_x509_certificate(der) for der in ders)
    except Exception as error:
        raise ConfigError("has a certificate that cannot be read", where=where, fix=_SIGN_AGAIN) from error


# --- what the library verifies --------------------------------------------------------------------------


class _Held(bytes):
    """The content of a file, where the library would open one itself, however large it has become meanwhile."""

    def read_bytes(self) -> bytes:
        """As of a path."""
        return self


def _held(content: bytes) -> Any:
    return _Held(content)


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _signed_digests(verifier: Any, bundle: _Bundle, where: str) -> dict[str, str]:
    """The files that the signature is over; raises ConfigError unless it is the verifier's."""
    from cryptography.exceptions import InvalidSignature
    from model_signing._signing.sign_sigstore_pb import Signature
    from sigstore_models.bundle.v1 import Bundle

    try:
        manifest = verifier.verify(Signature(Bundle.from_dict(_as_library(bundle))))
        found = [(each.identifier, each.digest) for each in manifest.resource_descriptors()]
    except InvalidSignature as error:
        raise ConfigError(
            "the signature does not fit: the file was altered, or another key has signed",
            where=where,
            fix=_SIGN_AGAIN,
        ) from error
    except Exception as error:  # a refusal, whatever the library stumbles over
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"the signature cannot be verified: {reason}", where=where, fix=_SIGN_AGAIN) from error
    if any(digest.algorithm != "sha256" for _, digest in found):
        raise ConfigError(
            "is not over the SHA-256 of whole files",
            where=where,
            fix="Sign with file serialization and SHA-256, as `edge-gateway models sign` does",
        )
    return {path: digest.digest_hex for path, digest in found}


def _as_library(bundle: _Bundle) -> dict[str, Any]:
    material: dict[str, Any] = {"tlogEntries": []}
    if bundle.verification_material.public_key is not None:
        material["publicKey"] = {"hint": bundle.verification_material.public_key.hint}
    elif (chain := bundle.verification_material.x509_certificate_chain) is not None:
        material["x509CertificateChain"] = {
            "certificates": [{"rawBytes": each.raw_bytes} for each in chain.certificates]
        }
    envelope = bundle.dsse_envelope
    return {
        "mediaType": bundle.media_type,
        "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": envelope.payload,
            "payloadType": envelope.payload_type,
            "signatures": [{"sig": each.sig} for each in envelope.signatures],
        },
    }


def _compare(signed: Mapping[str, str], digests: Mapping[str, str], where: str) -> None:
    found = {
        "altered since it was signed": [path for path in digests if signed.get(path, digests[path]) != digests[path]],
        "not signed": [path for path in digests if path not in signed],
        "signed, but not there": [path for path in signed if path not in digests],
    }
    problems = [f"{what}: {_some(sorted(paths))}" for what, paths in found.items() if paths]
    if problems:
        fix = f"Restore the files as they were signed, or {_SIGN}"
        raise ConfigError("; ".join(problems), where=where, fix=fix)


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(path if path.isprintable() else ascii(path) for path in paths[:MAX_NAMED]) + more
