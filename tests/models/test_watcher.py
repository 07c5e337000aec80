"""The watcher on real files: what has changed is told once it rests, and never before."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import pytest
import structlog.testing

from gateway.models.watcher import DropWatcher
from tests.harness import until

QUIET_S = 0.3
POLL_S = 0.2
LIMIT_S = 20.0
Mode = Literal["events", "poll"]


@pytest.fixture(params=["events", "poll"])
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With two folders that have been at rest for a while."""
    root = tmp_path / "models"
    for name in ("first-onnx", "second-onnx"):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.onnx").write_bytes(b"weights")
    deadline = time.time() + QUIET_S
    while time.time() < deadline + 0.05:  # until the clock says that they rest
        time.sleep(0.01)
    return root


class Told:
    """What a watcher has told so far, and when."""

    def __init__(self, watcher: DropWatcher) -> None:
        self.watcher = watcher
        self.names: list[str] = []
        self.at: dict[str, float] = {}

    async def follow(self) -> None:
        while True:
            for name in sorted(await self.watcher.settled()):
                self.names.append(name)
                self.at[name] = time.monotonic()

    async def of(self, *names: str) -> None:
        """Wait until all of these have been told."""
        await until(lambda: set(names) <= set(self.names), f"{names}, told {self.names}")


@contextlib.asynccontextmanager
async def watching(repository: Path, mode: Mode) -> AsyncIterator[Told]:
    async with DropWatcher(repository, repository / ".edge-gateway", QUIET_S, mode, poll_s=POLL_S) as watcher:
        told = Told(watcher)
        following = asyncio.create_task(told.follow())
        try:
            yield told
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


async def test_a_slow_copy_is_told_once_and_only_when_it_is_done(repository: Path, mode: Mode) -> None:
    """In pieces, with stalls shorter than the time of quiet."""
    async with watching(repository, mode) as told:
        folder = repository / "first-onnx" / "2"
        folder.mkdir()
        last = time.monotonic()
        with (folder / "model.onnx").open("wb", buffering=0) as file:
            for _ in range(15):
                file.write(b"x" * 4096)
                last = time.monotonic()
                await asyncio.sleep(QUIET_S / 2)
                assert told.names == []
        await told.of("first-onnx")
        assert told.at["first-onnx"] - last >= QUIET_S
        assert told.names == ["first-onnx"]


async def test_what_changes_all_the_time_holds_back_no_other(repository: Path, mode: Mode) -> None:
    async with watching(repository, mode) as told:

        async def scribble() -> None:
            while True:
                with (repository / "first-onnx" / "log").open("ab") as file:
                    file.write(b"x")
                await asyncio.sleep(QUIET_S / 6)

        scribbling = asyncio.create_task(scribble())
        began = time.time()
        await until(lambda: "first-onnx" in told.watcher.restless, "unrest")
        (repository / "second-onnx" / "1" / "model.onnx").write_bytes(b"other")
        await told.of("second-onnx")
        assert told.names == ["second-onnx"]
        assert began - 1 < told.watcher.restless["first-onnx"] < time.time()
        assert set(told.watcher.restless) == {"first-onnx"}
        scribbling.cancel()
        await told.of("first-onnx")
        assert told.watcher.restless == {}


def _renamed(repository: Path) -> None:
    ready = repository.parent / "ready"
    ready.mkdir()
    (ready / "model.onnx").write_bytes(b"better")
    ready.rename(repository / "first-onnx" / "2")


def _same_size_same_time(repository: Path) -> None:
    """As cp -p over a file does."""
    path = repository / "first-onnx" / "1" / "model.onnx"
    before = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _allowed(repository: Path) -> None:
    (repository / "first-onnx" / "1" / "model.onnx").chmod(0o600)


def _swapped(repository: Path) -> None:
    (repository / "first-onnx" / "new").symlink_to("1")


def _emptied(repository: Path) -> None:
    shutil.rmtree(repository / "first-onnx" / "1")


