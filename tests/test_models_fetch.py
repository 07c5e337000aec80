"""`edge-gateway models fetch`: an archive comes whole and verified into the repository, or not at all."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.models.archive import unpack
from gateway.commands.models.staging import Staging
from gateway.errors import ConfigError
from tests.command_line import ROOT, TIMEOUT_S, environment, one_line, run

DROP = {
    "helmets/model.yaml": b"name: helmets\n",
    "helmets/labels.txt": b"helmet\n",
    "helmets-onnx/config.pbtxt": b"max_batch_size: 0\n",
    "helmets-onnx/3/model.onnx": b"weights of 3" * 10_000,
}


def archive(files: dict[str, bytes], *, compressed: bool = True) -> bytes:
    """A tar of files, as `tar -cz` writes it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(content.getvalue(), mtime=0) if compressed else content.getvalue()


def member_of(kind: bytes, name: str) -> bytes:
    """A tar with one member that is no file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    return content.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def found_in(repository: Path) -> dict[str, bytes]:
    """What lies in the repository, without what is remembered of it."""
    files = [path for path in repository.rglob("*") if path.is_file()]
    names = {str(path.relative_to(repository)): path.read_bytes() for path in files}
    return {name: data for name, data in names.items() if not name.startswith(".fetched/")}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    (tmp_path / "drop.tar.gz").write_bytes(archive(DROP))
    return tmp_path / "drop.tar.gz"


@contextlib.contextmanager
def served(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server of one archive; its URL, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path.startswith("/drop") else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_drop_comes_from_a_url_once(repository: Path) -> None:
    content = archive(DROP)
    with served(content) as (url, asked):
        command = ("models", "fetch", f"{url}/drop.tar.gz?signature=secret", "--sha256", sha256(content))
        done = run(*command, "--repository", str(repository), "--json")
        assert json.loads(done.stdout)["moved"] == ["helmets-onnx", "helmets"]  # what has model.yaml comes last
        assert "secret" not in done.stdout + done.stderr
        assert found_in(repository) == DROP
        again = run(*command, "--repository", str(repository))
        assert "nothing new" in again.stdout
        assert len(asked) == 1
        (repository / "helmets" / "labels.txt").unlink()
        assert json.loads(run(*command, "--repository", str(repository), "--json").stdout)["moved"] == [
            "helmets/labels.txt"
        ]
        assert len(asked) == 2


def test_nothing_of_an_archive_with_another_digest_is_unpacked(repository: Path) -> None:
    with served(archive(DROP)) as (url, _):
        line = one_line("models", "fetch", f"{url}/drop", "--sha256", "0" * 64, "--repository", str(repository))
    assert f"has the digest {sha256(archive(DROP))}" in line
    assert list(repository.iterdir()) == []


def test_a_url_needs_a_digest_and_one_that_answers(repository: Path) -> None:
    where = ("--repository", str(repository))
    assert "a URL needs a digest" in one_line("models", "fetch", "https://models.example/drop", *where)
    assert "64 hexadecimal digits" in one_line(
        "models", "fetch", "https://models.example/drop", "--sha256", "abc", *where
    )
    with served(b"") as (url, _):
        assert "answers 404" in one_line("models", "fetch", f"{url}/other", "--sha256", "0" * 64, *where)
    assert "cannot be fetched" in one_line("models", "fetch", "http://127.0.0.1:1/", "--sha256", "0" * 64, *where)
    assert "cannot be read" in one_line("models", "fetch", "nowhere.tar.gz", *where)
    assert "no such folder" in one_line("models", "fetch", "drop.tar", "--repository", str(repository / "not"))


def test_a_drop_comes_through_standard_input(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "models", "fetch", "-"],
        input=archive(DROP, compressed=False),
        env=environment(MODEL_REPOSITORY=str(repository)),
        cwd=ROOT,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert b"standard input: helmets-onnx, helmets" in done.stdout
    assert found_in(repository) == DROP


def test_the_next_version_comes_beside_the_one_that_is_there(repository: Path, drop: Path) -> None:
    assert run("models", "fetch", str(drop), "--repository", str(repository)).returncode == 0
    following = {
        "helmets/model.yaml": b"name: helmets\nrollout: immediate\n",
        "helmets/SHA256SUMS": b"",
        "helmets-onnx/3/model.onnx": DROP["helmets-onnx/3/model.onnx"],
        "helmets-onnx/4/model.onnx": b"weights of 4",
    }
    drop.write_bytes(archive(following))
    done = run("models", "fetch", str(drop), "--repository", str(repository), "--json")
    assert json.loads(done.stdout)["moved"] == ["helmets-onnx/4", "helmets/SHA256SUMS", "helmets/model.yaml"]
    assert found_in(repository) == DROP | following


def test_other_weights_under_a_number_that_is_there_are_refused(repository: Path, drop: Path) -> None:
    assert run("models", "fetch", str(drop), "--repository", str(repository)).returncode == 0
    drop.write_bytes(archive({**DROP, "helmets/model.yaml": b"name: other\n", "helmets-onnx/3/model.onnx": b"other"}))
    assert "new version number" in one_line("models", "fetch", str(drop), "--repository", str(repository))
    assert found_in(repository) == DROP


def test_what_a_gateway_remembers_is_left_out(repository: Path, drop: Path) -> None:
    drop.write_bytes(archive({**DROP, ".edge-gateway/helmets.json": b"{}", "./.new-1/x/y": b""}))
    assert run("models", "fetch", str(drop), "--repository", str(repository)).returncode == 0
    assert found_in(repository) == DROP


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (archive({"../outside/model.yaml": b""}), "leads elsewhere"),
        (archive({"/etc/cron.d/model": b""}), "leads elsewhere"),
        (archive({"a/" * 40 + "x": b""}), "leads elsewhere"),
        (archive({"README": b""}), "lies in no folder"),
        (archive({}), "has no folder of a model"),
        (member_of(tarfile.SYMTYPE, "helmets/model.yaml"), "neither a file nor a folder"),
        (member_of(tarfile.LNKTYPE, "helmets/model.yaml"), "neither a file nor a folder"),
        (member_of(tarfile.CHRTYPE, "helmets/model.yaml"), "neither a file nor a folder"),
        (archive({f"m/{number}": bytes(400_000) for number in range(4)}), "has more than 1 MiB"),
        (gzip.compress(bytes(80 << 20)), "is larger than"),
        (archive(DROP)[:-20], "cannot be unpacked"),
        (archive(DROP)[:-8] + bytes(8), "cannot be unpacked"),
        (b"\x1f\x8b" + bytes(100), "cannot be unpacked"),
        (b"no archive at all" * 100, "cannot be unpacked"),
        (archive({"m/x": b"1", "./m/x": b"2"}), "cannot be written"),
    ],
)  # fmt: skip
def test_an_archive_that_is_none_is_refused(content: bytes, says: str, repository: Path) -> None:
    with pytest.raises(ConfigError) as caught, Staging(repository, "fetch") as staging:
        unpack(io.BytesIO(content), staging, "drop", 1 << 20)
    assert says in str(caught.value)
    assert list(repository.iterdir()) == []


@given(st.binary(max_size=4096) | st.binary(max_size=2048).map(gzip.compress))
def test_whatever_comes_is_unpacked_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(ConfigError), Staging(Path(folder), "fetch") as staging:
            unpack(io.BytesIO(content), staging, "drop", 1 << 20)
        assert list(Path(folder).iterdir()) == []


def test_an_archive_is_no_larger_than_a_model_may_be(repository: Path, drop: Path) -> None:
    drop.write_bytes(archive({"m/x": bytes(range(256)) * 8192}, compressed=False))
    line = one_line("models", "fetch", str(drop), "--repository", str(repository), MAX_MODEL_BYTES=str(1 << 20))
    assert "is larger than 1 MiB" in line
