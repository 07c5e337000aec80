"""Backup and restore by the very commands of docs/backup.md, under load."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

from gateway.rollout.commands import Action
from gateway.rollout.steps import Ending, Step
from tests.command_line import ROOT
from tests.harness import until
from tests.rollout.test_rollouts import CAMERAS, QUICK, Shop, quick  # noqa: F401 - its intervals for this file too

PAGE = (ROOT / "docs" / "backup.md").read_text()
CHANGED_WHILE_READ = 1


def commands(heading: str, place: Path) -> list[str]:
    """The shell lines of a section, for another folder than the one that the page is about."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"```sh\n(cd .*?)```", section, re.DOTALL)
    moved = block.replace("/var/lib/edge-gateway", f"{place}/site").replace("/backup", f"{place}/backup")
    return list(moved.splitlines())


def carry_out(heading: str, place: Path) -> None:
    change_folder, *lines = commands(heading, place)
    for line in lines:
        done = subprocess.run(["bash", "-c", f"{change_folder} && {line}"], capture_output=True, text=True, check=False)
        tolerated = {0, CHANGED_WHILE_READ} if line.startswith("tar -c") else {0}
        assert done.returncode in tolerated, (line, done.stderr)


async def test_what_was_copied_under_load_serves_the_same_version_after_all_was_lost(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    models, state = tmp_path / "site" / "models", tmp_path / "site" / "state"
    models.mkdir(parents=True)
    shop = Shop(models)
    shop.model(rollout={**QUICK, "shadow": 1_000_000})  # a trial lasts until somebody ends it
    shop.drop(1)
    async with shop.open(model_state_dir=state) as gateway:
        shop.drop(2)
        await gateway.at(2, Step.SHADOW)
        await gateway.command(Action.PROMOTE)
        await gateway.ended(2, Ending.PROMOTED)
        await gateway.command(Action.ROLLBACK)
        await until(lambda: gateway.version == 1, "the version before")
        shop.drop(3)
        await gateway.at(3, Step.SHADOW)
        await asyncio.to_thread(carry_out, "Back up", tmp_path)
        await gateway.command(Action.PROMOTE)
        await gateway.ended(3, Ending.PROMOTED)

    shutil.rmtree(tmp_path / "site")
    (tmp_path / "site").mkdir()
    carry_out("Restore", tmp_path)

    async with shop.open(model_state_dir=state) as gateway:
        await gateway.at(3, Step.SHADOW)
        await until(lambda: len(gateway.place.results) > len(CAMERAS), "answers")
        assert {body["model_version"] for body in gateway.place.results} == {"1"}
        assert not gateway.place.errors
