"""One holder at a time, with real processes that are killed, stopped and woken."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.local.processes import ChildProcess
from gateway.rollout.lease import FileLease, new_identity
from tests.command_line import ROOT, environment
from tests.harness import until

TTL_S = 2.0
# Contends, and says of each turn when it looked, whether it held the lease for sure, and when it had done its work.
GATEWAY = """
import asyncio, sys, time
from pathlib import Path
from gateway.rollout.lease import FileLease

async def main(folder, name, log, ttl, give_back_every):
    lease = FileLease(Path(folder), f"{name}/x", float(ttl))
    with open(log, "a", buffering=1) as out:
        for turn in range(1, 10**9):
            await lease.hold()
            begun = time.monotonic()
            if lease.check():
                time.sleep(0.002)
                out.write(f"{begun} {time.monotonic()}\\n")
                if int(give_back_every) and turn % int(give_back_every) == 0:
                    await lease.release()
            await asyncio.sleep(0.005)

asyncio.run(main(*sys.argv[1:]))
"""


class Rival:
    """A process that contends for the lease of `folder` until it is ended."""

    def __init__(self, folder: Path, name: str, give_back_every: int = 0) -> None:
        self.name = name
        self._log = folder.parent / f"{name}.log"
        arguments = [str(folder), name, str(self._log), str(TTL_S), str(give_back_every)]
        path = {"PYTHONPATH": str(ROOT)}
        self._process = ChildProcess(name, [sys.executable, "-c", GATEWAY, *arguments], env=environment(**path))
        self._process.start()

    def send(self, number: int) -> None:
        if self._process.running:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    @property
    def turns(self) -> list[tuple[float, float]]:
        """Begin and end of each turn in which it held the lease; the last line may be half written."""
        lines = self._log.read_text().split("\n")[:-1] if self._log.exists() else []
        return [(float(begin), float(end)) for begin, end in (line.split() for line in lines)]

    def held_since(self, moment: float) -> bool:
        return any(begin > moment for begin, _ in self.turns[-5:])


NewRival = Callable[..., Rival]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir()
    return path


@pytest.fixture
def rival(folder: Path) -> Iterator[NewRival]:
    rivals: list[Rival] = []

    def make(name: str, give_back_every: int = 0) -> Rival:
        rivals.append(Rival(folder, name, give_back_every))
        return rivals[-1]

    yield make
    for each in rivals:
        each.kill()


def overlaps(rivals: list[Rival]) -> list[str]:
    """Turns of two rivals at the same time, but for those that were stopped in the middle of one."""
    turns = sorted((begin, end, each.name) for each in rivals for begin, end in each.turns if end - begin < TTL_S / 5)
    return [f"{a} and {b}" for a, b in itertools.pairwise(turns) if b[0] < a[1]]


def lock_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_the_next_one_follows_a_killed_holder_at_once(rival: NewRival) -> None:
    first = rival("first")
    await until(lambda: bool(first.turns))
    second = rival("second")
    await asyncio.sleep(TTL_S * 1.2)  # for as long as the holder lives, nobody else gets it
    assert second.turns == []
    first.kill()
    killed = time.monotonic()
    await until(lambda: bool(second.turns))
    assert second.turns[0][0] - killed < TTL_S / 2
    assert overlaps([first, second]) == []


async def test_a_stopped_holder_loses_it_and_steps_down_when_it_wakes(folder: Path, rival: NewRival) -> None:
    first = rival("first")
    await until(lambda: bool(first.turns))
    second = rival("second")
    await until(lambda: len(first.turns) > 20)
    first.send(signal.SIGSTOP)
    stopped = time.monotonic()
    await until(lambda: bool(second.turns))
    assert TTL_S / 2 < second.turns[0][0] - stopped < TTL_S * 3
    assert lock_files(folder) == ["roller.2.lock"]
    first.send(signal.SIGCONT)
    woken = time.monotonic()
    await until(lambda: second.held_since(woken + TTL_S))
    # The one write for which it had looked before it was stopped cannot be called back; after that there is none.
    assert len([begin for begin, end in first.turns if end > woken]) <= 1
    assert not [begin for begin, _ in first.turns if begin > woken]
    second.kill()
    await until(lambda: first.held_since(woken + TTL_S))


async def test_among_many_there_is_one_at_each_moment(rival: NewRival) -> None:
    """Some give it back, some are killed, some are stopped and woken after their time."""
    rivals = [rival(f"r{number}", give_back_every=7 * (number % 2)) for number in range(4)]
    await until(lambda: any(each.turns for each in rivals))
    dice = random.Random(4)
    deadline = time.monotonic() + 6
    stopped: list[tuple[float, Rival]] = []
    while time.monotonic() < deadline:
        await asyncio.sleep(dice.uniform(0.02, 0.3))
        each = dice.choice(rivals[-4:])
        if dice.random() < 0.3:
            each.kill()
            rivals.append(rival(f"r{len(rivals)}", give_back_every=dice.choice((0, 5))))
        elif dice.random() < 0.3:
            each.send(signal.SIGSTOP)
            stopped.append((time.monotonic() + dice.uniform(0.1, TTL_S * 2), each))
        for moment, sleeper in [pair for pair in stopped if pair[0] < time.monotonic()]:
            stopped.remove((moment, sleeper))
            sleeper.send(signal.SIGCONT)
    assert overlaps(rivals) == []
    assert len([each for each in rivals if each.turns]) > 2


async def test_a_deleted_file_is_noticed_before_the_next_write(folder: Path) -> None:
    first, second = FileLease(folder, "first/1"), FileLease(folder, "second/2")
    assert await first.hold()
    assert not await second.hold()
    (folder / "roller.1.lock").unlink()
    assert not first.check()
    assert await second.hold()
    assert not await first.hold()
    assert (first.check(), second.check(), first.holder, second.holder) == (False, True, "second", "second")
    shutil.rmtree(folder)
    assert not second.check()
    assert await first.hold()
    assert not await second.hold()
    await first.release()
    await second.release()


async def test_a_holder_that_was_away_asks_again_before_it_writes(folder: Path) -> None:
    lease = FileLease(folder, "gw/1", ttl_s=1.0)
    assert await lease.hold()
    assert lease.check()
    await asyncio.sleep(0.8)
    assert not lease.check()
    assert await lease.hold()  # nobody has taken it
    assert lock_files(folder) == ["roller.1.lock"]
    await lease.release()


async def test_given_back_it_is_free_at_once(folder: Path) -> None:
    first, second = FileLease(folder, new_identity("hall-3")), FileLease(folder, new_identity("hall-3"))
    with capture_logs() as logs:
        assert await first.hold()
        assert not await second.hold()
        assert second.holder == "hall-3"
        for _ in range(3):
            await first.hold()
            await second.hold()
        await first.release()
        assert not first.check()
        assert await second.hold()
        assert second.check()
        await second.release()
    assert [entry["event"] for entry in logs] == [
        "This gateway runs the rollouts now",
        "Another gateway runs the rollouts",
        "This gateway has ended its part in the rollouts",
        "This gateway runs the rollouts now",
        "This gateway has ended its part in the rollouts",
    ]


async def test_an_end_is_no_warning_and_a_loss_is_one(folder: Path) -> None:
    first, second = FileLease(folder, "first/1"), FileLease(folder, "second/2")
    with capture_logs() as ended:
        assert await first.hold()
        await first.release()
    assert [entry["log_level"] for entry in ended] == ["info", "info"]
    assert await first.hold()
    (folder / "roller.1.lock").unlink()
    assert await second.hold()
    with capture_logs() as lost:
        await first.release()
    assert [(entry["event"], entry["log_level"]) for entry in lost] == [
        ("This gateway runs no rollouts any more", "warning")
    ]
    await second.release()


async def test_a_holder_that_wakes_during_the_takeover_keeps_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FileLease(folder, "first/1", ttl_s=1.0), FileLease(folder, "second/2", ttl_s=1.0)
    assert await first.hold()
    assert not await second.hold()
    await asyncio.sleep(1.0)
    lock = fcntl.flock

    def lock_while_the_first_renews(descriptor: int, operation: int) -> None:
        lock(descriptor, operation)
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "roller.2.lock":
            os.utime(folder / "roller.1.lock")

    monkeypatch.setattr(fcntl, "flock", lock_while_the_first_renews)
    assert not await second.hold()
    assert lock_files(folder) == ["roller.1.lock"]
    assert await first.hold()
    await first.release()


async def test_a_file_that_is_superseded_while_it_is_taken_is_not_held(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fdatasync

    def sync_while_another_supersedes(descriptor: int) -> None:
        sync(descriptor)
        (folder / "roller.2.lock").touch()

    lease = FileLease(folder, "gw/1")
    monkeypatch.setattr(os, "fdatasync", sync_while_another_supersedes)
    assert not await lease.hold()
    assert await lease.hold()  # nobody has locked the next generation
    await lease.release()


async def test_an_unlocked_file_of_another_machine_is_believed_until_it_stands_still(folder: Path) -> None:
    """Its locks may not reach us."""
    record = {"holder": "far/1", "place": "other-kernel:1", "pid": 7, "renewed_at": 0.0}
    path = folder / "roller.3.lock"
    lease = FileLease(folder, "near/2", ttl_s=0.4)
    begun = time.monotonic()
    for turn in range(8):
        path.write_text(json.dumps({**record, "renewed_at": turn}))
        assert not await lease.hold()
        assert lease.holder == "far"
        await asyncio.sleep(0.1)
    assert time.monotonic() - begun > 0.8
    written = time.monotonic()
    while not await lease.hold():
        await asyncio.sleep(0.01)
    assert 0.2 < time.monotonic() - written < 10
    assert lock_files(folder) == ["roller.3.lock"]
    # And should it be alive after all, whoever finds the other's name in the file gives way.
    path.write_text(json.dumps(record))
    await until_false(lease)
    await lease.release()


async def until_false(lease: FileLease) -> None:
    deadline = time.monotonic() + 5
    while await lease.hold():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 5000, b"[" * 100_000, b"{}", b'{"holder": 7}'])
async def test_what_somebody_wrote_into_the_file_keeps_nobody_out_for_long(folder: Path, content: bytes) -> None:
    (folder / "roller.1.lock").write_bytes(content)
    lease = FileLease(folder, "gw/1", ttl_s=0.3)
    deadline = time.monotonic() + 5
    while not await lease.hold():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert lease.problem == ""
    await lease.release()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("make", [a_pipe, a_link, Path.mkdir])
async def test_what_is_no_file_is_named(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder / "roller.1.lock")
    lease = FileLease(folder, "gw/1")
    with capture_logs() as logs:
        assert not await lease.hold()
        assert not await lease.hold()
    assert str(folder) in lease.problem
    assert [entry["event"] for entry in logs] == ["Whether this gateway may run rollouts cannot be settled"]


async def test_a_volume_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    lease = FileLease(tmp_path / "volume" / "state", "gw/1")
    assert not await lease.hold()
    assert "Mount the volume" in lease.problem
    assert not (tmp_path / "volume").exists()
    (tmp_path / "volume").mkdir()
    assert await lease.hold()
    assert lease.problem == ""
    await lease.release()


ON_A_VOLUME = """
import asyncio, sys
from pathlib import Path
from gateway.rollout.lease import FileLease