def _removed(repository: Path) -> None:
    shutil.rmtree(repository / "first-onnx")


def _new_version_folder(repository: Path) -> None:
    (repository / "first-onnx" / "2").mkdir()


@pytest.mark.parametrize(
    "change",
    [_renamed, _same_size_same_time, _allowed, _swapped, _emptied, _removed, _new_version_folder],
    ids=lambda change: change.__name__,
)
async def test_every_kind_of_change_is_told(repository: Path, mode: Mode, change: Callable[[Path], None]) -> None:
    async with watching(repository, mode) as told:
        change(repository)
        await told.of("first-onnx")
        assert told.names == ["first-onnx"]


async def test_a_hidden_file_under_way_keeps_its_folder_from_rest(repository: Path, mode: Mode) -> None:
    """rsync writes into .model.onnx.AbCdEf and renames at the end."""
    async with watching(repository, mode) as told:
        folder = repository / "first-onnx" / "1"
        with (folder / ".model.onnx.AbCdEf").open("wb", buffering=0) as file:
            for _ in range(8):
                file.write(b"x")
                await asyncio.sleep(QUIET_S / 2)
        assert told.names == []
        (folder / ".model.onnx.AbCdEf").rename(folder / "model.onnx")
        await told.of("first-onnx")


async def test_writing_through_a_mapping_keeps_a_folder_from_rest(repository: Path, mode: Mode) -> None:
    async with watching(repository, mode) as told:
        path = repository / "first-onnx" / "1" / "weights"
        path.write_bytes(b"\0" * mmap.PAGESIZE)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            for number in range(8):
                mapping[number] = 1
                mapping.flush()
                await asyncio.sleep(QUIET_S / 2)
                assert told.names == []
        await told.of("first-onnx")


async def test_many_new_folders_are_all_told(repository: Path, mode: Mode) -> None:
    names = [f"model-{number}" for number in range(200)]
    async with watching(repository, mode) as told:
        for name in names:
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "1" / "model.onnx").write_bytes(b"x")
        await told.of(*names)
        assert sorted(told.names) == sorted(names)


async def test_what_is_written_while_it_works_on_the_last_is_not_missed(repository: Path, mode: Mode) -> None:
    async with DropWatcher(repository, repository / ".edge-gateway", QUIET_S, mode, poll_s=POLL_S) as watcher:
        (repository / "first-onnx" / "a").write_bytes(b"x")
        async with asyncio.timeout(LIMIT_S):
            assert await watcher.settled() == {"first-onnx"}
            (repository / "second-onnx" / "b").write_bytes(b"x")  # nobody waits now
            await asyncio.sleep(QUIET_S)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watcher.settled(), 0.01)
            assert await watcher.settled() == {"second-onnx"}


async def test_its_own_folder_hidden_ones_and_loose_files_are_not_watched(repository: Path, mode: Mode) -> None:
    async with watching(repository, mode) as told:
        for name in (".edge-gateway", ".git"):
            (repository / name).mkdir()
            (repository / name / "state.json").write_bytes(b"{}")
        (repository / "README.md").write_bytes(b"x")
        (repository / "first-onnx" / "1" / "__pycache__").mkdir()
        (repository / "first-onnx" / "1" / "__pycache__" / "model.pyc").write_bytes(b"x")
        (repository / "second-onnx" / "x").write_bytes(b"x")
        await told.of("second-onnx")
        assert told.names == ["second-onnx"]


async def test_a_copy_that_was_under_way_at_the_start_is_restless_from_the_start(repository: Path, mode: Mode) -> None:
    (repository / "first-onnx" / "1" / "model.onnx").write_bytes(b"half")
    async with DropWatcher(repository, repository / ".edge-gateway", QUIET_S, mode, poll_s=POLL_S) as watcher:
        assert set(watcher.restless) == {"first-onnx"}
        async with asyncio.timeout(LIMIT_S):
            assert await watcher.settled() == {"first-onnx"}


