"""`edge-gateway models fetch`: an archive comes whole and verified into the repository, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import http.server
import io
import json
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.models.archive import put_in_place, unpack
from gateway.commands.models.staging import Staging
from gateway.errors import ConfigError
from tests.certificates import Authority, server_context
from tests.command_line import ROOT, TIMEOUT_S, environment, one_line, run
from tests.e2e.site import until

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


def header(kind: bytes, name: str, size: int) -> bytes:
    """The 512 bytes before a member of any size."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def extended(fields: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header with these fields."""
    return tarfile.TarInfo._create_pax_generic_header(fields, kind, "utf-8")  # type: ignore[attr-defined, no-any-return]


def unpacked(content: bytes, repository: Path) -> list[str]:
    """The top folders of an archive that may take 1 MiB; nothing of it stays."""
    with Staging(repository, "fetch") as staging:
        return unpack(io.BytesIO(content), staging, "drop", 1 << 20, io.StringIO())


def fetched(repository: Path, content: bytes) -> list[str]:
    """What is moved when an archive is fetched by its digest."""
    path = repository.parent / "fetched.tar.gz"
    path.write_bytes(content)
    done = run("models", "fetch", str(path), "--sha256", sha256(content), "--repository", str(repository), "--json")
    assert done.returncode == 0, done
    return list(json.loads(done.stdout)["moved"])


