"""A segment of shared memory: nobody else's, and gone when its gateway is gone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.adapters.memory_segment import PREFIX, Segment, remove_leftovers

SIZE = 2**20


def files(folder: Path) -> list[Path]:
    return list(folder.glob("*"))


def test_only_its_user_can_read_it_and_nobody_can_guess_its_name(tmp_path: Path) -> None:
    one, other = Segment(SIZE, tmp_path), Segment(SIZE, tmp_path)

    assert one.name.startswith(PREFIX)
    assert len(one.name.removeprefix(PREFIX)) == 32
    assert one.name != other.name
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o600
    one.remove()
    other.remove()


def test_a_folder_that_hands_on_its_group_lets_that_group_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    segment = Segment(SIZE, tmp_path)

    assert stat.S_IMODE(segment.path.stat().st_mode) == 0o660
    segment.remove()


def test_it_takes_memory_only_where_it_is_committed(tmp_path: Path) -> None:
    segment = Segment(SIZE, tmp_path)
    assert segment.path.stat().st_blocks == 0
    segment.commit(0, 65536)
    assert segment.path.stat().st_blocks * 512 == 65536
    segment.discard(0, 65536)
    assert segment.path.stat().st_blocks == 0
    segment.remove()


def test_a_name_that_somebody_removed_or_took_is_not_ours_any_more(tmp_path: Path) -> None:
    segment, gone = Segment(SIZE, tmp_path), Segment(SIZE, tmp_path)
    assert segment.exists()
    for each in (segment, gone):
        each.path.unlink()
    segment.path.write_text("another's")
    assert not segment.exists()
    assert not gone.exists()

    segment.remove()

    assert segment.path.read_text() == "another's"


def test_what_a_killed_gateway_left_is_removed_and_what_a_living_one_uses_stays(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from gateway.adapters.memory_segment import Segment\n"
        f"segment = Segment({SIZE}, pathlib.Path(sys.argv[1])); print(segment.name, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            left = tmp_path / other.stdout.readline().strip()
            own = Segment(SIZE, tmp_path)
            remove_leftovers(tmp_path)
            assert {left, own.path} == set(files(tmp_path))
        finally:
            other.kill()
    remove_leftovers(tmp_path)

    assert files(tmp_path) == [own.path]
    own.remove()
    assert files(tmp_path) == []


def test_a_link_of_another_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / f"{PREFIX}{'0' * 32}").symlink_to(target)

    remove_leftovers(tmp_path)

    assert target.read_text() == "kept"


def test_no_folder_is_an_error_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Segment(SIZE, tmp_path / "none")


def test_a_removed_one_can_be_used_until_nobody_holds_it_and_touches_no_other_file(tmp_path: Path) -> None:
    segment = Segment(SIZE, tmp_path)
    segment.remove()
    with (tmp_path / "the next file that is opened").open("wb") as other:
        segment.commit(0, 65536)

        assert os.fstat(other.fileno()).st_size == 0


def test_no_file_is_left_open(tmp_path: Path) -> None:
    before = len(files(Path("/proc/self/fd")))
    for _ in range(5):
        Segment(SIZE, tmp_path).remove()

    assert len(files(Path("/proc/self/fd"))) == before
