"""docs/layouts.md has every layout as it is registered, and its example of a custom one works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.layouts import Detections, Head, Layout, base, custom, named, names
from gateway.layouts.binding import read
from gateway.layouts.custom import load_custom_layouts
from gateway.models.spec import USUAL_LAYOUTS

PAGE = (Path(__file__).parent.parent / "docs" / "layouts.md").read_text()
HEAD = ("| Layout | `model_type` | Outputs | Reads | Models |", "| --- | --- | --- | --- | --- |")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """No test leaves a layout behind."""
    registry, loaded = dict(base._registry), dict(custom._loaded)
    yield
    base._registry.clear()
    base._registry.update(registry)
    custom._loaded.clear()
    custom._loaded.update(loaded)


def row(entry: Layout) -> str:
    """What the page says of one layout."""
    shapes = re.findall(r"(\w+) (\[[^]]+\])", entry.expects)
    outputs = ", ".join(f"`{role}` {shape}" for role, shape in shapes)
    reads = "; ".join(f"`{key}`: {', '.join(values)}" for key, values in entry.settings.items())
    return f"| `{entry.name}` | {entry.task} | {outputs} | {reads} | {entry.summary} |"


def table() -> list[str]:
    """All of them, by what they are for."""
    shipped = sorted((named(name) for name in names()), key=lambda entry: (entry.task, entry.name))
    return [*HEAD, *(row(entry) for entry in shipped)]


def test_the_page_has_every_layout_as_it_is_registered() -> None:
    found = re.search(r"<!-- layouts: .+? -->\n\n(.*?)\n\n<!-- end of layouts -->", PAGE, re.DOTALL)
    assert found is not None
    assert found[1].splitlines() == table(), "put this into docs/layouts.md:\n" + "\n".join(table())


def test_the_page_names_the_usual_layouts() -> None:
    told = PAGE.partition("The usual layouts of a")[2].partition("\n## ")[0]
    assert not [name for name in USUAL_LAYOUTS.values() if f"`{name}`" not in told]


def test_the_keys_that_layouts_read_are_explained() -> None:
    read_by_some = {key for name in names() for key in named(name).settings}
    explained = PAGE.partition("## What each of the keys means")[2].partition("\n## ")[0]
    assert {key for key in read_by_some if f"| `{key}` |" in explained} == read_by_some


def test_the_example_of_a_custom_layout_works(tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    path = tmp_path / "faces.py"
    path.write_text(found[1])
    path.chmod(0o644)
    tmp_path.chmod(0o755)
    assert load_custom_layouts(tmp_path) == ("face-rows",)
    rows = np.array([[0.2, 0, 0, 1, 1], [0.6, 0, 0, 0.5, 0.5], [0.9, 0.5, 0.25, 1, 1]], np.float32)
    seen = read(named("face-rows"), {"rows": rows}, Head(classes=1, height=100, width=200, thresholds=0.5))
    assert isinstance(seen, Detections)
    assert seen.boxes.tolist() == [[100, 25, 200, 100], [0, 0, 100, 50]]
    assert seen.scores.tolist() == pytest.approx([0.9, 0.6])
    assert seen.class_ids.tolist() == [0, 0]


def test_the_example_reads_no_rows_at_all(tmp_path: Path) -> None:
    test_the_example_of_a_custom_layout_works(tmp_path)
    seen = read(named("face-rows"), {"rows": np.zeros((0, 5), np.float32)}, Head(height=100, width=200))
    assert isinstance(seen, Detections)
    assert not seen.boxes.size
