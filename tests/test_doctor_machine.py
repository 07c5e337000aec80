"""What `edge-gateway doctor` says of files, folders, processors and memory, and of the receiver of traces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.affinity import allowed_cpus
from gateway.doctor.files import check_folders, check_secrets
from gateway.doctor.findings import Finding, Level
from gateway.doctor.resources import check_resources
from gateway.doctor.traces import check_traces
from tests.flow.builders import settings


def wrong(findings: Iterator[Finding] | list[Finding]) -> list[str]:
    return [each.what for each in findings if each.level in (Level.WARNING, Level.PROBLEM)]


def token(folder: Path, name: str, text: str, mode: int) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_that_everybody_may_read_is_told_without_what_is_in_it(tmp_path: Path) -> None:
    acting = token(tmp_path, "api", "hunter2\n", 0o644)
    reading = token(tmp_path, "read", "hunter2", 0o640)
    found = list(check_secrets(settings(api_token_file=acting, api_read_token_file=reading)))
    first, same = wrong(found)
    assert f"'{acting}' may be read by everybody on this machine (-rw-r--r--)" in first
    assert "hold the same token" in same
    assert "hunter2" not in str(found)
    (good,) = (each.what for each in found if each.level is Level.OK)
    assert good.endswith("API_READ_TOKEN_FILE")


def test_a_state_folder_that_is_none_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = settings(model_state_dir=tmp_path / "file" / "state", shared_memory_max_bytes=2**36)
    state, memory = (each for each in check_folders(config) if each.level is not Level.OK)
    assert (state.level, "MODEL_STATE_DIR" in state.fix) == (Level.PROBLEM, True)
    assert (memory.level, memory.where) == (Level.WARNING, "/dev/shm")


def test_a_container_that_is_smaller_than_its_settings(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{128 * 2**20}\n")
    cores, memory = wrong(check_resources(settings(workers=2, decoder_threads=2), tmp_path))[:2]
    assert "of which 0.5 may be used in all; WORKERS=2 with 2 decoding threads each" in cores
    assert memory.endswith("there are 134 MB")


def test_a_machine_without_limits_is_well(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert not wrong(check_resources(settings(decoder_threads=1), tmp_path))


def test_cores_that_are_not_there_are_a_problem(tmp_path: Path) -> None:
    (first, *_) = check_resources(settings(loop_cpus=str(max(allowed_cpus()) + 1)), tmp_path)
    assert (first.level, first.where) == (Level.PROBLEM, "LOOP_CPUS")


class _Receiver(BaseHTTPRequestHandler):
    """Answers as OTLP's receivers do."""

    status = 200
    promised = 0
    """Bytes of a body, of which none comes."""
    taken: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.taken.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.send_header("Content-Length", str(self.promised))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def receiver(status: int, promised: int = 0) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    taken: list[tuple[str, bytes]] = []
    handler = type("Receiver", (_Receiver,), {"status": status, "promised": promised, "taken": taken})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()
        thread.join(5)


@pytest.mark.parametrize(
    ("status", "level", "said"),
    [
        (200, Level.OK, "takes traces; 100% of the snapshots"),
        (404, Level.WARNING, "the answer is 404"),
        (401, Level.UNKNOWN, "asks who we are"),
    ],
)
async def test_the_receiver_of_traces_is_asked_with_nothing_to_keep(status: int, level: Level, said: str) -> None:
    with receiver(status) as (url, taken):
        found = await check_traces(settings(otel_exporter_otlp_endpoint=url))
    assert taken == [("/v1/traces", b"")]
    assert (found[0].level, said in found[0].what) == (level, True)
    assert (len(found) == 2) is (status == 200), "its Date tells the time"


async def test_a_receiver_that_is_away_shows_no_password() -> None:
    with receiver(200) as (url, _):
        pass
    (found,) = await check_traces(settings(otel_exporter_otlp_endpoint=url.replace("//", "//me:hunter2@")))
    assert found.level is Level.WARNING
    assert "hunter2" not in str(found)


async def test_the_body_of_a_receiver_of_traces_is_not_read() -> None:
    with receiver(200, promised=10**9) as (url, _):
        found = await check_traces(settings(otel_exporter_otlp_endpoint=url))
    assert found[0].level is Level.OK


async def test_without_traces_nothing_is_said() -> None:
    assert await check_traces(settings()) == []
