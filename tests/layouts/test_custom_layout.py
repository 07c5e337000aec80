"""Layouts of the user: what loads, what is refused with one line, and what a failure costs."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import BackendInvalidResponse, ConfigError
from gateway.layouts import Classes, Detections, Head, named, names
from gateway.layouts.binding import read
from gateway.layouts.custom import load_custom_layouts

SUMMARY = "One angle in degrees: closed (class 0) below 10, open (class 1) from there on."
DOOR = '''
from dataclasses import dataclass

import numpy as np

from gateway.layouts import Classes, layout


@dataclass
class State:
    open: "bool" = False


@layout("door", task="image-classification", outputs={"angle": (1,)})
def door(outputs, head):
    """SUMMARY"""
    state = State(bool(outputs["angle"][0] >= 10))
    return Classes([int(state.open)], [0.9])
'''.replace("SUMMARY", SUMMARY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    path.chmod(0o644)
    return path


def refused(folder: Path) -> ConfigError:
    """The error; and nothing of the folder stays registered."""
    before = names()
    with pytest.raises(ConfigError) as caught:
        load_custom_layouts(folder)
    assert names() == before
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


def test_a_layout_of_the_user_works_like_one_of_ours(folder: Path) -> None:
    write(folder, "door.py", DOOR)
    path_before = list(sys.path)

    assert load_custom_layouts(folder) == ("door",)

    assert named("door").summary == SUMMARY
    seen = read(named("door"), {"angle": np.array([35.0])}, Head(classes=2))
    assert isinstance(seen, Classes)
    assert seen.class_ids.tolist() == [1]
    assert seen.scores.dtype == np.float32
    assert sys.path == path_before
    assert "door" not in sys.modules
    assert sorted(path.name for path in folder.iterdir()) == ["door.py"]  # no folder of compiled files beside it


def test_files_are_read_in_the_order_of_their_names(folder: Path) -> None:
    for name in ("b", "a", "c"):
        write(folder, f"{name}.py", DOOR.replace('"door"', f'"door-{name}"'))
    write(folder, ".hidden.py", "raise SystemError")
    write(folder, "notes.txt", "no Python")

    assert load_custom_layouts(folder) == ("door-a", "door-b", "door-c")


def test_a_name_of_the_standard_library_is_no_trouble(folder: Path) -> None:
    write(folder, "json.py", DOOR)
    before = sys.modules.get("json")

    load_custom_layouts(folder)

    assert sys.modules.get("json") is before


def test_the_same_folder_again_changes_nothing(folder: Path) -> None:
    write(folder, "door.py", DOOR)
    first = load_custom_layouts(folder)

    assert load_custom_layouts(folder / ".." / folder.name) == first == ("door",)


def test_an_empty_folder_has_no_layouts(folder: Path) -> None:
    assert load_custom_layouts(folder) == ()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("x = 1\ndef broken(:\n", 2, "invalid syntax"),
        ("import numpy\n\nimport no_such_package\n", 3, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("from . import other\n", 1, "ImportError"),
        (DOOR.replace('"door"', '"yolov8"'), 14, "there is already a layout 'yolov8'"),
        (DOOR.replace("image-classification", "classify"), 14, "there is no task 'classify'; known: object-detection"),
        (DOOR.replace("(1,)", "1"), 14, "outputs gives each role a tuple"),
        (DOOR.replace("(1,)", "(0,)"), 14, "outputs gives each role a tuple"),
        (DOOR.replace('"door"', '"My Door"'), 14, "the name 'My Door' is not made of small letters"),
        (DOOR.replace("(outputs, head)", "(outputs)"), 14, "takes two arguments"),
        (DOOR.replace(SUMMARY, " "), 14, "docstring"),
    ],
)
def test_what_is_wrong_is_said_with_its_file_and_line(folder: Path, text: str, line: int, message: str) -> None:
    path = folder / "mine.py"
    path.write_text(text)
    path.chmod(0o644)

    error = refused(folder)

    assert error.where == f"{path}:{line}"
    assert message in error.message


def test_a_file_that_registers_nothing(folder: Path) -> None:
    write(folder, "a.py", DOOR)
    path = write(folder, "b.py", "x = 1")

    error = refused(folder)

    assert (error.where, error.message) == (str(path), "the file registers no layout")


def test_after_a_failure_the_corrected_folder_loads(folder: Path) -> None:
    write(folder, "a.py", DOOR)
    write(folder, "b.py", "x = ")
    refused(folder)

    write(folder, "b.py", DOOR.replace('"door"', '"door-2"'))

    assert load_custom_layouts(folder) == ("door", "door-2")


def test_files_and_folders_that_anyone_may_write_are_not_run(folder: Path) -> None:
    path = write(folder, "door.py", DOOR)
    path.chmod(0o666)
    assert refused(folder).where == str(path)

    path.chmod(0o644)
    folder.chmod(0o777)
    assert refused(folder).where == str(folder)

    folder.chmod(0o755)
    assert load_custom_layouts(folder) == ("door",)


def test_links_as_in_a_config_map_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    elsewhere.chmod(0o755)
    (folder / "door.py").symlink_to(write(elsewhere, "door.py", DOOR))

    assert load_custom_layouts(folder) == ("door",)


@pytest.mark.parametrize("name", ["missing", "file.py"])
def test_no_folder(folder: Path, name: str) -> None:
    write(folder, "file.py", DOOR)

    error = refused(folder / name)

    assert error.where == "LAYOUTS_DIR"
    assert str(folder / name) in error.message


# --- while it decodes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return outputs['other']", "KeyError: 'other'"),
        ("return None", "TypeError: image-classification gives back Classes, not NoneType"),
        ("return Classes([0, 1], [0.9])", "ValueError: class_ids are not 1 whole numbers from 0"),
        ("return Classes([-1], [0.9])", "ValueError: class_ids are not 1 whole numbers from 0"),
        ("return Classes([0.5], [0.9])", "ValueError: class_ids are not 1 whole numbers from 0"),
        ("return Classes([1], [90])", "ValueError: scores do not all lie between 0 and 1"),
        ("return Classes([1], [np.nan])", "ValueError: scores are not all finite"),
    ],
)
def test_a_failure_is_that_of_one_answer(folder: Path, body: str, message: str) -> None:
    path = write(folder, "door.py", DOOR.replace("return Classes([int(state.open)], [0.9])", body))
    load_custom_layouts(folder)

    with pytest.raises(BackendInvalidResponse) as caught:
        read(named("door"), {"angle": np.array([35.0])}, Head(classes=2))

    assert re.fullmatch(rf"layout 'door' failed in door\.py(:\d+)?: {re.escape(message)}", caught.value.message)
    assert caught.value.where.startswith(str(path))


def test_its_own_verdict_on_values_stands(folder: Path) -> None:
    text = DOOR.replace("return Classes([int(state.open)], [0.9])", "raise BackendInvalidResponse('no such angle')")
    write(folder, "door.py", f"from gateway.errors import BackendInvalidResponse\n{text}")
    load_custom_layouts(folder)

    with pytest.raises(BackendInvalidResponse, match=r"^no such angle"):
        read(named("door"), {"angle": np.array([35.0])}, Head(classes=2))


MASKS = '''
import numpy as np

from gateway.layouts import Detections, layout
from gateway.layouts.base import Mask, Masks


@layout("cutter", task="instance-segmentation", outputs={"boxes": ("N?", 4), "masks": ("N?", "h", "w")})
def cutter(outputs, head):
    """Boxes in pixels and a mask for each on the whole input."""
    boxes, masks = outputs["boxes"], outputs["masks"] > 0.5

    def mask(index):
        size = head.width / masks.shape[2]
        return Mask(masks[index], cell_width=size, cell_height=size)

    return Detections(boxes, np.ones(len(boxes)), np.zeros(len(boxes), dtype=int), Masks(mask))
'''


def test_masks_are_made_and_checked_one_at_a_time(folder: Path) -> None:
    write(folder, "cutter.py", MASKS)
    load_custom_layouts(folder)
    outputs = {"boxes": np.array([[0, 0, 8, 8.0]]), "masks": np.eye(4)[None]}

    seen = read(named("cutter"), outputs, Head(classes=1, height=8, width=8))

    assert isinstance(seen, Detections)
    assert seen.masks is not None
    assert seen.boxes.dtype == np.float32
    assert seen.masks.of(0).cells.sum() == 4
    assert seen.masks.of(0).cell_width == 2
    with pytest.raises(BackendInvalidResponse, match=r"layout 'cutter' failed in cutter\.py:\d+: IndexError"):
        seen.masks.of(1)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [("> 0.5", "", "are \\(h, w\\) booleans"), ("head.width /", "0 *", "a place and a size of cells")],
)
def test_masks_of_the_wrong_kind(folder: Path, before: str, after: str, message: str) -> None:
    write(folder, "cutter.py", MASKS.replace(before, after))
    load_custom_layouts(folder)
    outputs = {"boxes": np.array([[0, 0, 8, 8.0]]), "masks": np.eye(4)[None]}
    seen = read(named("cutter"), outputs, Head(classes=1, height=8, width=8))
    assert isinstance(seen, Detections)
    assert seen.masks is not None

    with pytest.raises(BackendInvalidResponse, match=message):
        seen.masks.of(0)
