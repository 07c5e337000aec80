"""Signatures of models: what is accepted, and every way in which one is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.signatures import (
    MAX_SIGNATURE_BYTES,
    SignatureVerifier,
    check_configured,
    sign_files,
)
from gateway.errors import ConfigError
from tests.command_line import ROOT
from tests.model_signers import (
    DIGESTS,
    FILES,
    OTHER,
    PASSWORD,
    changed,
    no_password,
    payload_changed,
    refusal,
    write_key,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """key.pem, key.pub and other.pem, other.pub."""
    folder = tmp_path_factory.mktemp("signers")
    write_key(folder / "key.pem")
    write_key(folder / "other.pem")
    return folder


@pytest.fixture(scope="module")
def signature(folder: Path) -> bytes:
    """Over all the files, with key.pem."""
    return sign_files(DIGESTS, "belt", folder / "key.pem", no_password)


@pytest.fixture(scope="module")
def verifier(folder: Path) -> SignatureVerifier:
    """Trusts key.pub."""
    return SignatureVerifier(public_key=folder / "key.pub")


# --- accepted -------------------------------------------------------------------------------------------


def test_what_was_signed_is_accepted(verifier: SignatureVerifier, signature: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.sig"
    path.write_bytes(signature)
    assert verifier.verify(path, DIGESTS) == verifier.verify(signature, dict(reversed(DIGESTS.items())))
    assert verifier.verify(path, DIGESTS).startswith("key ")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_each_curve_can_sign(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    write_key(tmp_path / "key.pem", ec.generate_private_key(curve))
    signature = sign_files(DIGESTS, "belt", tmp_path / "key.pem", no_password)
    SignatureVerifier(tmp_path / "key.pub").verify(signature, DIGESTS)


def test_while_keys_change_both_are_accepted(folder: Path, signature: bytes, tmp_path: Path) -> None:
    both = tmp_path / "both.pub"
    both.write_text("the old one\n" + (folder / "other.pub").read_text() + (folder / "key.pub").read_text())
    verifier = SignatureVerifier(both)
    verifier.verify(signature, DIGESTS)
    verifier.verify(sign_files(DIGESTS, "belt", folder / "other.pem", no_password), DIGESTS)
    assert "altered" in refusal(verifier, signature, {**DIGESTS, FILES[0]: OTHER}).message


def test_an_encrypted_key_asks_for_its_password(tmp_path: Path) -> None:
    write_key(tmp_path / "key.pem", password=PASSWORD)
    signature = sign_files(DIGESTS, "belt", tmp_path / "key.pem", lambda: PASSWORD)
    SignatureVerifier(tmp_path / "key.pub").verify(signature, DIGESTS)
    with pytest.raises(ConfigError, match="the password is wrong"):
        sign_files(DIGESTS, "belt", tmp_path / "key.pem", lambda: "guess")


def test_names_in_any_script_are_signed(folder: Path, verifier: SignatureVerifier) -> None:
    digests = {"förderband/модель 1.onnx": OTHER, "a/-x": OTHER, "a/:1:2": OTHER}
    verifier.verify(sign_files(digests, "förderband", folder / "key.pem", no_password), digests)


# --- the files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES)
def test_each_file_is_covered(path: str, verifier: SignatureVerifier, signature: bytes) -> None:
    altered = refusal(verifier, signature, {**DIGESTS, path: OTHER})
    assert altered.message == f"altered since it was signed: {path}"
    missing = refusal(verifier, signature, {name: digest for name, digest in DIGESTS.items() if name != path})
    assert missing.message == f"signed, but not there: {path}"
    extra = refusal(verifier, signature, {**DIGESTS, path + ".bak": OTHER})
    assert extra.message == f"not signed: {path}.bak"


def test_all_kinds_are_told_and_few_are_named(verifier: SignatureVerifier, signature: bytes) -> None:
    digests = dict.fromkeys(FILES[1:], OTHER) | {"belt/new\n\x1b[2J": OTHER}
    message = refusal(verifier, signature, digests).message
    assert "belt-onnx/2/model.onnx, belt-onnx/config.pbtxt, belt-torch/2/model.pt and 4 more; " in message
    assert r"not signed: 'belt/new\n\x1b[2J'" in message
    assert "signed, but not there: belt/model.yaml" in message


def test_the_signature_of_another_version_is_refused(verifier: SignatureVerifier, signature: bytes) -> None:
    next_version = {path.replace("/2/", "/3/"): digest for path, digest in DIGESTS.items()}
    error = refusal(verifier, signature, next_version)
    assert error.message == (
        "not signed: belt-onnx/3/model.onnx, belt-torch/3/model.pt; "
        "signed, but not there: belt-onnx/2/model.onnx, belt-torch/2/model.pt"
    )
    assert "edge-gateway models sign" in error.fix


def test_compiled_python_is_refused(verifier: SignatureVerifier, signature: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        verifier.verify(signature, DIGESTS, ["belt-py/2/__pycache__"])
    assert caught.value.message == "compiled Python, which cannot be signed: belt-py/2/__pycache__"


@given(path=st.sampled_from(FILES), digest=st.binary(min_size=32, max_size=32))
def test_any_one_changed_digest_is_refused(
    verifier: SignatureVerifier, signature: bytes, path: str, digest: bytes
) -> None:
    if digest.hex() == DIGESTS[path]:
        return
    assert path in refusal(verifier, signature, {**DIGESTS, path: digest.hex()}).message


# --- the signature file ---------------------------------------------------------------------------------


def test_an_unsigned_drop_is_refused(verifier: SignatureVerifier, tmp_path: Path) -> None:
    error = refusal(verifier, tmp_path / "model.sig")
    assert error.message == "the drop is not signed: no such file"
    assert error.where == str(tmp_path / "model.sig")


def test_a_huge_one_is_not_read(verifier: SignatureVerifier, tmp_path: Path) -> None:
    with (tmp_path / "model.sig").open("wb") as file:
        file.truncate(1 << 40)
    assert "is larger than 8 MiB" in refusal(verifier, tmp_path / "model.sig").message
    assert "is larger than 8 MiB" in refusal(verifier, bytes(MAX_SIGNATURE_BYTES + 1)).message


def test_what_is_no_file_is_refused(verifier: SignatureVerifier, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("pipe", "circle", "."):
        assert "cannot be read" in refusal(verifier, tmp_path / name).message


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\xff\xfe\x00", b"null", b"[]", b"{}", b"[" * 1_000_000, b'{"a":' * 1_000_000, bytes(4096)],
    ids=["empty", "text", "binary", "null", "list", "nothing", "deep list", "deep map", "zeros"],
)
def test_garbage_is_refused(content: bytes, verifier: SignatureVerifier) -> None:
    assert refusal(verifier, content).message.startswith("is no signature of a model, or a damaged one")


@given(st.data())
def test_a_truncated_one_is_refused(verifier: SignatureVerifier, signature: bytes, data: st.DataObject) -> None:
    refusal(verifier, signature[: data.draw(st.integers(0, len(signature) - 1))])


@given(st.data())
def test_any_changed_byte_is_refused_or_means_nothing(
    verifier: SignatureVerifier, signature: bytes, data: st.DataObject
) -> None:
    """What a change can spare is only what is not read: the number of log entries, or an empty `keyid`."""
    position, byte = data.draw(st.integers(0, len(signature) - 1)), data.draw(st.integers(0, 255))
    other = signature[:position] + bytes([byte]) + signature[position + 1 :]
    try:
        verifier.verify(other, DIGESTS)
    except ConfigError:
        refusal(verifier, other, DIGESTS)
    else:
        refusal(verifier, other, {**DIGESTS, FILES[0]: OTHER})


@pytest.mark.parametrize(("old", "new"), [(DIGESTS[FILES[0]], OTHER), ("belt/labels.txt", "belt/labels.tst")])
def test_other_content_under_the_same_signature_is_refused(
    verifier: SignatureVerifier, signature: bytes, old: str, new: str
) -> None:
    error = refusal(verifier, payload_changed(signature, old, new))
    assert error.message == "the signature does not fit: the file was altered, or another key has signed"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("payloadType", "text/plain"),
        ("payload", "*"),
        ("payload", ""),
        ("signatures", [{"sig": ""}]),
        ("signatures", [{"sig": "AAAA"}]),
    ],
)
def test_a_broken_envelope_is_refused(key: str, value: object, verifier: SignatureVerifier, signature: bytes) -> None:
    refusal(verifier, changed(signature, lambda bundle: bundle["dsseEnvelope"].update({key: value})))


@pytest.mark.parametrize("count", [0, 2])
def test_one_signature_is_wanted(count: int, verifier: SignatureVerifier, signature: bytes) -> None:
    other = changed(
        signature,
        lambda bundle: bundle["dsseEnvelope"].update(signatures=bundle["dsseEnvelope"]["signatures"] * count),
    )
    assert refusal(verifier, other).message == f"has {count} signatures in place of one"


def test_another_format_is_refused(verifier: SignatureVerifier, signature: bytes) -> None:
    for media in ("application/json", "application/vnd.dev.sigstore.bundle+json;version=0.1"):
        other = changed(signature, lambda bundle, media=media: bundle.update(mediaType=media))  # type: ignore[misc]
        assert "cannot be verified" in refusal(verifier, other).message


# --- keys -----------------------------------------------------------------------------------------------


def test_another_key_is_refused(folder: Path, verifier: SignatureVerifier, signature: bytes) -> None:
    other = sign_files(DIGESTS, "belt", folder / "other.pem", no_password)
    error = refusal(verifier, other)
    assert error.message.startswith("is signed by key '")
    assert str(folder / "key.pub") in error.message
    assert error.fix == "Sign this version with the private key that belongs to MODEL_PUBLIC_KEY_FILE"
    ours = json.loads(signature)["verificationMaterial"]
    lying = changed(other, lambda bundle: bundle.update(verificationMaterial=ours))
    assert "another key has signed" in refusal(verifier, lying).message


def test_a_signature_that_names_no_key_is_refused(verifier: SignatureVerifier, signature: bytes) -> None:
    material: dict[str, object] = {"publicKey": {}, "tlogEntries": []}
    nameless = changed(signature, lambda bundle: bundle.update(verificationMaterial=material))
    assert "a key that it does not name" in refusal(verifier, nameless).message


def test_only_a_usable_public_key_is_accepted_at_the_start(folder: Path, tmp_path: Path) -> None:
    check_configured(None, None)
    check_configured(folder / "key.pub", None)
    rsa_key: Any = rsa.generate_private_key(65537, 2048).public_key()
    odd_key: Any = ec.generate_private_key(ec.SECP256K1()).public_key()
    for name, key in {"rsa.pub": rsa_key, "odd.pub": odd_key}.items():
        pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        (tmp_path / name).write_bytes(key.public_bytes(*pem))
    (tmp_path / "garbage.pub").write_bytes(os.urandom(100))
    (tmp_path / "cut.pub").write_bytes((folder / "key.pub").read_bytes().replace(b"MF", b""))
    (tmp_path / "huge.pub").write_bytes(bytes(2 << 20))
    os.mkfifo(tmp_path / "pipe.pub")
    for path, text in {
        tmp_path / "missing.pub": "cannot be read: No such file",
        tmp_path / "garbage.pub": "has no public key in PEM",
        tmp_path / "cut.pub": "is no readable public key",
        tmp_path / "huge.pub": "is larger than 1 MiB",
        tmp_path / "pipe.pub": "cannot be read: it is no regular file",
        tmp_path / "rsa.pub": "the key is of another kind; model signatures take EC keys",
        tmp_path / "odd.pub": "the key is of curve secp256k1",
        folder / "key.pem": "is a private key. Give the gateway only the public one",
    }.items():
        with pytest.raises(ConfigError) as caught:
            check_configured(path, None)
        assert str(caught.value).startswith(f"MODEL_PUBLIC_KEY_FILE={path}: {text}")


# --- the library ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["shards", "blake2"])
def test_digests_of_another_kind_are_refused(
    method: str, folder: Path, verifier: SignatureVerifier, tmp_path: Path
) -> None:
    from model_signing import hashing, signing

    (tmp_path / "belt").mkdir()
    (tmp_path / "belt" / "a").write_text("a")
    config: Any = hashing.Config()  # type: ignore[no-untyped-call]
    if method == "shards":
        config.use_shard_serialization()
    else:
        config.use_file_serialization(hashing_algorithm="blake2")
    signer: Any = signing.Config()  # type: ignore[no-untyped-call]
    signer.use_elliptic_key_signer(private_key=folder / "key.pem").set_hashing_config(config)
    signer.sign(tmp_path / "belt", tmp_path / "model.sig")
    error = refusal(verifier, tmp_path / "model.sig", {"a": hashlib.sha256(b"a").hexdigest()})
    assert error.message == "is not over the SHA-256 of whole files"


def test_the_library_is_imported_only_when_it_is_used() -> None:
    code = (
        "import gateway.adapters.signatures, gateway.commands.models.signing, sys;"
        "print([n for n in ('model_signing', 'cryptography', 'OpenSSL', 'sigstore_models') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("model_signing", "model-signing is not installed. In the gateway's environment: pip install"),
        ("OpenSSL", "model-signing is not installed. In the gateway's environment: pip install"),
        ("model_signing.manifest", "model-signing cannot be used: "),
    ],
)
def test_without_the_extra_its_name_is_said(module: str, text: str, folder: Path) -> None:
    code = (
        "import sys; sys.modules[sys.argv[2]] = None  # as when it is not there\n"
        "from pathlib import Path\n"
        "from gateway.adapters.signatures import check_configured\n"
        "from gateway.errors import ConfigError\n"
        "check_configured(None, None)\n"
        "try: check_configured(Path(sys.argv[1]), None)\n"
        "except ConfigError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(folder / "key.pub"), module]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith(text)
    assert done.stdout.endswith("pip install 'triton-edge-gateway[signing]'\n")