async def test_a_repository_that_goes_and_comes_back_has_lost_no_model(repository: Path, mode: Mode) -> None:
    away = repository.parent / "away"
    with structlog.testing.capture_logs() as logs:
        async with watching(repository, mode) as told:
            await asyncio.to_thread(repository.rename, away)
            await until(lambda: any("cannot be read" in each["event"] for each in logs), "the warning")
            assert told.names == []
            (away / "second-onnx" / "new").write_bytes(b"x")
            away.rename(repository)
            await told.of("second-onnx")
            (repository / "first-onnx" / "new").write_bytes(b"x")
            await told.of("first-onnx")
            assert told.names == ["second-onnx", "first-onnx"]
    assert len([each for each in logs if "cannot be read" in each["event"]]) == 1


async def test_a_volume_that_is_mounted_later(tmp_path: Path, mode: Mode) -> None:
    async with watching(tmp_path / "models", mode) as told:
        (tmp_path / "new" / "first-onnx").mkdir(parents=True)
        (tmp_path / "new").rename(tmp_path / "models")
        await told.of("first-onnx")


async def test_a_repository_that_is_swapped_by_a_link_is_followed(tmp_path: Path, mode: Mode) -> None:
    """As git-sync does."""
    for name in ("one", "two"):
        (tmp_path / name / "first-onnx").mkdir(parents=True)
    (tmp_path / "two" / "second-onnx").mkdir()
    (tmp_path / "models").symlink_to("one")
    async with watching(tmp_path / "models", mode) as told:
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(tmp_path / "models")
        (tmp_path / "one" / "first-onnx" / "wake").write_bytes(b"x")
        await told.of("second-onnx")
        (tmp_path / "two" / "first-onnx" / "model.onnx").write_bytes(b"x")
        await told.of("first-onnx")


@pytest.mark.parametrize("target", ["..", ".", "/", "gone", "self"])
async def test_links_in_circles_and_out_of_the_repository_end(repository: Path, mode: Mode, target: str) -> None:
    for name in ("self", "again"):
        (repository / "first-onnx" / name).symlink_to(target)
    async with watching(repository, mode) as told:
        (repository / "second-onnx" / "x").write_bytes(b"x")
        await told.of("second-onnx")


async def test_what_a_link_in_the_repository_leads_to_belongs_to_both(repository: Path, mode: Mode) -> None:
    (repository / "blobs").mkdir()
    (repository / "first-onnx" / "2").symlink_to("../blobs")
    async with watching(repository, mode) as told:
        (repository / "blobs" / "model.onnx").write_bytes(b"x")
        await told.of("blobs", "first-onnx")


async def test_a_cancelled_watcher_ends_at_once_and_leaves_no_thread(repository: Path, mode: Mode) -> None:
    before = set(threading.enumerate())
    async with DropWatcher(repository, repository / ".edge-gateway", QUIET_S, mode, poll_s=POLL_S) as watcher:
        waiting = asyncio.create_task(watcher.settled())
        await asyncio.sleep(0.3)
        began = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert time.monotonic() - began < 0.1
    await until(lambda: set(threading.enumerate()) <= before, "the threads")


def test_without_events_it_polls_and_says_so(tmp_path: Path) -> None:
    """A process whose last two descriptors are enough to look, but not for inotify."""
    script = """
import asyncio, os, pathlib, resource, sys, watchfiles
from gateway.models.watcher import DropWatcher
root = pathlib.Path(sys.argv[1])

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        os.close(held.pop())
        os.close(held.pop())
    async with DropWatcher(root, root / "state", 0.3, "events") as watcher, asyncio.timeout(20):
        (root / "model" / "2").mkdir()
        print(await watcher.settled())

asyncio.run(main())
"""
    (tmp_path / "model").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "frozenset({'model'})" in done.stdout
    assert done.stdout.count("File events cannot be had") == 1
    assert "Too many open files" in done.stdout
