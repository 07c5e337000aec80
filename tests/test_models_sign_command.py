"""`edge-gateway models sign` and `verify`, beside the command line of the library, and the page that shows them."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.adapters.signatures import SignatureVerifier, sign_files
from gateway.errors import ConfigError
from gateway.models.drop import digests_of, take_drop
from gateway.models.repository import read_model
from tests.command_line import ROOT, environment, one_line, run
from tests.model_signers import PASSWORD, SIGNING, Authority, signed_by_library, write_key

MODEL = "industrial-safety"
FOLDERS = (MODEL, f"{MODEL}-onnx", f"{MODEL}-torch")
FILES = {
    f"{MODEL}/model.yaml",
    f"{MODEL}/labels.txt",
    f"{MODEL}/MODEL_CARD.md",
    f"{MODEL}-onnx/1/model.onnx",
    f"{MODEL}-onnx/config.pbtxt",
    f"{MODEL}-torch/1/model.pt",
    f"{MODEL}-torch/config.pbtxt",
}
PAGE = ROOT / "docs" / "howto" / "signing.md"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model with its two variants."""
    for name in FOLDERS:
        shutil.copytree(ROOT / "model_repository" / name, tmp_path / "repository" / name)
    return tmp_path / "repository"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; the public one is beside it as `.pub`."""
    write_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def signed(repository: Path, key: Path) -> Path:
    """The repository with a signed version 1."""
    done = run("models", "sign", str(repository / MODEL), "--private-key", str(key))
    assert (done.returncode, done.stderr) == (0, "")
    return repository


def verified(folder: Path, *arguments: str, code: int = 0, **settings: str) -> dict[str, object]:
    """What `models verify --json` says, after its exit code has been checked."""
    done = run("models", "verify", str(folder), *arguments, "--json", **settings)
    assert (done.returncode, done.stderr) == (code, ""), done
    body: dict[str, object] = json.loads(done.stdout)
    assert body["ok"] is (code == 0)
    return body


def library(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line of model-signing itself."""
    command = [sys.executable, "-m", "model_signing", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


# --- signing and verifying ------------------------------------------------------------------------------


def test_what_is_signed_is_verified(signed: Path, key: Path) -> None:
    done = run("models", "verify", str(signed / MODEL), "--public-key", str(key.with_suffix(".pub")))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{MODEL} version 1: \d+ files, \d+\.\d MB, signed by key [0-9a-f]{{16}}\n", done.stdout)
    body = verified(signed / MODEL, MODEL_PUBLIC_KEY_FILE=str(key.with_suffix(".pub")))
    assert isinstance(body["files"], list)
    assert set(body["files"]) >= FILES
    assert f"{MODEL}/model.sig" not in body["files"]
    assert (body["model"], body["version"], body["problem"]) == (MODEL, 1, None)


def test_a_model_is_found_by_its_name(repository: Path, key: Path) -> None:
    settings = {"MODEL_REPOSITORY": str(repository), "MODEL_PUBLIC_KEY_FILE": str(key.with_suffix(".pub"))}
    done = run("models", "sign", MODEL, "--private-key", str(key), **settings)
    assert re.fullmatch(rf"{MODEL} version 1: \d+ files, \d+\.\d MB, signed: .*/{MODEL}/model\.sig\n", done.stdout)
    assert run("models", "verify", MODEL, **settings).returncode == 0
    assert "there is no model 'nothing'" in one_line("models", "verify", "nothing", **settings)


def test_the_highest_version_is_signed_unless_another_is_named(signed: Path, key: Path) -> None:
    shutil.copytree(signed / f"{MODEL}-onnx" / "1", signed / f"{MODEL}-onnx" / "2")
    trust = ("--public-key", str(key.with_suffix(".pub")))
    refused = one_line("models", "verify", str(signed / MODEL), *trust)
    assert f"not signed: {MODEL}-onnx/2/model.onnx; signed, but not there: {MODEL}-onnx/1/model.onnx" in refused
    verified(signed / MODEL, "1", *trust)
    other = signed.parent / "2.sig"
    done = run("models", "sign", str(signed / MODEL), "--private-key", str(key), "--output", str(other))
    assert "version 2: " in done.stdout
    verified(signed / MODEL, *trust, "--signature", str(other))
    assert "version 3 has no folder" in one_line("models", "sign", str(signed / MODEL), "3", "--private-key", str(key))


def test_each_file_is_covered(signed: Path, key: Path) -> None:
    model = read_model(signed / MODEL / "model.yaml")
    verifier = SignatureVerifier(key.with_suffix(".pub"))

    def verify() -> None:
        drop = take_drop(model, signed, 1, 1 << 30)
        verifier.verify(signed / MODEL / "model.sig", digests_of(drop))

    verify()
    paths = [path for path in signed.rglob("*") if path.is_file() and path.name != "model.sig"]
    assert {str(path.relative_to(signed)) for path in paths} > FILES
    for path in paths:
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(ConfigError) as caught:
            verify()
        assert caught.value.message == f"altered since it was signed: {path.relative_to(signed)}"
        path.write_bytes(before)
    verify()


def test_an_altered_file_is_named(signed: Path, key: Path) -> None:
    with (signed / MODEL / "labels.txt").open("a") as file:
        file.write("more\n")
    line = one_line("models", "verify", str(signed / MODEL), "--public-key", str(key.with_suffix(".pub")))
    assert f"model.sig: altered since it was signed: {MODEL}/labels.txt. Restore the files" in line


def test_compiled_python_is_not_passed_over(signed: Path, key: Path) -> None:
    (signed / f"{MODEL}-onnx" / "1" / "__pycache__").mkdir()
    line = one_line("models", "verify", str(signed / MODEL), "--public-key", str(key.with_suffix(".pub")))
    assert f"compiled Python, which cannot be signed: {MODEL}-onnx/1/__pycache__. Remove it" in line


def test_a_refusal_in_json_says_all_of_it(signed: Path, key: Path) -> None:
    (signed / MODEL / "model.sig").unlink()
    body = verified(signed / MODEL, "--public-key", str(key.with_suffix(".pub")), code=2)
    assert body["signed_by"] is None
    assert body["problem"] == {
        "message": "the drop is not signed: no such file",
        "where": str(signed / MODEL / "model.sig"),
        "fix": "Sign this version with `edge-gateway models sign`",
    }


def test_certificates_sign_too(repository: Path, tmp_path: Path) -> None:
    root = Authority(tmp_path, "root")
    between = Authority(tmp_path, "between", root)
    key, certificate = between.signer("signer")
    given = ("--private-key", str(key), "--certificate", str(certificate), "--chain", str(between.path))
    done = run("models", "sign", str(repository / MODEL), *given)
    assert (done.returncode, done.stderr) == (0, "")
    assert verified(repository / MODEL, MODEL_CERTIFICATE_FILE=str(root.path))["signed_by"] == "CN=signer"
    assert verified(repository / MODEL, "--certificate", str(root.path))["ok"]
    stranger = Authority(tmp_path, "stranger")
    body = verified(repository / MODEL, "--certificate", str(stranger.path), code=2)
    assert "is not of an authority of MODEL_CERTIFICATE_FILE" in str(body["problem"])


def test_whose_signature_counts_has_to_be_said(signed: Path, key: Path) -> None:
    assert "MODEL_PUBLIC_KEY_FILE" in one_line("models", "verify", str(signed / MODEL))
    both = ("--public-key", str(key.with_suffix(".pub")), "--certificate", str(key))
    assert "exclude each other" in one_line("models", "verify", str(signed / MODEL), *both)
    line = one_line("models", "verify", str(signed / MODEL), "--public-key", str(key))
    assert "is a private key. Give the gateway only the public one" in line


# --- the file and the password --------------------------------------------------------------------------


def test_a_signature_replaces_the_one_before_as_a_whole(signed: Path, key: Path) -> None:
    path = signed / MODEL / "model.sig"
    before = path.stat().st_ino
    umask = os.umask(0)
    os.umask(umask)
    assert run("models", "sign", str(signed / MODEL), "--private-key", str(key)).returncode == 0
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert {each.name for each in path.parent.iterdir()} == {
        "model.yaml", "labels.txt", "MODEL_CARD.md", "golden", "model.sig"
    }  # fmt: skip


def test_nothing_but_a_file_is_written_over(repository: Path, key: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path, tmp_path / "pipe", tmp_path / "nowhere" / "model.sig"):
        line = one_line("models", "sign", str(repository / MODEL), "--private-key", str(key), "--output", str(output))
        assert line.startswith(f"edge-gateway: {output}: cannot be written: ")


def test_the_password_comes_from_the_environment(repository: Path, tmp_path: Path) -> None:
    write_key(tmp_path / "secret.pem", password=PASSWORD)
    command = ("models", "sign", str(repository / MODEL), "--private-key", str(tmp_path / "secret.pem"))
    assert run(*command, MODEL_SIGNING_PASSWORD=PASSWORD).returncode == 0
    verified(repository / MODEL, "--public-key", str(tmp_path / "secret.pub"))
    wrong = one_line(*command, MODEL_SIGNING_PASSWORD="guess")
    assert "the password is wrong" in wrong
    assert "guess" not in wrong


def test_without_a_terminal_nobody_is_asked_for_the_password(repository: Path, tmp_path: Path) -> None:
    write_key(tmp_path / "secret.pem", password=PASSWORD)
    command = [sys.executable, "-m", "gateway", "models", "sign", str(repository / MODEL), "--private-key"]
    done = subprocess.run(
        [*command, str(tmp_path / "secret.pem")],
        cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == ("edge-gateway: the private key is encrypted. Give its password in MODEL_SIGNING_PASSWORD\n")


def test_at_a_terminal_the_password_is_asked_for_unseen(repository: Path, tmp_path: Path) -> None:
    write_key(tmp_path / "secret.pem", password=PASSWORD)
    command = [sys.executable, "-m", "gateway", "models", "sign", str(repository / MODEL), "--private-key"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command, str(tmp_path / "secret.pem")],
        cwd=ROOT, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        shown = b""
        while b"Password of the private key" not in shown:
            shown += os.read(ours, 4096)
        os.write(ours, PASSWORD.encode() + b"\n")
        while b"signed: " not in shown:
            shown += os.read(ours, 4096)
        assert process.wait(60) == 0
        assert PASSWORD.encode() not in shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# --- the library's own command line ---------------------------------------------------------------------


def test_the_library_accepts_what_we_sign(signed: Path, key: Path, tmp_path: Path) -> None:
    signature = ("--signature", str(signed / MODEL / "model.sig"))
    command = ("verify", "key", str(signed), *signature, "--ignore_unsigned_files")
    done = library(*command, "--public_key", str(key.with_suffix(".pub")))
    assert (done.returncode, done.stderr) == (0, ""), done
    write_key(tmp_path / "other.pem")
    assert library(*command, "--public_key", str(tmp_path / "other.pub")).returncode != 0
    (signed / MODEL / "labels.txt").write_text("other\n")
    assert library(*command, "--public_key", str(key.with_suffix(".pub"))).returncode != 0


def test_the_library_accepts_our_certificates(repository: Path, tmp_path: Path) -> None:
    root = Authority(tmp_path, "root")
    key, certificate = root.signer("signer")
    run("models", "sign", str(repository / MODEL), "--private-key", str(key), "--certificate", str(certificate))
    signature = ("--signature", str(repository / MODEL / "model.sig"), "--ignore_unsigned_files")
    done = library("verify", "certificate", str(repository), *signature, "--certificate_chain", str(root.path))
    assert done.returncode == 0, done


def test_we_accept_what_the_library_signs_over_exactly_these_files(repository: Path, key: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / f"{MODEL}-onnx" / "1", repository / f"{MODEL}-onnx" / "2")
    shutil.copytree(ROOT / "model_repository" / "walkway", repository / "walkway")
    (repository / MODEL / "SHA256SUMS").touch()
    signature = tmp_path / "model.sig"
    ignored = (f"{MODEL}/SHA256SUMS", f"{MODEL}/model.sig", f"{MODEL}-onnx/1", f"{MODEL}-torch/1", "walkway")
    paths = [part for path in ignored for part in ("--ignore-paths", str(repository / path))]
    command = ("sign", "key", str(repository), "--private_key", str(key), "--signature", str(signature))
    trust = ("--public-key", str(key.with_suffix(".pub")), "--signature", str(signature))
    done = library(*command, *paths)
    assert done.returncode == 0, done
    assert verified(repository / MODEL, "2", *trust)["ok"]
    assert library(*command, *paths[:-2]).returncode == 0
    body = verified(repository / MODEL, "2", *trust, code=2)
    assert "signed, but not there: walkway/" in str(body["problem"])


# --- the page -------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the page makes keys with openssl")
def test_the_commands_of_the_page_work(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "bin").mkdir()
    repository.rename(tmp_path / "work" / "model_repository")
    for name, module in {"edge-gateway": "gateway", "model_signing": "model_signing"}.items():
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        program.chmod(0o755)
    text, _ = PAGE.read_text().split("## Check and try")
    script = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    settings = environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        ["bash", "-euxc", script],
        cwd=tmp_path / "work", env=settings, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout.count("version 1: ") == script.count("edge-gateway models")


def test_the_refusals_of_the_page_are_those_of_the_gateway(tmp_path: Path) -> None:
    digests = {f"{MODEL}/labels.txt": "00" * 32, f"{MODEL}/golden/1.jpg": "01" * 32}
    root, other = Authority(tmp_path, "root"), Authority(tmp_path, "other")
    for name in ("key", "foreign"):
        write_key(tmp_path / f"{name}.pem")
    by_key, by_certificate = SignatureVerifier(tmp_path / "key.pub"), SignatureVerifier(certificate=root.path)
    signature = sign_files(digests, MODEL, tmp_path / "key.pem", str)
    foreign = sign_files(digests, MODEL, tmp_path / "foreign.pem", str)
    theirs, ours = (json.loads(each)["verificationMaterial"]["publicKey"]["hint"] for each in (foreign, signature))
    lying = foreign.replace(theirs.encode(), ours.encode())
    cases: list[tuple[SignatureVerifier, Path | bytes, dict[str, str]]] = [
        (by_key, tmp_path / "model.sig", digests),
        (by_key, signature, {**digests, f"{MODEL}/labels.txt": "02" * 32}),
        (by_key, signature, {**digests, f"{MODEL}-onnx/2/model.onnx": "02" * 32}),
        (by_key, signature, {f"{MODEL}/labels.txt": "00" * 32}),
        (by_key, foreign, digests),
        (by_certificate, signature, digests),
        (by_key, lying, digests),
        (by_key, signature[:-1], digests),
    ]
    for issuer, days, purposes in (
        (root, (-2.0, -1.0), SIGNING), (root, (1.0, 2.0), SIGNING), (other, (-1.0, 1.0), SIGNING),
        (root, (-1.0, 1.0), (ExtendedKeyUsageOID.SERVER_AUTH,)),
    ):  # fmt: skip
        files = issuer.signer("ML team", days, purposes)
        cases.append((by_certificate, signed_by_library(*files), digests))
    said = []
    for verifier, file, files_there in cases:
        with pytest.raises(ConfigError) as caught:
            verifier.verify(file, files_there)
        said.append(caught.value.message)
    section = PAGE.read_text().split("## What is refused")[1].split("\n## ")[0]
    shown = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    *shown, compiled, other_digests = shown  # the last one takes another tool, see test_signatures
    assert other_digests == "is not over the SHA-256 of whole files"
    with pytest.raises(ConfigError) as caught:
        by_key.verify(signature, digests, [f"{MODEL}-py/2/__pycache__"])
    assert caught.value.message == compiled
    assert [message[: len(text)] for message, text in zip(said, shown, strict=True)] == shown
