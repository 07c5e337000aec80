"""What `edge-gateway doctor` says of the folder in which answers wait for the broker."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.adapters.spool import Spool
from gateway.doctor.findings import Finding, Level
from gateway.doctor.machine import check_machine
from gateway.messages import Publication
from tests.flow.builders import settings


def findings(tmp_path: Path, spool_dir: Path | None) -> list[Finding]:
    """Those that are about the spool."""
    (tmp_path / "models").mkdir(exist_ok=True)
    config = settings(model_repository=tmp_path / "models", spool_dir=spool_dir, gateway_id="gw")
    return [each for each in check_machine(config) if "answer" in each.what or "spool" in each.what]


def test_without_a_spool_nothing_is_said(tmp_path: Path) -> None:
    assert findings(tmp_path, None) == []


def test_space_and_what_waits_are_told_and_nothing_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "to" / "come"
    space, waiting = findings(tmp_path, folder)
    assert "free for answers" in space.what
    assert waiting.what == "0 answers wait on disk"
    assert not folder.parent.exists()


def test_one_that_waits_and_a_gateway_that_runs(tmp_path: Path) -> None:
    async def leave_one() -> list[Finding]:
        spool = Spool(tmp_path / "spool", "gw", 2**20)
        spool.open()
        await spool.put([("event", Publication("out", b"{}"))])
        running = findings(tmp_path, tmp_path / "spool")
        await spool.close()
        return running

    assert "the gateway runs" in asyncio.run(leave_one())[-1].what
    assert findings(tmp_path, tmp_path / "spool")[-1].what == "1 answer waits on disk"


def test_a_folder_that_is_a_file_is_a_problem_and_a_damaged_spool_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = findings(tmp_path, tmp_path / "file" / "spool")
    assert (problem.level, "SPOOL_DIR" in problem.fix) == (Level.PROBLEM, True)
    asyncio.run(_damaged(tmp_path / "spool"))
    assert findings(tmp_path, tmp_path / "spool")[-1].level is Level.WARNING


def test_files_that_were_set_aside_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    asyncio.run(_damaged(folder))
    spool = Spool(folder, "gw", 2**20)
    assert not spool.open()
    asyncio.run(spool.close())
    (told,) = (each for each in findings(tmp_path, folder) if each.level is Level.WARNING)
    assert told.what == "1 damaged file with answers that are not sent"
    assert "damaged-" in told.where


async def _damaged(folder: Path) -> None:
    spool = Spool(folder, "gw", 2**20)
    spool.open()
    await spool.close()
    spool.file.write_bytes(b"not a database at all" * 500)
