"""What is remembered on the volume survives everything, or says why it could not be written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.errors import ConfigError
from gateway.local.processes import ChildProcess
from gateway.rollout.state import ModelState, RefusalRecord, ReleaseRecord, RolloutRecord
from gateway.rollout.steps import Step
from gateway.rollout.store import MAX_RELEASE_BYTES, MAX_STATE_BYTES, StateNotKept, StateStore
from tests.command_line import ROOT, environment

SMALL_FILES = {"helmets/model.yaml": b"name: helmets", "helmets/golden/1/expected.json": b"{}"}


def state(version: int = 1, model: str = "helmets", note: str = "") -> ModelState:
    return ModelState(
        model,
        stable=ReleaseRecord(version, {"helmets/model.yaml": "ab"}, {"x": (1, 2, 3, 4)}, {"onnx": ("helmets-onnx", 1)}),
        rollout=RolloutRecord(version + 1, Step.CANARY, 12.5, reason=note),
        refused=(RefusalRecord(9, Step.GOLDEN, "other boxes", "train on", 3.0),),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(folder: Path) -> StateStore:
    return StateStore(folder)


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read_by_another_gateway(folder: Path, store: StateStore) -> None:
    assert store.read_all() == {}
    assert not folder.exists()
    store.write(state())
    store.write(state(2, "forklifts"))
    other = StateStore(folder)
    assert other.read_all() == {"helmets": state(), "forklifts": state(2, "forklifts")}
    assert other.read("helmets") == state()
    assert other.read("nobody") is None
    assert all_files(folder) == ["forklifts.json", "helmets.json"]


def test_permissions_are_those_of_the_umask(folder: Path, store: StateStore) -> None:
    before = os.umask(0o027)
    try:
        store.write(state())
    finally:
        os.umask(before)
    assert (folder / "helmets.json").stat().st_mode & 0o777 == 0o640
    assert folder.stat().st_mode & 0o777 == 0o750


def test_the_fingerprint_changes_with_each_write_and_with_nothing_else(folder: Path, store: StateStore) -> None:
    seen = [StateStore(folder).fingerprint()]
    for number in range(20):
        store.write(state(number))
        seen.append(StateStore(folder).fingerprint())
        store.keep_release("helmets", number, SMALL_FILES)
        (folder / "roller.1.lock").touch()
        assert StateStore(folder).fingerprint() == seen[-1]
    store.forget("helmets")
    assert StateStore(folder).fingerprint() == seen[0] == ()
    assert len(set(seen)) == 21


@given(
    st.builds(
        ModelState,
        model=st.just("helmets"),
        stable=st.none() | st.builds(ReleaseRecord),
        rollout=st.none() | st.builds(RolloutRecord, started_at=st.floats(allow_nan=False, allow_infinity=False)),
        unloaded=st.booleans(),
        roller=st.text(st.characters(exclude_categories=["Cs"])),
    )
)
@settings(max_examples=60, deadline=None)
def test_every_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, some: ModelState) -> None:
    store = StateStore(tmp_path_factory.mktemp("state") / "s")
    try:
        store.write(some)
    except StateNotKept:
        pytest.fail("refused")
    assert store.read("helmets") == some


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"model": "forklifts"}',
        b'{"model": "helmets", "rollout": {"version": 2, "step": "a step of next year", "started_at": 1}}',
        b'{"model": "helmets", "more": ' + b"[" * 1_000_000,
        b" " * (MAX_STATE_BYTES + 1),
    ],
    ids=range(8),
)
def test_a_damaged_file_is_named_once_and_kept_for_a_person(folder: Path, store: StateStore, content: bytes) -> None:
    folder.mkdir()
    path = folder / "helmets.json"
    path.write_bytes(content)
    store.write(state(2, "forklifts"))
    with capture_logs() as logs:
        for _ in range(3):
            assert store.read_all() == {"forklifts": state(2, "forklifts")}
    assert [(entry["event"], entry["model"]) for entry in logs] == [
        ("What was remembered of a model cannot be used", "helmets")
    ]
    assert path.read_bytes() == content  # whoever only reads leaves it alone
    StateStore(folder).write(state())
    assert (folder / "helmets.json.damaged").read_bytes() == content
    assert store.read("helmets") == state()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_dead_link(path: Path) -> None:
    path.symlink_to("/nowhere")


def an_endless_file(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [a_pipe, a_dead_link, an_endless_file, Path.mkdir])
def test_what_is_no_file_hides_no_other_model(folder: Path, store: StateStore, make: Callable[[Path], None]) -> None:
    store.write(state(2, "forklifts"))
    make(folder / "helmets.json")
    assert list(store.read_all()) == ["forklifts"]
    store.write(state())
    assert store.read("helmets") == state()


def test_keys_of_a_newer_gateway_are_passed_over(folder: Path, store: StateStore) -> None:
    folder.mkdir()
    body = msgspec.json.decode(msgspec.json.encode(state()))
    body["rollout"]["mood"] = body["weather"] = {"fine": [1, 2]}
    (folder / "helmets.json").write_bytes(msgspec.json.encode(body))
    assert store.read("helmets") == state()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\0b", "x" * 200, "ä"])
def test_a_name_that_is_none_of_a_model_reaches_no_file(folder: Path, store: StateStore, name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a model"):
        store.write(state(model=name))
    with pytest.raises(ConfigError, match="no name of a model"):
        store.keep_release(name, 1, SMALL_FILES)
    with pytest.raises(ConfigError, match="no name of a model"):
        store.forget(name)
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateNotKept) as caught:
        StateStore(tmp_path / "volume" / "state").write(state())
    assert caught.value.where == str(tmp_path / "volume" / "state")
    assert "Mount the volume" in caught.value.fix
    (tmp_path / "file").touch()
    with pytest.raises(StateNotKept, match="exists"):
        StateStore(tmp_path / "file").write(state())
    with capture_logs() as logs:
        assert StateStore(tmp_path / "file").read_all() == {}
    assert len(logs) == 1


def test_a_state_that_nobody_would_read_is_not_written(store: StateStore) -> None:
    store.write(state())
    with pytest.raises(StateNotKept, match="more than"):
        store.write(state(note="x" * MAX_STATE_BYTES))
    assert store.read("helmets") == state()


# Kept copies of a release's small files.


def test_a_release_is_kept_as_a_small_repository(folder: Path, store: StateStore) -> None:
    assert store.kept("helmets", 1) is None
    store.keep_release("helmets", 1, SMALL_FILES)
    kept = StateStore(folder).kept("helmets", 1)
    assert kept == folder / "releases" / "helmets" / "1"
    assert {name: (kept / name).read_bytes() for name in all_files(kept)} == SMALL_FILES
    store.keep_release("helmets", 1, {"helmets/labels.txt": b"a"})
    assert all_files(folder) == ["releases/helmets/1/helmets/labels.txt"]


def test_releases_go_when_they_are_not_wanted(folder: Path, store: StateStore) -> None:
    for model, version in (("helmets", 1), ("helmets", 2), ("helmets", 3), ("forklifts", 1)):
        store.keep_release(model, version, SMALL_FILES)
    store.drop_releases("helmets", {2, 3})
    store.drop_releases("nobody", ())
    assert [store.kept("helmets", version) is not None for version in (1, 2, 3)] == [False, True, True]
    store.write(state())
    store.forget("helmets")
    store.forget("helmets")
    assert sorted(path.name for path in (folder / "releases").iterdir()) == ["forklifts"]
    assert all_files(folder) == [f"releases/forklifts/1/{name}" for name in sorted(SMALL_FILES)]


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a/..", ".", "a\0b"])
def test_no_copy_lands_outside(folder: Path, store: StateStore, name: str) -> None:
    with pytest.raises(StateNotKept):
        store.keep_release("helmets", 1, {**SMALL_FILES, name: b"x"})
    assert not folder.exists()


@pytest.mark.parametrize(
    "files",
    [{"a": bytes(MAX_RELEASE_BYTES), "b": b"1"}, {"a": b"", "a/b": b""}, {"x" * 300: b""}, {"\ud800": b""}],
    ids=["too large", "file and folder", "long name", "no name"],
)
def test_a_copy_that_fails_leaves_the_one_before(folder: Path, store: StateStore, files: dict[str, bytes]) -> None:
    store.keep_release("helmets", 1, SMALL_FILES)
    before = all_files(folder)
    with pytest.raises(StateNotKept):
        store.keep_release("helmets", 1, files)
    assert all_files(folder) == before
    assert sorted(path.name for path in (folder / "releases" / "helmets").iterdir()) == ["1"]


def test_killed_between_the_two_renames_the_copy_before_counts(folder: Path, store: StateStore) -> None:
    store.keep_release("helmets", 1, SMALL_FILES)
    place = folder / "releases" / "helmets"
    (place / "1").rename(place / ".1.old")
    kept = StateStore(folder).kept("helmets", 1)
    assert kept is not None
    assert all_files(kept) == sorted(SMALL_FILES)
    store.drop_releases("helmets", {1})
    assert store.kept("helmets", 1) == place / "1"
    (place / ".1.old").mkdir()  # killed after both
    store.keep_release("helmets", 2, SMALL_FILES)
    assert sorted(path.name for path in place.iterdir()) == ["1", "2"]


# Full volumes, and gateways that are killed in the middle.

WRITES_WITHOUT_END = """
import sys
from itertools import count
from pathlib import Path
from gateway.rollout.store import StateStore
from tests.rollout.test_store import SMALL_FILES, state

