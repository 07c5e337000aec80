"""The folder from which the embedded Triton takes the code of its backends."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from gateway.local.backend_directory import cache_folder, first_private

ROOT = Path(__file__).parents[2]
STRANGER = 65_534


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_in_a_source_checkout_it_lies_inside_and_git_ignores_it() -> None:
    folder = cache_folder()
    assert folder == ROOT / ".cache" / "stack"
    assert mode(folder) == 0o700
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    ignored = subprocess.run([git, "check-ignore", str(folder)], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0


def test_a_folder_is_made_private(tmp_path: Path) -> None:
    new, open_to_all = tmp_path / "a" / "b", tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for folder in (new, open_to_all):
        assert first_private([folder]) == folder
        assert mode(folder) == 0o700


def test_where_no_folder_can_be_the_next_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert first_private([tmp_path / "file" / "x", tmp_path / "next"]) == tmp_path / "next"


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    planted = tmp_path / "planted"
    planted.mkdir()
    os.chown(planted, STRANGER, STRANGER)
    assert first_private([planted, tmp_path / "ours"]) == tmp_path / "ours"
    assert planted.stat().st_uid == STRANGER


def test_the_last_resort_is_a_private_temporary_folder() -> None:
    folder = first_private([])
    assert mode(folder) == 0o700
    assert folder.stat().st_uid == os.getuid()
    assert str(os.getuid()) != folder.name.rsplit("-", 1)[-1]
    assert first_private([]) == folder, "one for each process"
