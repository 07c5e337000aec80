"""Signatures made with certificates: of which authority, when, and for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.adapters.signatures import (
    SignatureVerifier,
    check_configured,
    sign_files,
)
from gateway.errors import ConfigError
from tests.model_signers import (
    DIGESTS,
    FILES,
    OTHER,
    Authority,
    changed,
    no_password,
    payload_changed,
    refusal,
    signed_by_library,
    write_key,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that is trusted."""
    return Authority(tmp_path_factory.mktemp("authority"), "root")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key without a certificate; the public one is beside it."""
    path = tmp_path_factory.mktemp("key") / "key.pem"
    write_key(path)
    return path


@pytest.fixture(scope="module")
def by_key(key: Path) -> bytes:
    """A signature made with that key."""
    return sign_files(DIGESTS, "belt", key, no_password)


def test_a_certificate_of_the_authority_is_accepted(authority: Authority) -> None:
    check_configured(None, authority.path)
    key, certificate = authority.signer("signer")
    signature = sign_files(DIGESTS, "belt", key, no_password, certificate)
    assert SignatureVerifier(certificate=authority.path).verify(signature, DIGESTS) == "CN=signer"
    assert (
        "altered"
        in refusal(SignatureVerifier(certificate=authority.path), signature, {**DIGESTS, FILES[3]: OTHER}).message
    )
    forged = payload_changed(signature, DIGESTS[FILES[0]], OTHER)
    assert "does not fit" in refusal(SignatureVerifier(certificate=authority.path), forged).message


def test_certificates_in_between_come_with_the_signature(authority: Authority) -> None:
    between = Authority(authority.folder, "between", authority)
    key, certificate = between.signer("leaf")
    verifier = SignatureVerifier(certificate=authority.path)
    verifier.verify(sign_files(DIGESTS, "belt", key, no_password, certificate, [between.path]), DIGESTS)
    bundled = authority.folder / "bundled.pem"
    bundled.write_bytes(certificate.read_bytes() + between.path.read_bytes())
    verifier.verify(sign_files(DIGESTS, "belt", key, no_password, bundled), DIGESTS)
    error = refusal(verifier, sign_files(DIGESTS, "belt", key, no_password, certificate))
    assert error.message == "the certificate of CN=leaf is not of an authority of MODEL_CERTIFICATE_FILE"
    assert "--chain" in error.fix


def test_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    for name in ("stranger", "root"):  # one of the same name too
        stranger = Authority(tmp_path, name)
        key, certificate = stranger.signer("signer")
        for chain in ([], [stranger.path]):
            signature = sign_files(DIGESTS, "belt", key, no_password, certificate, chain)
            error = refusal(SignatureVerifier(certificate=authority.path), signature)
            assert error.message == "the certificate of CN=signer is not of an authority of MODEL_CERTIFICATE_FILE"


def test_a_strangers_name_does_not_reach_the_terminal_as_it_is(authority: Authority, tmp_path: Path) -> None:
    files = Authority(tmp_path, "stranger").signer("x\n\x1b[2J")
    error = refusal(SignatureVerifier(certificate=authority.path), signed_by_library(*files))
    assert error.message.startswith(r"the certificate of 'CN=x\n\x1b[2J' is not of an authority")


def test_a_signer_is_no_authority(authority: Authority, tmp_path: Path) -> None:
    """Who has a certificate cannot issue more of them."""
    key, certificate = authority.signer("ambitious")
    pretender = Authority(tmp_path, "ambitious")
    signing = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    pretender.key = signing
    issued = pretender.signer("issued")
    signature = sign_files(DIGESTS, "belt", issued[0], no_password, issued[1], [certificate])
    assert "CN=ambitious is refused" in refusal(SignatureVerifier(certificate=authority.path), signature).message


@pytest.mark.parametrize(
    ("days", "text"),
    [((-3, -1 / 86400), "the certificate of CN=late expired on"), ((1, 2), "the certificate of CN=late is not valid")],
)
def test_only_a_certificate_that_is_valid_now_counts(
    authority: Authority, days: tuple[float, float], text: str
) -> None:
    key, certificate = authority.signer("late", days)
    with pytest.raises(ConfigError, match=text):
        sign_files(DIGESTS, "belt", key, no_password, certificate)
    # As another tool would sign, which does not ask for the date.
    signature = signed_by_library(key, certificate)
    assert refusal(SignatureVerifier(certificate=authority.path), signature).message.startswith(text)


def test_an_authority_that_has_expired_vouches_for_nobody(tmp_path: Path) -> None:
    root = Authority(tmp_path, "old-root", days=(-3, -1))
    key, certificate = root.signer("signer", (-2, 1))
    signature = sign_files(DIGESTS, "belt", key, no_password, certificate)
    error = refusal(SignatureVerifier(certificate=root.path), signature)
    assert error.message == "the certificate of the authority CN=old-root has expired"


@pytest.mark.parametrize(
    ("purposes", "may_sign"), [((ExtendedKeyUsageOID.SERVER_AUTH,), True), ((ExtendedKeyUsageOID.CODE_SIGNING,), False)]
)
def test_a_certificate_for_something_else_is_refused(
    authority: Authority, purposes: tuple[Any, ...], may_sign: bool
) -> None:
    key, certificate = authority.signer("server", purposes=purposes, may_sign=may_sign)
    with pytest.raises(ConfigError, match="is not meant for signing models"):
        sign_files(DIGESTS, "belt", key, no_password, certificate)
    error = refusal(SignatureVerifier(certificate=authority.path), signed_by_library(key, certificate))
    assert error.message == "the certificate of CN=server is not meant for signing models"


@pytest.mark.parametrize("certificates", [[], [{"rawBytes": "AAAA"}], [{"rawBytes": "*"}], [{"rawBytes": "AAAA"}] * 17])
def test_broken_certificates_are_refused(certificates: list[object], authority: Authority, by_key: bytes) -> None:
    material = {"x509CertificateChain": {"certificates": certificates}}
    broken = changed(by_key, lambda bundle: bundle.update(verificationMaterial=material))
    assert "certificate" in refusal(SignatureVerifier(certificate=authority.path), broken).message


def test_only_a_readable_authority_is_accepted_at_the_start(key: Path) -> None:
    for path, text in {
        key.with_name("missing.pem"): "cannot be read: No such file",
        key.with_suffix(".pub"): "is no readable certificate in PEM",
    }.items():
        with pytest.raises(ConfigError) as caught:
            check_configured(None, path)
        assert str(caught.value).startswith(f"MODEL_CERTIFICATE_FILE={path}: {text}")


def test_key_and_certificate_belong_together(authority: Authority, key: Path) -> None:
    _, certificate = authority.signer("mine")
    with pytest.raises(ConfigError, match="does not belong to the key"):
        sign_files(DIGESTS, "belt", key, no_password, certificate)
    with pytest.raises(ConfigError, match="--chain without --certificate"):
        sign_files(DIGESTS, "belt", key, no_password, chain=[certificate])


def test_keys_and_certificates_are_not_taken_for_each_other(key: Path, by_key: bytes, authority: Authority) -> None:
    verifier = SignatureVerifier(public_key=key.with_suffix(".pub"))
    by_certificate = SignatureVerifier(certificate=authority.path)
    error = refusal(by_certificate, by_key)
    assert error.message == (
        "is a signature made with a key, and MODEL_CERTIFICATE_FILE asks for one made with a certificate"
    )
    own, certificate = authority.signer("both-ways")
    error = refusal(verifier, sign_files(DIGESTS, "belt", own, no_password, certificate))
    assert error.message == (
        "is a signature made with a certificate, and MODEL_PUBLIC_KEY_FILE asks for one made with a key"
    )
    keyless = {"certificate": {"rawBytes": "AAAA"}, "tlogEntries": []}
    for each in (verifier, by_certificate):
        other = changed(by_key, lambda bundle: bundle.update(verificationMaterial=keyless))
        assert "made with an identity of Sigstore" in refusal(each, other).message
        other = changed(by_key, lambda bundle: bundle.update(verificationMaterial={}))
        assert "without a key" in refusal(each, other).message
