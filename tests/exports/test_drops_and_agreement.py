"""What the check of the exports rests on: its changes to the pages' blocks, and that it finds faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.models.spec import read_spec
from tests.exports.agreement import Agreement, compare, worst
from tests.exports.drops import DROPS, model_yaml

SIZE = (640, 360)
ANSWER = {"boxes": [[-3.0, 10.0, 100.0, 90.0], [200.0, 50.0, 300.0, 170.0]], "scores": [0.9, 0.6], "classes": [0, 2]}
SAME = [
    {"class_id": 2, "confidence": 0.6, "bbox": [200.0, 50.0, 300.0, 170.0]},
    {"class_id": 0, "confidence": 0.9, "bbox": [0.0, 10.0, 100.0, 90.0]},
]


@pytest.mark.parametrize("family", DROPS)
def test_every_family_has_its_model_yaml_on_a_page(family: str, tmp_path: Path) -> None:
    path = tmp_path / family / "model.yaml"
    path.parent.mkdir()
    path.write_text(model_yaml(family))
    spec = read_spec(path)
    assert spec.name == family
    assert set(spec.variants.values()) <= {f"{family}-onnx", f"{family}-torch"}


def test_the_tools_own_answer_agrees_once_it_is_clipped() -> None:
    assert compare(ANSWER, SAME, SIZE, 0.25) == Agreement(2, 1.0, 0.0, 0)


@pytest.mark.parametrize(
    "fault",
    [
        {"confidence": 0.61},
        {"class_id": 1},
        {"bbox": [202.0, 50.0, 302.0, 170.0]},
        {"bbox": [400.0, 50.0, 500.0, 170.0]},
    ],
    ids=["score", "class", "box", "elsewhere"],
)
def test_a_fault_is_found(fault: dict[str, Any]) -> None:
    assert not compare(ANSWER, [{**SAME[0], **fault}, SAME[1]], SIZE, 0.25).good


def test_one_too_few_or_too_many_is_found_unless_it_is_at_the_threshold() -> None:
    extra = {"class_id": 1, "confidence": 0.3, "bbox": [0.0, 0.0, 9.0, 9.0]}
    assert compare(ANSWER, SAME[:1], SIZE, 0.25).missing == 1
    assert compare(ANSWER, [*SAME, extra], SIZE, 0.25).missing == 1
    assert compare(ANSWER, [*SAME, {**extra, "confidence": 0.253}], SIZE, 0.25).good


def test_classes_are_compared_by_number_in_any_order() -> None:
    found = [{"class_id": 1, "confidence": 0.7}, {"class_id": 0, "confidence": 0.295}]
    assert compare({"scores": [0.295, 0.7, 0.005]}, found, SIZE, 0.01).good
    assert compare({"scores": [0.7, 0.295, 0.005], "classes": [1, 0, 2]}, found, SIZE, 0.01).good
    assert not compare({"scores": [0.28, 0.7, 0.02]}, found, SIZE, 0.01).good


def test_nothing_compared_is_no_agreement() -> None:
    assert not worst([]).good
