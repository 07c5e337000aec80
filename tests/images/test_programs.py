"""The programs of the images: the health check, what saves and loads, what collects and lays out files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from compose.images.collect_root import Root
from compose.images.images import (
    ROOT,
    Engine,
    ImageError,
    digest,
    images_of_compose,
    load,
    manifest_of,
    save,
    without_digest,
)
from compose.images.lay_out_triton import STUB, VERSION, lay_out
from tests.images.__main__ import SKIPPED, main
from tests.images.compose import Service, read_compose, read_environment

ENGINE = """#!/bin/sh
# An engine that knows of images by files in $IMAGES.
case "$1 $2" in
  "image inspect") test -e "$IMAGES/$(echo "$3" | tr / _)" ;;
  "save --output") shift; out="$2"; shift 2; echo "$@" > "$out" ;;
  "load --input") for name in $(cat "$3"); do touch "$IMAGES/$(echo "$name" | tr / _)"; done ;;
  tag*) touch "$IMAGES/$(echo "$3" | tr / _)" ;;
  *) echo "what is $1 $2?" >&2; exit 1 ;;
esac
"""


class Answers(BaseHTTPRequestHandler):
    """Ready, but not started up."""

    def do_GET(self) -> None:
        """200 for /ready, 503 for all else."""
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def probe(*arguments: str, **environment: str) -> int:
    command = [sys.executable, "-m", "gateway.probe", *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False, capture_output=True)
    return done.returncode


def test_the_probe_says_by_its_exit_code_what_the_gateway_answers(port: int) -> None:
    assert probe("ready", HTTP_PORT=str(port)) == 0
    assert probe("ready", HTTP_PORT=str(port), HTTP_HOST="127.0.0.1") == 0
    assert probe("startup", HTTP_PORT=str(port)) == 1
    assert probe("live", HTTP_PORT=str(port)) == 1
    assert probe("metrics", HTTP_PORT=str(port)) == 2
    assert probe("live", HTTP_PORT="http") == 2


def test_the_probe_fails_where_nobody_listens() -> None:
    assert probe("live", HTTP_PORT="1") == 1


def test_the_probe_imports_nothing_but_the_standard_library() -> None:
    program = "import sys, gateway.probe; print(*{n.partition('.')[0] for n in sys.modules} - sys.stdlib_module_names)"
    line = [sys.executable, "-S", "-c", program]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"gateway", "__main__"}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    program = tmp_path / "engine"
    program.write_text(ENGINE)
    program.chmod(0o755)
    (tmp_path / "images").mkdir()
    monkeypatch.setenv("IMAGES", str(tmp_path / "images"))
    return Engine((str(program),))


def forget(folder: Path) -> None:
    for image in (folder / "images").iterdir():
        image.unlink()


def test_what_is_saved_is_loaded_without_digests(tmp_path: Path, engine: Engine) -> None:
    images = {"GATEWAY_IMAGE": "gateway:1", "MOSQUITTO_IMAGE": f"a/b:2@sha256:{'0' * 64}"}
    for image in images.values():
        engine.run("tag", "here", image)
    archive = tmp_path / "all.tar"
    beside = save(engine, images, archive)
    assert json.loads(beside.read_text())["sha256"] == digest(archive)
    forget(tmp_path)
    assert load(engine, archive) == {"GATEWAY_IMAGE": "gateway:1", "MOSQUITTO_IMAGE": "a/b:2"}
    assert engine.has("a/b:2")


@pytest.mark.parametrize("damage", ["changed", "gone", "no manifest", "other manifest"])
def test_an_archive_that_is_not_what_was_saved_is_not_loaded(tmp_path: Path, engine: Engine, damage: str) -> None:
    engine.run("tag", "here", "gateway:1")
    archive = tmp_path / "all.tar"
    save(engine, {"GATEWAY_IMAGE": "gateway:1"}, archive)
    forget(tmp_path)
    if damage == "changed":
        archive.write_text(archive.read_text() + "x")
    elif damage == "gone":
        archive.unlink()
    elif damage == "no manifest":
        manifest_of(archive).unlink()
    else:
        manifest_of(archive).write_text("[1]")
    with pytest.raises(ImageError, match=r"again|beside"):
        load(engine, archive)
    assert not engine.has("gateway:1")


def test_an_image_that_the_archive_lacks_is_named(tmp_path: Path, engine: Engine) -> None:
    engine.run("tag", "here", "gateway:1")
    archive = tmp_path / "all.tar"
    beside = save(engine, {"GATEWAY_IMAGE": "gateway:1"}, archive)
    beside.write_text(beside.read_text().replace("gateway:1", "gateway:2"))
    with pytest.raises(ImageError, match="gateway:2"):
        load(engine, archive)


def test_saved_is_what_compose_starts() -> None:
    cpu, gpu = images_of_compose("cpu"), images_of_compose("gpu")
    assert set(cpu) ^ set(gpu) == {"TRITON_CPU_IMAGE", "TRITON_IMAGE"}
    assert all(without_digest(image).count(":") == 1 for image in cpu.values())


def test_who_is_not_root_is_told_that_nothing_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["tests.images"])
    ignored = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main() == SKIPPED
    finally:
        for each, handler in ignored.items():
            signal.signal(each, handler)


def test_a_key_of_compose_that_the_real_test_does_not_know_fails_it() -> None:
    with pytest.raises(AssertionError, match="sysctls"):
        Service("one", {"image": "x", "sysctls": {}}).arguments()


def test_the_real_test_knows_all_of_the_compose_file() -> None:
    compose = read_compose(read_environment({}))
    names = [service.name for service in compose.in_order(set())]
    assert names.index("setup") < names.index("mosquitto") < names.index("gateway")
    for service in compose.services.values():
        assert str(service.settings["image"]) in service.arguments()
        assert not [part for part in service.arguments() if "${" in part]


def test_a_root_gets_files_links_and_what_they_are_linked_to(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    program = Path(sys.executable).resolve()
    (base / "python3").symlink_to("python3-real")
    (base / "python3-real").symlink_to(program)
    root = Root(tmp_path / "root")
    root.file(base / "python3")
    root.libraries(())
    copied = root.at(base / "python3")
    assert copied.is_symlink()
    assert root.at(program).read_bytes() == program.read_bytes()
    assert list(root.folder.rglob("libc.so.6")), "what the program is linked to"
    assert list(root.folder.rglob("ld-linux*")), "and what loads it"


def test_what_nothing_brings_fails_the_build(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    base = tmp_path / "base"
    base.mkdir()
    program = base / "program"
    program.write_bytes(Path(sys.executable).resolve().read_bytes().replace(b"libc.so.6", b"libX.so.6"))
    program.chmod(0o755)
    root.file(program)
    with pytest.raises(SystemExit, match=r"libX\.so\.6"):
        root.libraries(())


def test_triton_is_laid_out_as_in_nvidias_image(tmp_path: Path) -> None:
    server, target = tmp_path / "tritonserver", tmp_path / "opt"
    files = ["bin/tritonserver", "backends/python/libtriton_python.so", "caches/local/cache.so"]
    files += ["backends/python/triton_python_backend_utils.py", f"python_backend_stubs/{VERSION}/{STUB}"]
    for name in (*files, f"python_backend_stubs/2.7/{STUB}"):
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (server / name).write_text(name)
    lay_out(server, ROOT / "triton" / "backends", target)
    assert (target / "bin" / "tritonserver").resolve() == server / "bin" / "tritonserver"
    assert not (target / "backends" / "python" / "libtriton_python.so").is_symlink()
    assert (target / "backends" / "python" / STUB).read_text().endswith(f"{VERSION}/{STUB}")
    assert {path.parent.name for path in target.rglob("edge_backend.py")} == {"onnxruntime", "pytorch"}
    assert not (server / "python_backend_stubs" / "2.7").exists()


def test_a_python_without_a_stub_fails_the_build(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="PYTHON_IMAGE"):
        lay_out(tmp_path, tmp_path, tmp_path / "opt")
