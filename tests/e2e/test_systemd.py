"""The gateway serves under the restrictions of its systemd unit, and the restrictions are there."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.command_line import ROOT, environment
from tests.e2e.site import RealSite

pytestmark = [
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze says what the groups hold"),
    pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp applies the filter"),
]
UNIT = ROOT / "compose" / "systemd" / "edge-gateway.service"
LAUNCHER = Path(__file__).with_name("restricted.py")
SNAPSHOTS = 6
FORBIDDEN = """
import ctypes, mmap, os, socket, sys

def refused(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return None

print(
    refused(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)),
    refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    refused(lambda: os.sched_setaffinity(0, {0})),
    refused(lambda: os.unshare(os.CLONE_NEWUSER) if hasattr(os, "unshare") else os.chroot("/")),
    refused(lambda: open("/etc/edge-gateway-was-here", "w")),
)
"""


def launcher(unit: Path, folder: Path) -> tuple[str, ...]:
    return sys.executable, str(LAUNCHER), str(unit), str(folder), "--"


def refusals(unit: Path, folder: Path) -> list[str]:
    command = [*launcher(unit, folder), sys.executable, "-c", FORBIDDEN]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make the file system read-only")
def test_what_the_unit_forbids_is_refused(tmp_path: Path) -> None:
    assert refusals(UNIT, tmp_path) == ["1", "1", "1", "1", "30"]
    pinned = tmp_path / "with-the-drop-in"
    pinned.write_text(UNIT.read_text() + UNIT.with_name("pinning.conf").read_text())
    assert refusals(pinned, tmp_path) == ["1", "1", "None", "1", "30"]


@pytest.mark.parametrize("name", ["LOOP_CPUS", "DECODER_CPUS"])
def test_pinning_without_its_drop_in_ends_the_start_with_what_to_do(tmp_path: Path, name: str) -> None:
    core = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        [*launcher(UNIT, tmp_path), sys.executable, "-m", "gateway", "serve"],
        env=environment(**{name: core, "MODEL_REPOSITORY": str(tmp_path)}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"edge-gateway: {name}: threads may not be pinned here")
    assert "SystemCallFilter=sched_setaffinity" in done.stderr


@pytest.mark.triton
def test_snapshots_are_answered_through_shared_memory_under_the_units_restrictions(
    shared_broker: EmbeddedBroker, shared_triton: EmbeddedTriton, tmp_path: Path
) -> None:
    places = {name: str(tmp_path / name.lower()) for name in ("MODEL_STATE_DIR", "SPOOL_DIR", "TMPDIR")}
    (tmp_path / "tmpdir").mkdir()
    with RealSite(shared_broker, shared_triton, WORKERS="2", **places) as site:
        site.launcher = launcher(UNIT, tmp_path)
        site.start()
        site.wait_ready()
        image = frame(TEST_SEEDS[11], 0)
        for number in range(SNAPSHOTS):
            site.send(json_snapshot(image, f"camera-{number}", number=number, backend_preference="dual"))
        site.wait_for(results=SNAPSHOTS, errors=0)
        lines = site.get("/metrics").text.splitlines()
        [by_memory] = [line for line in lines if line.startswith('edge_gateway_tensor_transfers_total{transport="sh')]
        assert float(by_memory.rsplit(" ", 1)[1]) > 0
        assert list((tmp_path / "spool_dir").iterdir())
        site.process.stop(20.0)
        assert "Operation not permitted" not in site.process.log_excerpt()
