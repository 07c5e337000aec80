"""What the demo does when a part of it is missing or ends by itself; the demo as a whole is in tests/e2e."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

from gateway.config import Settings
from gateway.errors import StackError
from gateway.local.demo import run_demo, show_until_over
from gateway.local.processes import ChildProcess
from gateway.local.show import Show
from gateway.local.stack import run_stack
from gateway.testing import MemoryBroker
from tests.broker_session import DEADLINE_S, running, until

SNAPSHOTS = "edge-ai/a/b/c/camera/snapshots"


async def test_a_session_that_ends_by_itself_is_noticed_at_once(tmp_path: Path) -> None:
    hub = MemoryBroker()
    viewer = hub.client("demo-viewer")
    with contextlib.ExitStack() as cameras:
        watching = asyncio.create_task(show_until_over(viewer, Show(Settings(), tmp_path), None, (), cameras))
        await until(lambda: viewer.connected)
        async with running(hub.client("demo-viewer")), asyncio.timeout(DEADLINE_S):
            said = await watching
    assert said is not None
    assert said.startswith("the viewer's session with the broker ended by itself: Two gateways share")


async def test_a_child_that_ends_by_itself_is_noticed_with_its_last_lines(tmp_path: Path) -> None:
    child = ChildProcess("the cameras", [sys.executable, "-c", "print('no more film')"])
    child.start()
    with contextlib.ExitStack() as cameras:
        cameras.callback(child.kill)
        async with asyncio.timeout(DEADLINE_S):
            viewer = MemoryBroker().client("demo-viewer")
            said = await show_until_over(viewer, Show(Settings(), tmp_path), None, [child], cameras)
    assert said is not None
    assert said.startswith("the cameras ended by itself")


async def test_any_message_is_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = MemoryBroker()
    show = Show(Settings(), tmp_path)
    foreign = [
        b'{"message_type": "ai_inference_result", "predictions": {}}',
        b'{"message_type": "dual_backend_comparison", "backends": [1]}',
        b'{"message_type": "ai_inference_error"}',
    ]
    async with running(hub.client("demo-viewer", ["#"])) as viewer:
        for payload in (b"garbage", b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"[" * 10_000, *foreign):
            hub.publish(SNAPSHOTS, payload)
            await show.see(await viewer.next())
    assert show.counts["snapshots"] == 5
    assert show.counts["results"] == show.counts["comparisons"] == 0
    assert "snapshots    5" in show.summary()
    assert capsys.readouterr().out.count("not as documented") == len(foreign)


def test_what_is_not_installed_is_said_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pytriton", None)  # as Python itself marks a module that is not to be found
    with pytest.raises(StackError, match="the embedded Triton is not installed"):
        run_demo(tmp_path, seconds=None, rate=1, output=tmp_path / "out")
    with pytest.raises(StackError, match="the embedded Triton is not installed"):
        run_stack(tmp_path)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()
