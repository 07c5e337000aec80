"""Keys, authorities and certificates with which tests sign models."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.adapters.signatures import SignatureVerifier
from gateway.errors import ConfigError

PASSWORD = "open sesame"
FILES = (
    "belt/model.yaml",
    "belt/labels.txt",
    "belt/golden/expected.json",
    "belt/golden/one.jpg",
    "belt-onnx/config.pbtxt",
    "belt-onnx/2/model.onnx",
    "belt-torch/config.pbtxt",
    "belt-torch/2/model.pt",
)
DIGESTS = {path: hashlib.sha256(path.encode()).hexdigest() for path in FILES}
OTHER = hashlib.sha256(b"other").hexdigest()


SIGNING = (ExtendedKeyUsageOID.CODE_SIGNING,)


def write_key(
    path: Path, key: ec.EllipticCurvePrivateKey | None = None, password: str = ""
) -> ec.EllipticCurvePrivateKey:
    """A private key in PEM, with the public one beside it as `.pub`."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return key


class Authority:
    """Issues certificates; those of tests are valid from a day ago for two days unless a test says otherwise."""

    def __init__(
        self, folder: Path, name: str, issuer: Authority | None = None, days: tuple[float, float] = (-1, 1)
    ) -> None:
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = (issuer or self)._issue(name, self.key.public_key(), days, authority=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def signer(
        self,
        name: str,
        days: tuple[float, float] = (-1, 1),
        purposes: tuple[x509.ObjectIdentifier, ...] = SIGNING,
        *,
        may_sign: bool = True,
    ) -> tuple[Path, Path]:
        """The files of a new private key and its certificate, valid between two days from now."""
        key = write_key(self.folder / f"{name}.key")
        path = self.folder / f"{name}.pem"
        issued = self._issue(name, key.public_key(), days, purposes, may_sign=may_sign)
        path.write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        return self.folder / f"{name}.key", path

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        days: tuple[float, float],
        purposes: tuple[x509.ObjectIdentifier, ...] = (),
        *,
        authority: bool = False,
        may_sign: bool = True,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        others = (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
            "decipher_only",
        )  # fmt: skip
        usage = dict.fromkeys(others, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self.name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=may_sign and not authority, key_cert_sign=authority, **usage),
                critical=True,
            )
        )
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def no_password() -> str:
    """Of a key that is not encrypted."""
    raise AssertionError("the key is not encrypted, yet its password was asked for")


def refusal(verifier: SignatureVerifier, signature: Path | bytes, digests: Mapping[str, str] = DIGESTS) -> ConfigError:
    """Why a signature is refused; always with a place and a fix, and in one line."""
    with pytest.raises(ConfigError) as caught:
        verifier.verify(signature, digests)
    assert caught.value.where
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return caught.value


def changed(signature: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The bundle after a change to its JSON."""
    bundle = json.loads(signature)
    change(bundle)
    return json.dumps(bundle).encode()


def payload_changed(signature: bytes, old: str, new: str) -> bytes:
    """The bundle with another text in what was signed."""

    def change(bundle: dict[str, Any]) -> None:
        text = base64.b64decode(bundle["dsseEnvelope"]["payload"]).decode()
        assert old in text
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(text.replace(old, new).encode()).decode()

    return changed(signature, change)


def signed_by_library(key: Path, certificate: Path) -> bytes:
    """The same files, by the library without any check of ours."""
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest
    from model_signing._signing.sign_certificate import Signer
    from model_signing._signing.signing import Payload

    method = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    items = [
        manifest.FileManifestItem(path=Path(path), digest=Digest("sha256", bytes.fromhex(digest)))
        for path, digest in DIGESTS.items()
    ]
    content = manifest.Manifest("belt", items, manifest.SerializationType.from_args(method))
    signer: Any = Signer(key, certificate, [certificate])
    text: str = signer.sign(Payload(content)).bundle.to_json()
    return text.encode()