async def main(folder):
    first, second = FileLease(Path(folder), "a/1", 1.0), FileLease(Path(folder), "b/2", 1.0)
    held = [await first.hold()]
    for _ in range(50):
        await asyncio.sleep(0.03)
        held.append(await first.hold() and not await second.hold())
    print(all(held), any(held), first.problem)

asyncio.run(main(sys.argv[1]))
"""


def on_a_volume(folder: Path, options: str, prepare: str) -> str:
    """What `ON_A_VOLUME` prints on a file system of its own, mounted where nobody else sees it."""
    script = f'mount -t tmpfs -o {options} none "$1" && {{ {prepare}; }} && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(folder), sys.executable, ON_A_VOLUME]
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(folder)], check=False).returncode:
        pytest.skip("mounting needs root")
    done = subprocess.run(
        command,
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()[-1].strip()


def test_a_full_volume_stops_no_lease(folder: Path) -> None:
    """Or else nobody could say that a drop found no room."""
    assert on_a_volume(folder, "size=64k", 'head -c 100000 /dev/zero > "$1/full" 2> /dev/null; true') == "True True"


def test_a_read_only_volume_makes_followers(folder: Path) -> None:
    seen = on_a_volume(folder, "size=64k", 'mount -o remount,ro "$1"')
    assert (
        seen
        == f"False False {folder}: Read-only file system. Set MODEL_STATE_DIR to a folder that the gateway may write"
    )
