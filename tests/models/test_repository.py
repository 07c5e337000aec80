"""Reading what is to be served: the labels beside model.yaml, and files that are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.models.onnx_file import read_onnx
from gateway.models.repository import read_model, read_repository, read_served
from gateway.models.torchscript_file import read_torchscript_metadata
from tests.flow.builders import LABELS
from tests.harness import write_model


@pytest.mark.parametrize("content", ["a\nb", "a\nb\n", "a\r\nb\r\n\r\n", "\ufeffa\n b \n\n \n"])
def test_empty_lines_at_the_end_and_the_mark_of_windows_are_no_classes(tmp_path: Path, content: str) -> None:
    folder = write_model(tmp_path, inference={"output": "yolov8"})
    (folder / "labels.txt").write_bytes(content.encode())
    assert read_model(folder / "model.yaml").labels == ("a", "b")


def test_two_classes_may_have_one_name(tmp_path: Path) -> None:
    """As "N/A" in COCO's 91."""
    names = ["person", "N/A", "N/A", "car"]
    folder = write_model(tmp_path, labels=names, inference={"output": "yolov8"})
    assert read_model(folder / "model.yaml").labels == tuple(names)


@given(names=st.lists(st.text("ab \t", max_size=3), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_class_has_the_id_of_its_line_or_the_file_is_refused(tmp_path: Path, names: list[str]) -> None:
    folder = write_model(tmp_path, inference={"output": "yolov8"})
    (folder / "labels.txt").write_text("\n".join(names))
    try:
        labels = read_model(folder / "model.yaml").labels
    except ConfigError:
        assert not all(name.strip() for name in names)
    else:
        assert labels == tuple(name.strip() for name in names[: len(labels)])
        assert not any(name.strip() for name in names[len(labels) :])


def test_a_link_is_followed_as_in_a_mounted_config_map(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "..data").mkdir()
    for name in ("model.yaml", "labels.txt"):
        (folder / name).rename(folder / "..data" / name)
        (folder / name).symlink_to(f"..data/{name}")
    assert read_model(folder / "model.yaml").labels == tuple(LABELS)


def test_the_place_of_an_error_is_the_file_that_was_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    path = (folder / "model.yaml").rename(folder / "safety.yaml")
    (folder / "labels.txt").write_text("")
    with pytest.raises(ConfigError) as refused:
        read_served(tmp_path, path)
    assert refused.value.where == f"{path}: labels"


def test_what_cannot_be_read_hides_no_other_model(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_model(tmp_path, name)
    write_model(tmp_path, "b", labels="x" * 300)
    (tmp_path / "c" / "model.yaml").unlink()
    os.mkfifo(tmp_path / "c" / "model.yaml")
    models, errors = read_repository(tmp_path)
    assert [model.spec.name for model in models] == ["a", "d"]
    assert [error.where for error in errors] == [str(tmp_path / name / "model.yaml") for name in ("b", "c")]


@pytest.mark.parametrize("read", [read_onnx, read_torchscript_metadata])
def test_a_pipe_is_no_model_file_and_nobody_waits_for_it(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="no regular file"):
        read(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a/" * 3000])
def test_a_repository_that_can_be_no_folder_is_an_error_of_ours(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no such folder|cannot be read") as refused:
        read_served(Path(name))
    assert refused.value.where.startswith("MODEL_REPOSITORY=")
    with pytest.raises(ConfigError):
        read_served(Path(), Path(name))