store = StateStore(Path(sys.argv[1]))
for number in count():
    store.write(state(number, note="x" * 20_000))
    store.keep_release("helmets", 1, {f"{each}/{number}": b"x" * 1000 for each in range(5)})
"""
ON_A_FULL_VOLUME = """
import sys
from pathlib import Path
from gateway.rollout.store import StateNotKept, StateStore
from tests.rollout.test_store import SMALL_FILES, all_files, state

folder = Path(sys.argv[1]) / "state"
store = StateStore(folder)
store.write(state())
store.keep_release("helmets", 1, SMALL_FILES)
before = all_files(folder)
for attempt in (
    lambda: store.write(state(2, note="x" * 100_000)),
    lambda: store.keep_release("helmets", 1, {"a": b"x" * 1000, "b": b"x" * 100_000}),
):
    try:
        attempt()
    except StateNotKept as error:
        print(error)
    assert store.read_all() == {"helmets": state()}
    assert all_files(folder) == before, all_files(folder)
store.write(state(3))
"""


def test_killed_at_any_moment_it_leaves_a_whole_state_and_no_litter(folder: Path) -> None:
    for pause in (0.0, 0.005, 0.011, 0.017, 0.023):
        writer = ChildProcess(
            "writer",
            [sys.executable, "-c", WRITES_WITHOUT_END, str(folder)],
            env=environment(PYTHONPATH=str(ROOT)),
        )
        writer.start()
        store = StateStore(folder)
        before = store.fingerprint()
        try:
            deadline = time.monotonic() + 20
            while store.fingerprint() == before:
                assert time.monotonic() < deadline, writer.log_tail()
            time.sleep(pause)
        finally:
            writer.kill()
        read = store.read("helmets")
        assert read is not None
        kept = store.kept("helmets", 1)
        if kept is not None:
            assert len(all_files(kept)) == 5
    store.write(state())
    store.keep_release("helmets", 1, SMALL_FILES)
    assert all_files(folder) == ["helmets.json", *(f"releases/helmets/1/{name}" for name in sorted(SMALL_FILES))]


def in_a_namespace(folder: Path, script: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program on a tmpfs on `folder`, mounted where nobody else sees it; `script` prepares it."""
    folder.mkdir()
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(folder)], check=False).returncode:
        pytest.skip("mounting needs root")
    mount = f'mount -t tmpfs -o size=64k none "$1" && {script} && exec "$2" -c "$3" "$1"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", str(folder), sys.executable, program],
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_full_volume_is_named_and_keeps_what_it_has(folder: Path) -> None:
    done = in_a_namespace(folder, "true", ON_A_FULL_VOLUME)
    assert done.returncode == 0, done.stderr
    state_line, files_line = done.stdout.splitlines()
    ending = "cannot be kept: No space left on device. Make room on the volume"
    assert state_line == f"{folder}/state: the state of 'helmets' {ending}"
    assert files_line == f"{folder}/state: the files of version 1 of 'helmets' {ending}"


def test_a_read_only_volume_is_named(folder: Path) -> None:
    done = in_a_namespace(folder, 'mount -o remount,ro "$1"', ON_A_FULL_VOLUME)
    assert "Read-only file system. Set MODEL_STATE_DIR to a folder that the gateway may write" in done.stderr