def put(repository: Path, files: dict[str, bytes]) -> list[str]:
    """What is moved when an archive of these files is unpacked, without a process for that."""
    with Staging(repository, "fetch") as staging:
        folders = unpack(io.BytesIO(archive(files)), staging, "drop", 1 << 20, io.StringIO())
        return put_in_place(staging, folders, repository)


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it works; killed at the end."""
    command = [sys.executable, "-m", "gateway", "models", "fetch", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    (tmp_path / "drop.tar.gz").write_bytes(archive(DROP))
    return tmp_path / "drop.tar.gz"


@contextlib.contextmanager
def served(content: bytes, to: str = "", tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server of one archive, or of a redirect to another; its URL, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302 if to else 200 if self.path.startswith("/drop") else 404)
            self.send_header("Location", to)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}", asked
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
    assert found_in(repository) == {}


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
        (archive({"\x1b[31mred/model.yaml": b""}), "names of models are of letters"),
        (archive({"m/a\nb": b""}), "names of models are of letters"),
        (archive({"m-onnx/1": b"no folder"}), "where a version has a folder"),
        (header(tarfile.REGTYPE, "m/x", -1024), "negative size"),
        (header(tarfile.XHDTYPE, "x", -1024) + bytes(1024), "header of a negative size"),
        (extended({"size": "-1024"}) + header(tarfile.REGTYPE, "m/x", 0), "negative size"),
        (header(tarfile.REGTYPE, ".x/y", 1 << 60), "has more than 1 MiB"),
        (header(tarfile.DIRTYPE, "m/d", 0) * 10_001, "more than 10000 files and folders"),
        (archive({f"m/x{number}": bytes(400_000) for number in range(4)}), "has more than 1 MiB"),
        (gzip.compress(bytes(80 << 20)), "is larger than"),
        (archive(DROP)[:-20], "cannot be unpacked"),
        (archive(DROP)[:-8] + bytes(8), "cannot be unpacked"),
        (b"\x1f\x8b" + bytes(100), "cannot be unpacked"),
        (b"no archive at all" * 100, "cannot be unpacked"),
        (archive({"m/x": b"1", "./m/x": b"2"}), "cannot be written"),
    ],
)  # fmt: skip
def test_an_archive_that_is_none_is_refused(content: bytes, says: str, repository: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        unpacked(content, repository)
    assert says in str(caught.value)
    assert list(repository.iterdir()) == []


@given(st.binary(max_size=4096) | st.binary(max_size=2048).map(gzip.compress))
def test_whatever_comes_is_unpacked_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(ConfigError):
            unpacked(content, Path(folder))
        assert list(Path(folder).iterdir()) == []


def test_an_archive_is_no_larger_than_a_model_may_be(repository: Path, drop: Path) -> None:
    drop.write_bytes(archive({"m/x": bytes(range(256)) * 8192}, compressed=False))
    line = one_line("models", "fetch", str(drop), "--repository", str(repository), MAX_MODEL_BYTES=str(1 << 20))
    assert "is larger than 1 MiB" in line


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}


@pytest.mark.parametrize(
    "content",
    [
        header(tarfile.XHDTYPE, "x", 32 << 20) + bytes(32 << 20),
        header(tarfile.XGLTYPE, "x", 32 << 20) + bytes(32 << 20),
        header(tarfile.GNUTYPE_LONGNAME, "x", 32 << 20) + b"a" * (32 << 20),
        (header(tarfile.XHDTYPE, "x", 60_000) + bytes(60_416)) * 500,
        b"".join(
            extended({f"k{n}": "v" * 40_000}, tarfile.XGLTYPE) + header(tarfile.DIRTYPE, "m", 0) for n in range(600)
        ),
        extended(SPARSE) + header(tarfile.REGTYPE, "m/x", 1 << 20) + b"100000000\n" + b"1\n" * (12 << 20),
        header(tarfile.DIRTYPE, "m/d", 0) * 60_000,
    ],
    ids=["pax", "global", "long name", "chain", "globals", "sparse", "folders"],
)
def test_no_archive_takes_much_memory(content: bytes, repository: Path) -> None:
    packed = gzip.compress(content, compresslevel=1)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError):
            unpacked(packed, repository)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_an_older_archive_is_fetched_again_after_a_newer_one(repository: Path) -> None:
    older = archive({"m/model.yaml": b"A", "m-onnx/1/model.onnx": b"1"})
    newer = archive({"m/model.yaml": b"B", "m-onnx/2/model.onnx": b"2"})
    assert fetched(repository, older) == ["m-onnx", "m"]
    assert fetched(repository, newer) == ["m-onnx/2", "m/model.yaml"]
    assert fetched(repository, older) == ["m/model.yaml"]
    assert (repository / "m/model.yaml").read_bytes() == b"A"
    assert fetched(repository, older) == []


def test_nothing_takes_the_place_of_another_kind(repository: Path, tmp_path: Path) -> None:
    """Neither a file that of a folder, nor the reverse, nor either that of a link."""
    put(repository, {"m/model.yaml": b"a", "m/golden/a": b"1", "m-onnx/1/model.onnx": b"1"})
    (tmp_path / "outside").mkdir()
    (repository / "link").symlink_to(tmp_path / "outside")
    (repository / "m" / "link").symlink_to(tmp_path / "outside")
    before = found_in(repository)
    for files, where in (
        ({"m/golden": b"a file"}, "m/golden"),
        ({"m/model.yaml/1": b"a folder"}, "m/model.yaml"),
        ({"link/model.yaml": b"x"}, "link"),
        ({"m/link/x": b"x"}, "m/link"),
    ):
        with pytest.raises(ConfigError, match=f"{repository / where}: is no f"):
            put(repository, {"a/model.yaml": b"not moved", **files})
    assert found_in(repository) == before
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_folder_gives_its_place_to_the_new_one_whatever_lies_beside_it(repository: Path) -> None:
    put(repository, {"m/golden/a": b"1", "m/golden/old": b"1", "m/x": b""})
    files = {"m/golden/a": b"2", "m/golden.before/a": b"2", "m/x": b""}
    assert put(repository, files) == ["m/golden", "m/golden.before"]
    assert found_in(repository) == files


def test_compiled_python_makes_no_version_another_one(repository: Path) -> None:
    files = {"m/model.yaml": b"a", "m-python/1/model.py": b"1"}
    put(repository, files)
    (repository / "m-python/1/__pycache__").mkdir()
    (repository / "m-python/1/__pycache__/model.pyc").write_bytes(b"1")
    more = {**files, "m/labels.txt": b"", "m-python/2/model.py": b"2", "m-python/2/__pycache__/model.pyc": b"2"}
    assert put(repository, more) == ["m-python/2", "m/labels.txt"]
    assert not (repository / "m-python/2/__pycache__").exists()


def test_one_fetch_at_a_time_works_in_a_repository(repository: Path, drop: Path) -> None:
    (repository / ".fetched").mkdir()
    with (repository / ".fetched" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running(str(drop), "--repository", str(repository)) as process:
            assert process.stderr is not None
            assert "waits for its end" in process.stderr.readline()
            assert found_in(repository) == {}
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert process.wait(TIMEOUT_S) == 0
    assert found_in(repository) == DROP


def test_sigterm_leaves_nothing_behind_and_what_a_kill_left_is_removed(repository: Path, drop: Path) -> None:
    def staged() -> list[Path]:
        return list(repository.glob(".new-*"))

    with running("-", "--repository", str(repository)) as process:
        until(lambda: bool(staged()), "a folder to unpack in")
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert staged() == []
    with running("-", "--repository", str(repository)) as process:
        until(lambda: bool(staged()), "a folder to unpack in")
    assert staged() != []
    (repository / ".new-walkway-1").mkdir()  # of `models new`, which may be at work
    assert run("models", "fetch", str(drop), "--repository", str(repository)).returncode == 0
    assert staged() == [repository / ".new-walkway-1"]


def test_whether_all_is_there_can_be_asked_without_the_archive(repository: Path, tmp_path: Path) -> None:
    content, there = archive(DROP), tmp_path / "there"
    command = ("models", "fetch", "nowhere.tar.gz", "--repository", str(repository), "--check", str(there))
    assert "--check needs a digest" in one_line(*command)

    def asked() -> bool:
        assert run(*command, "--sha256", sha256(content)).returncode == 0
        return there.exists()

    assert not asked()
    assert list(repository.iterdir()) == []
    fetched(repository, content)
    assert asked()
    (repository / "helmets" / "labels.txt").write_bytes(b"other")
    assert not asked()
    (repository / ".fetched" / sha256(content)).write_bytes(b"")
    assert not asked()


def test_nobody_is_led_from_https_to_http(repository: Path, tmp_path: Path) -> None:
    content, authority = archive(DROP), Authority(tmp_path)
    tls = server_context(authority.issue("server", "127.0.0.1"), alpn="http/1.1")
    with served(content) as (plain, asked), served(b"", f"{plain}/drop", tls) as (url, _):
        command = ("models", "fetch", f"{url}/drop", "--sha256", sha256(content), "--repository", str(repository))
        line = one_line(*command, SSL_CERT_FILE=str(authority.path))
    assert "leads from https to http" in line
    assert asked == []
