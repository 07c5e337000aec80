"""SHA256SUMS: what makes a drop complete, held against the real sha256sum."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.models.drop import digests_of
from gateway.models.manifest import Manifest, incomplete, manifest_text, read_manifest
from tests.models.drop_folders import taken, write_drop

HEX = "0" * 64


def sums(repository: Path) -> Path:
    return repository / "detector" / "SHA256SUMS"


def write_sums(repository: Path, version: int = 1) -> None:
    sums(repository).write_text(manifest_text(digests_of(taken(repository, version))))


def why(repository: Path, version: int = 1) -> str:
    manifest = read_manifest(repository / "detector")
    assert manifest is not None
    drop = taken(repository, version)
    return incomplete(manifest, drop, digests_of(drop))


def read(folder: Path, content: bytes | str) -> Manifest | None:
    (folder / "SHA256SUMS").write_bytes(content.encode() if isinstance(content, str) else content)
    return read_manifest(folder)


def test_without_one_there_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "nowhere") is None


def test_what_sha256sum_writes_is_read_and_what_we_write_is_checked_by_it(tmp_path: Path) -> None:
    write_drop(tmp_path)
    (tmp_path / "detector" / "a\nb\\c d").write_bytes(b"odd name")
    listed = list(taken(tmp_path).files)
    for mode in ("--text", "--binary"):
        done = subprocess.run(["sha256sum", mode, *listed], cwd=tmp_path, check=True, capture_output=True)
        sums(tmp_path).write_bytes(done.stdout)
        assert why(tmp_path) == ""
    write_sums(tmp_path)
    subprocess.run(["sha256sum", "--check", "--strict", str(sums(tmp_path))], cwd=tmp_path, check=True)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(names=st.sets(NAMES.filter(lambda name: name.strip(".")), max_size=5))
@settings(deadline=None)
def test_what_is_written_is_read_back(names: set[str]) -> None:
    digests = {name: os.urandom(32).hex() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        manifest = read(Path(folder), manifest_text(digests))
    assert manifest is not None
    assert manifest.digests == digests


def test_a_leading_dot_capitals_and_lines_of_windows(tmp_path: Path) -> None:
    manifest = read(tmp_path, f"\ufeff{'AB' * 32}  ./x/model.onnx\r\n\r\n")
    assert manifest is not None
    assert manifest.digests == {"x/model.onnx": "ab" * 32}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("hello", "line 1 is no line"),
        (f"{HEX}  a\n{HEX[1:]}  b", "line 2 is no line"),
        (f"{HEX} a", "line 1 is no line"),
        (f"{HEX}  /etc/passwd", "no path in the model repository"),
        (f"{HEX}  a/../../b", "no path in the model repository"),
        (f"{HEX}  a\n{'1' * 64}  ./a", "line 2 names 'a', which has another digest further up"),
        (b"\n\xff", "not UTF-8 in line 2"),
        (b"#" * (4 * 2**20 + 1), "larger than 4 MiB"),
    ],
)
def test_what_is_no_manifest_is_refused_with_its_line(tmp_path: Path, content: bytes | str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, content)
    assert said in refused.value.message
    assert refused.value.where == str(tmp_path / "SHA256SUMS")


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing"])
def test_what_is_no_file_is_no_manifest_and_nobody_waits_for_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "SHA256SUMS"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nothing")
    with pytest.raises(ConfigError):
        read_manifest(tmp_path)


def test_a_drop_is_complete_when_all_that_is_listed_is_there(tmp_path: Path) -> None:
    write_drop(tmp_path, 2)
    write_sums(tmp_path, 2)
    model = tmp_path / "detector-onnx" / "2" / "model.onnx"
    content = model.read_bytes()
    model.write_bytes(content[:-1])
    assert why(tmp_path, 2) == "detector-onnx/2/model.onnx does not match SHA256SUMS"
    model.rename(tmp_path / "model.onnx")
    assert why(tmp_path, 2) == "detector-onnx/2/model.onnx is missing"
    (tmp_path / "model.onnx").rename(model)
    model.write_bytes(content)
    assert why(tmp_path, 2) == ""


def test_that_files_are_missing_is_known_without_reading_the_others(tmp_path: Path) -> None:
    write_drop(tmp_path)
    write_sums(tmp_path)
    (tmp_path / "detector-torch" / "1" / "model.pt").unlink()
    manifest = read_manifest(tmp_path / "detector")
    assert manifest is not None
    assert incomplete(manifest, taken(tmp_path)) == "detector-torch/1/model.pt is missing"


def test_a_variant_that_is_listed_and_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    write_drop(tmp_path, 2)
    write_sums(tmp_path, 2)
    (tmp_path / "detector-torch" / "2").rename(tmp_path / "away")
    assert "detector-torch/2/model.pt is missing" in why(tmp_path, 2)


def test_a_manifest_of_the_version_before_makes_the_next_one_wait(tmp_path: Path) -> None:
    write_drop(tmp_path, 1)
    write_sums(tmp_path)
    write_drop(tmp_path, 2)
    assert "SHA256SUMS does not list version 2 yet" in why(tmp_path, 2)
    assert why(tmp_path, 1) == ""


def test_what_is_listed_of_other_versions_and_models_does_not_matter(tmp_path: Path) -> None:
    write_drop(tmp_path, 2)
    write_sums(tmp_path, 2)
    with sums(tmp_path).open("a") as file:
        file.write(f"{HEX}  detector-onnx/1/model.onnx\n{HEX}  other/model.yaml\n{HEX}  detector-onnx/20/model.onnx\n")
    write_drop(tmp_path, 3)
    assert why(tmp_path, 2) == ""


def test_a_file_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    write_drop(tmp_path)
    write_sums(tmp_path)
    (tmp_path / "detector-onnx" / "1" / "extra.bin").write_bytes(b"x")
    with pytest.raises(ConfigError) as refused:
        why(tmp_path)
    assert refused.value.message == "detector-onnx/1/extra.bin is not listed"
    assert refused.value.where == str(sums(tmp_path))


def test_many_files_are_named_by_a_few(tmp_path: Path) -> None:
    write_drop(tmp_path)
    for number in range(9):
        (tmp_path / "detector" / f"{number}.jpg").write_bytes(b"x")
    write_sums(tmp_path)
    for number in range(9):
        (tmp_path / "detector" / f"{number}.jpg").unlink()
    assert why(tmp_path) == "detector/0.jpg, detector/1.jpg, detector/2.jpg and 6 more are missing"
