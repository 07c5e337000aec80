"""Every kept answer of a tool (ultralytics, torchvision and others) held against what the layout says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.layouts import AnomalyMap, Classes, Detections, Head, Layout, Seen, named
from gateway.layouts.binding import bind, classes_of, explain, read
from gateway.layouts.boxes import iou_matrix
from gateway.messages import TensorSpec

REFERENCES = sorted((Path(__file__).parent / "references").glob("*.npz"))
TYPES = {"float32": "FP32", "float16": "FP16", "float64": "FP64", "int64": "INT64", "int32": "INT32", "uint8": "UINT8"}
HEAD_FIELDS = {"confidence": "thresholds", "iou": "iou_threshold"}
"""What the references call settings of the tools, and the field of the head; the others have the same name."""

Arrays = dict[str, NDArray[Any]]


def part(file: Any, start: str) -> Arrays:
    return {name.removeprefix(start): file[name] for name in file.files if name.startswith(start)}


def head_of(file: Any) -> Head:
    """The head as a model.yaml would give it that says what the tool was called with."""
    height, width = file["input_size"].tolist()
    said = {HEAD_FIELDS.get(name, name): value.item() for name, value in part(file, "setting.").items()}
    classes = file["classes"].item()
    return Head(**({"classes": classes, "height": height, "width": width, "thresholds": 0.0, "top_k": classes} | said))


def seen(layout: Layout, outputs: Arrays, head: Head) -> Seen:
    """The outputs by the whole way: bound by their shapes and names, taken out of the batch, read."""
    specs = [TensorSpec(name, TYPES[str(array.dtype)], array.shape) for name, array in outputs.items()]
    bound = bind(layout, specs, head.classes, {})
    assert bound is not None, explain(layout, specs, head.classes)
    assert classes_of(layout, specs, bound) in (0, head.classes)
    return read(
        layout,
        {
            role: outputs[output.tensor][0] if output.batch_axis else outputs[output.tensor]
            for role, output in bound.items()
        },
        head,
    )


def assert_same_boxes(found: Detections, answer: Arrays) -> None:
    """One object for each of the tool's: same class, IoU of at least 0.99, scores that differ by less than 0.005."""
    assert len(found.boxes) == len(answer["boxes"])
    overlap = iou_matrix(answer["boxes"], found.boxes) * (answer["classes"][:, None] == found.class_ids)
    near = np.abs(answer["scores"][:, None] - found.scores) < 0.005
    partner = (overlap * near).argmax(axis=1)
    assert (overlap[np.arange(len(partner)), partner] >= 0.99).all()
    assert near[np.arange(len(partner)), partner].all()
    assert len(set(partner.tolist())) == len(partner), "two of the tool's objects have one of ours"


def assert_same_masks(found: Detections, answer: Arrays, width: int) -> None:
    """Masks are compared object by object, best first, over the whole input."""
    assert found.masks is not None
    expected = np.unpackbits(answer["masks"], axis=-1, count=width).astype(bool)
    for index, wanted in enumerate(expected):
        mask = found.masks.of(index)
        rows = (np.arange(wanted.shape[0]) + 0.5 - mask.top) / mask.cell_height
        columns = (np.arange(wanted.shape[1]) + 0.5 - mask.left) / mask.cell_width
        inside = np.outer((rows >= 0) & (rows < mask.cells.shape[0]), (columns >= 0) & (columns < mask.cells.shape[1]))
        y = rows.astype(int).clip(0, mask.cells.shape[0] - 1)
        x = columns.astype(int).clip(0, mask.cells.shape[1] - 1)
        ours = mask.cells[np.ix_(y, x)] & inside
        assert (ours & wanted).sum() / (ours | wanted).sum() >= 0.95


def test_there_are_references() -> None:
    assert REFERENCES, "tests/layouts/references is empty: make them with `python -m tests.exports`"


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_the_layout_says_what_the_tool_says(path: Path) -> None:
    with np.load(path) as file:
        layout = named(file["layout"].item())
        for number in range(file["cases"].item()):
            answer = part(file, f"{number}.answer.")
            found = seen(layout, part(file, f"{number}.output."), head_of(file))
            match found:
                case Detections():
                    assert_same_boxes(found, answer)
                    if "masks" in answer:
                        assert_same_masks(found, answer, file["input_size"][1].item())
                case Classes():
                    assert found.class_ids[: len(answer["classes"])].tolist() == answer["classes"].tolist()
                    np.testing.assert_allclose(found.scores[: len(answer["scores"])], answer["scores"], atol=0.005)
                case AnomalyMap():
                    assert found.heat is not None
                    assert found.score == pytest.approx(answer["score"].item(), abs=0.005)
                    np.testing.assert_allclose(found.heat, answer["map"], atol=0.005)
                case _:
                    raise AssertionError(found)
