"""Input tensors through shared memory between the real parts, and by bytes where that cannot be."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.adapters.memory_segment import PREFIX, SHARED_MEMORY
from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import REPOSITORY, RealSite, until

pytestmark = pytest.mark.triton
BY_MEMORY = 'edge_gateway_tensor_transfers_total{transport="shared_memory"}'
FALLBACKS = "edge_gateway_shared_memory_fallbacks_total"


@pytest.fixture(scope="module")
def image() -> bytes:
    return frame(TEST_SEEDS[10], 0)


@pytest.fixture
def triton() -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(REPOSITORY) as triton:
        yield triton


def ask(site: RealSite, image: bytes, *numbers: int) -> None:
    """Send these snapshots to both variants, and wait until all that were sent have been answered without error."""
    for number in numbers:
        site.send(json_snapshot(image, "camera", number=number, backend_preference="dual"))
    site.answered(numbers[-1] + 1)
    assert not site.errors


def counted(site: RealSite, sample: str) -> float:
    """One sample, or the sum of a metric's samples."""
    lines = site.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(sample))


def segments(site: RealSite) -> list[Path]:
    """The files that the gateway has mapped, without those that have been deleted."""
    maps = Path(f"/proc/{site.process.pid}/maps").read_text()
    return sorted({Path(path) for path in re.findall(rf"{SHARED_MEMORY}/{PREFIX}\w+$", maps, re.MULTILINE)})


def test_what_is_deleted_or_lost_with_triton_is_made_and_registered_again(
    shared_broker: EmbeddedBroker, triton: EmbeddedTriton, image: bytes
) -> None:
    with RealSite(shared_broker, triton) as site:
        site.start()
        site.wait_ready()
        ask(site, image, *range(6))
        assert counted(site, BY_MEMORY) >= 4

        [file] = segments(site)
        file.unlink()
        before = counted(site, BY_MEMORY)
        ask(site, image, 6)
        assert counted(site, BY_MEMORY) == before + 2

        triton.kill()
        triton.start()
        until(site.is_ready, "readiness after Triton's restart")
        number = 7

        def again() -> bool:
            """Whether a snapshot goes by memory that has a file again."""
            nonlocal number
            before = counted(site, BY_MEMORY)
            ask(site, image, number)
            number += 1
            return bool(segments(site)) and counted(site, BY_MEMORY) == before + 2

        until(again, "shared memory after Triton's restart")
        [anew] = segments(site)
        assert anew.exists()
        assert counted(site, f'{FALLBACKS}{{reason="lost"}}') >= 1
        assert site.process.stop(10.0) == 0
        assert not anew.exists()


@pytest.mark.parametrize(
    ("size", "reason", "said"),
    [
        pytest.param("64m", "unavailable", "Unable to open shared memory region", id="of-another-machine"),
        pytest.param("512k", "full", "No space left on device", id="too-small"),
    ],
)
def test_where_it_cannot_be_used_all_goes_by_bytes_and_is_said_once(
    shared_broker: EmbeddedBroker, shared_triton: EmbeddedTriton, image: bytes, size: str, reason: str, said: str
) -> None:
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("a /dev/shm of its own takes root")
    site = RealSite(shared_broker, shared_triton)
    mount = f'mount -t tmpfs -o size={size} tmpfs {SHARED_MEMORY} && exec "$@"'
    site.launcher = ("unshare", "-m", "sh", "-c", mount, "sh")
    with site:
        site.start()
        site.wait_ready()
        ask(site, image, *range(6))

        assert counted(site, BY_MEMORY) == 0
        assert counted(site, f'{FALLBACKS}{{reason="{reason}"}}') >= 3
        lines = [line for line in site.process.log_tail(500) if said in line]
        assert len(lines) == 1
        assert json.loads(lines[0])["level"] == "warning"
        assert json.loads(lines[0])["fix"]
