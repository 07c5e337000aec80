"""Drops as they lie on disk: what belongs to a version, what of it is refused, and its digests."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.models.drop import digest_of_all, digests_of, versions_on_disk
from gateway.models.drop_files import scope_of
from gateway.models.release import Placement
from gateway.models.repository import read_model
from tests.models.drop_folders import logical, taken, without_privileges, write_drop

COMMON = ["detector-onnx/config.pbtxt", "detector-torch/config.pbtxt", "detector/labels.txt", "detector/model.yaml"]
DIGESTS = st.dictionaries(st.text(min_size=1, max_size=20), st.binary(min_size=32, max_size=32).map(bytes.hex))


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(repository: Path, version: int = 1, **more: int) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        taken(repository, version, **more)
    assert refused.value.fix
    assert refused.value.where
    return refused.value


# --- which versions there are -------------------------------------------------------------------------


def test_a_version_is_a_whole_number_without_leading_zeros(tmp_path: Path) -> None:
    write_drop(tmp_path, 1)
    write_drop(tmp_path, 12, "torch")
    for name in ("0", "01", "v2", "-1", "1.0", "٢", "9" * 30, ".3"):
        (tmp_path / "detector-onnx" / name).mkdir()
    put(tmp_path / "detector-onnx" / "7")
    assert versions_on_disk(logical(tmp_path), tmp_path) == {1: ("onnx", "torch"), 12: ("torch",)}


def test_without_folders_to_see_no_version_is_known(tmp_path: Path) -> None:
    write_drop(tmp_path)
    model = logical(tmp_path)
    assert versions_on_disk(model, tmp_path / "elsewhere") == {}
    (tmp_path / "detector-onnx").rename(tmp_path / "away")
    put(tmp_path / "detector-onnx")
    assert versions_on_disk(model, tmp_path) == {1: ("torch",)}


def test_a_version_folder_that_is_a_link_counts_and_is_judged_later(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_drop(repository)
    (repository / "detector-onnx" / "2").symlink_to(tmp_path / "nothing")
    assert versions_on_disk(logical(repository), repository)[2] == ("onnx",)
    assert "link" in refusal(repository, 2).message


# --- what belongs to a drop ---------------------------------------------------------------------------


def test_the_files_of_one_version_and_nothing_else(tmp_path: Path) -> None:
    write_drop(tmp_path, 1)
    write_drop(tmp_path, 2)
    own = ["detector/golden/a.jpg", "detector-onnx/labels.txt", "detector-onnx/warmup/first", "detector-onnx/2/.w/data"]
    others = [
        "detector/SHA256SUMS", "detector/model.sig", "detector/.git/HEAD", "detector/golden/.DS_Store",
        "detector-onnx/1/weights", "detector-onnx/10/weights", "detector-onnx/.tmp", "other/model.yaml", "README.md",
        "detector-torch/2/__pycache__/model.pyc", "detector-torch/2/.nfs0001", "detector-onnx/2/..data/model.onnx",
    ]  # fmt: skip
    for name in (*own, *others):
        put(tmp_path / name)
    drop = taken(tmp_path, 2)
    assert list(drop.files) == sorted([*COMMON, *own, "detector-onnx/2/model.onnx", "detector-torch/2/model.pt"])
    assert drop.bytecode == ("detector-torch/2/__pycache__",)
    assert drop.files["detector-onnx/2/model.onnx"][2:] == (
        (tmp_path / "detector-onnx/2/model.onnx").stat().st_ino,
        len(b"weightsonnx"),
    )


def test_what_it_brings_is_a_release(tmp_path: Path) -> None:
    write_drop(tmp_path, 1)
    write_drop(tmp_path, 2, "torch", content=b"better")
    (tmp_path / "detector-torch" / "config.pbtxt").write_text('backend: "other"')
    release = taken(tmp_path, 2).release
    assert (release.name, release.version) == ("detector", 2)
    assert release.placements == {"torch": Placement("detector-torch", 2)}
    assert release.missing == {"onnx": "version 2 has no folder at detector-onnx"}
    assert release.configs == {"detector-torch": 'backend: "other"'}
    assert release.file_bytes == len(b"bettertorch")


def test_a_model_yaml_outside_of_the_repository_is_no_part_of_the_drop(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_drop(repository)
    (repository / "detector").rename(tmp_path / "detector")
    model = read_model(tmp_path / "detector" / "model.yaml", repository)
    scope = scope_of(model, repository, 1)
    assert scope.logical is None
    assert scope.holds("detector-onnx/1/model.onnx")
    assert not scope.holds("detector/model.yaml")


def test_links_inside_the_repository_are_followed(tmp_path: Path) -> None:
    """As in a mounted ConfigMap, and in a folder that keeps the weights of all models."""
    write_drop(tmp_path)
    folder = tmp_path / "detector"
    put(folder / "..2026" / "labels.txt", (folder / "labels.txt").read_bytes())
    (folder / "..data").symlink_to("..2026")
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to("..data/labels.txt")
    put(tmp_path / "blobs" / "two" / "model.onnx", b"two")
    (tmp_path / "detector-onnx" / "2").symlink_to("../blobs/two")
    drop = taken(tmp_path, 2)
    assert {"detector/labels.txt", "detector-onnx/2/model.onnx"} <= drop.files.keys()
    assert digests_of(drop)["detector-onnx/2/model.onnx"] == hashlib.sha256(b"two").hexdigest()


def test_a_repository_that_is_itself_a_link(tmp_path: Path) -> None:
    write_drop(tmp_path / "real")
    (tmp_path / "models").symlink_to("real")
    assert "detector-onnx/1/model.onnx" in taken(tmp_path / "models").files


def test_what_other_versions_lead_to_is_their_own_matter(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_drop(repository, 2)
    (repository / "detector-onnx" / "1").symlink_to(tmp_path)
    assert "detector-onnx/2/model.onnx" in taken(repository, 2).files


# --- what is refused ----------------------------------------------------------------------------------


def _link_version(repository: Path, elsewhere: Path) -> Path:
    path = repository / "detector-onnx" / "2"
    path.symlink_to(put(elsewhere / "model.onnx").parent)
    return path


def _link_file(repository: Path, elsewhere: Path) -> Path:
    path = put(repository / "detector-onnx" / "2" / "model.onnx")
    path.unlink()
    path.symlink_to(put(elsewhere / "secret"))
    return path


def _link_relative(repository: Path, elsewhere: Path) -> Path:
    put(elsewhere / "data")
    path = put(repository / "detector-onnx" / "2" / "weights" / "x")
    path.unlink()
    path.symlink_to(os.path.relpath(elsewhere / "data", path.parent))
    return path


def _link_triton_folder(repository: Path, elsewhere: Path) -> Path:
    path = repository / "detector-onnx"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    put(elsewhere / "2" / "model.onnx")
    return path


def _link_labels(repository: Path, elsewhere: Path) -> Path:
    put(repository / "detector-onnx" / "2" / "model.onnx")
    path = repository / "detector" / "notes.txt"
    path.symlink_to(put(elsewhere / "notes.txt"))
    return path


@pytest.mark.parametrize(
    "make",
    [_link_version, _link_file, _link_relative, _link_triton_folder, _link_labels],
    ids=lambda make: make.__name__,
)
def test_a_link_out_of_the_repository_is_refused_with_where_it_leads(
    tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    repository = tmp_path / "models"
    write_drop(repository)
    path = make(repository, tmp_path / "elsewhere")
    error = refusal(repository, 2)
    assert error.where == str(path)
    assert f"out of the repository, to {path.resolve()}" in error.message


@pytest.mark.parametrize("target", ["self", "gone", "."])
def test_a_link_that_leads_nowhere(tmp_path: Path, target: str) -> None:
    write_drop(tmp_path)
    path = tmp_path / "detector-onnx" / "1" / "self"
    path.symlink_to(target)
    error = refusal(tmp_path)
    assert str(path) in error.where
    assert "link" in f"{error.message} {error.fix}"


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK], ids=["pipe", "socket"])
def test_what_is_no_file_is_refused_and_nobody_waits_for_it(tmp_path: Path, kind: int) -> None:
    write_drop(tmp_path)
    os.mknod(tmp_path / "detector-onnx" / "1" / "odd", kind | 0o600)
    assert refusal(tmp_path).message == "is no regular file"


def test_an_empty_model_file_is_refused_and_another_empty_file_is_not(tmp_path: Path) -> None:
    write_drop(tmp_path)
    put(tmp_path / "detector-onnx" / "1" / "__init__.py", b"")
    assert "detector-onnx/1/__init__.py" in taken(tmp_path).files
    put(tmp_path / "detector-onnx" / "1" / "model.onnx", b"")
    assert "0 bytes" in refusal(tmp_path).message


def test_a_name_that_no_message_could_carry(tmp_path: Path) -> None:
    write_drop(tmp_path)
    os.close(os.open(os.fsencode(tmp_path / "detector-onnx" / "1") + b"/w\xff", os.O_CREAT, 0o644))
    assert "not UTF-8" in refusal(tmp_path).message


def test_all_files_together_have_a_limit(tmp_path: Path) -> None:
    write_drop(tmp_path)
    with (tmp_path / "detector-onnx" / "1" / "weights").open("wb") as file:
        file.truncate(2**40)  # takes no space
    assert refusal(tmp_path, max_bytes=2**40).message.startswith("version 1 takes 1048576.0 MiB")
    taken(tmp_path, max_bytes=2**41)


def test_more_files_than_any_model_has(tmp_path: Path) -> None:
    write_drop(tmp_path)
    folder = tmp_path / "detector-onnx" / "1"
    for number in range(10_000):
        os.close(os.open(folder / str(number), os.O_CREAT, 0o644))
    assert "more than 10000 files" in refusal(tmp_path).message


def test_a_configuration_that_is_no_text(tmp_path: Path) -> None:
    write_drop(tmp_path)
    path = tmp_path / "detector-onnx" / "config.pbtxt"
    path.write_bytes(b"a\nb\xff")
    assert refusal(tmp_path).message == "is not UTF-8 in line 2"
    path.write_bytes(b"#" * (2**20 + 1))
    assert "larger than 1 MiB" in refusal(tmp_path).message


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    write_drop(tmp_path)
    assert refusal(tmp_path, 5).message == "version 5 has no folder at detector-onnx or detector-torch"


@pytest.mark.parametrize("name", ["1/model.onnx", "1", "config.pbtxt"])
def test_a_file_that_may_not_be_read(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        repository.chmod(0o755)
        write_drop(repository)
        path = repository / "detector-onnx" / name
        path.chmod(0)
        with without_privileges():
            error = refusal(repository)
        path.chmod(0o755)
        assert "Permission denied" in error.message
        assert error.where == str(path)
        assert "Allow the user" in error.fix
        taken(repository)


# --- digests ------------------------------------------------------------------------------------------


def test_digests_are_those_of_sha256(tmp_path: Path) -> None:
    write_drop(tmp_path, content=os.urandom(3 * 2**20 + 1))
    drop = taken(tmp_path)
    assert digests_of(drop) == {path: hashlib.sha256((tmp_path / path).read_bytes()).hexdigest() for path in drop.files}


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    write_drop(tmp_path)
    drop = taken(tmp_path)
    known = {path: (stamp, "known") for path, stamp in drop.files.items()}
    known["detector/labels.txt"] = ((0, 0, 0, 0), "of another file")
    digests = digests_of(drop, known)
    assert digests.pop("detector/labels.txt") not in ("known", "of another file")
    assert set(digests.values()) == {"known"}


@pytest.mark.parametrize("change", ["grown", "replaced", "rewritten", "gone"])
def test_a_file_that_is_another_one_by_now_makes_no_digest(tmp_path: Path, change: str) -> None:
    write_drop(tmp_path)
    drop = taken(tmp_path)
    path = tmp_path / "detector-onnx" / "1" / "model.onnx"
    content = path.read_bytes()
    if change == "grown":
        path.write_bytes(content + b"more")
    elif change == "replaced":
        put(path.with_name("new"), content).rename(path)
    elif change == "rewritten":
        path.write_bytes(content)
        os.utime(path, ns=(1, drop.files["detector-onnx/1/model.onnx"][0]))  # as cp -p and rsync -t do
    else:
        path.unlink()
    with pytest.raises(ConfigError, match="the drop is not complete") as refused:
        digests_of(drop)
    assert refused.value.where == str(path)


@given(digests=DIGESTS, seed=st.randoms(use_true_random=False))
def test_one_digest_over_all_has_no_order(digests: dict[str, str], seed: object) -> None:
    items = list(digests.items())
    seed.shuffle(items)  # type: ignore[attr-defined]
    assert digest_of_all(dict(items)) == digest_of_all(digests)


@given(one=DIGESTS, other=DIGESTS)
def test_other_files_have_another_digest_over_all(one: dict[str, str], other: dict[str, str]) -> None:
    assert (digest_of_all(one) == digest_of_all(other)) == (one == other)


@given(names=st.lists(st.sampled_from(["1", "2", "3", "a", ".b", "config.pbtxt"]), min_size=1, max_size=3))
@settings(deadline=None, max_examples=60)
def test_a_version_does_not_see_what_others_have(names: list[str]) -> None:
    """A file that is added anywhere belongs to exactly the versions whose scope holds its path."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        for version in (1, 2):
            write_drop(repository, version)
        before = {version: set(taken(repository, version).files) for version in (1, 2)}
        path = "/".join(["detector-onnx", *names, "file"])
        if (repository / "detector-onnx" / names[0]).is_file():
            return
        put(repository / path)
        for version in (1, 2):
            added = set(taken(repository, version).files) - before[version]
            assert added == ({path} if scope_of(logical(repository), repository, version).holds(path) else set())
