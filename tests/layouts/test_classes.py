"""Classifiers held against plain arithmetic, and against real exports of Ultralytics with the tool's own answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gateway.errors import BackendInvalidResponse
from gateway.layouts import Classes, Head, named
from gateway.layouts.binding import bind, read
from gateway.messages import TensorSpec

EXPORTS = sorted((Path(__file__).parent / "references").glob("*-cls.npz"))
Activation = Literal["softmax", "sigmoid", "none"]


def classify(values: list[float], head: Head) -> list[tuple[int, float]]:
    """(class, confidence), best first."""
    seen = read(named("classification"), {"output": np.array(values, dtype=np.float32)}, head)
    assert isinstance(seen, Classes)
    return list(zip(seen.class_ids.tolist(), seen.scores.tolist(), strict=True))


def test_softmax_is_the_usual_activation() -> None:
    powers = [math.exp(value) for value in (1.0, 3.0, 2.0)]

    found = classify([1.0, 3.0, 2.0], Head(classes=3, thresholds=0.0, top_k=3))

    assert [class_id for class_id, _ in found] == [1, 2, 0]
    assert [score for _, score in found] == pytest.approx([powers[i] / sum(powers) for i in (1, 2, 0)])


def test_with_sigmoid_several_classes_are_true_at_once() -> None:
    head = Head(classes=4, activation="sigmoid", top_k=10)

    found = classify([2.0, -2.0, 0.1, 700.0], head)

    assert [class_id for class_id, _ in found] == [3, 0, 2]
    assert [score for _, score in found] == pytest.approx([1.0, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.1))])


def test_top_k_ends_the_list() -> None:
    head = Head(classes=4, activation="sigmoid", top_k=2)

    assert [class_id for class_id, _ in classify([2.0, 1.0, 3.0, 0.5], head)] == [2, 0]


def test_a_class_that_is_not_reported_takes_no_place() -> None:
    thresholds = np.array([2.0, 0.05, 2.0], dtype=np.float32)
    head = Head(classes=3, activation="none", thresholds=thresholds, top_k=1)

    ((class_id, score),) = classify([0.8, 0.15, 0.05], head)
    assert class_id == 1
    assert score == pytest.approx(0.15)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (-1, 3, 1, 1), (3, 1, 1)])
def test_maps_of_one_pixel_have_their_own_layout(shape: tuple[int, ...]) -> None:
    layout = named("classification-1x1")
    outputs = {"output": np.array([0.1, 0.7, 0.2], dtype=np.float16).reshape(3, 1, 1)}

    assert bind(layout, [TensorSpec("prob", "FP16", shape)], 3, {}) is not None
    seen = read(layout, outputs, Head(classes=3, activation="none"))
    assert isinstance(seen, Classes)
    assert seen.class_ids.tolist() == [1]


def test_logits_are_not_taken_for_probabilities() -> None:
    with pytest.raises(BackendInvalidResponse, match=r"has 7\.3 where a confidence") as caught:
        classify([7.3, -1.0], Head(classes=2, activation="none"))
    assert "inference.activation" in caught.value.fix


def test_rounding_in_half_precision_is_no_error() -> None:
    assert classify([1.0005, -0.0005], Head(classes=2, activation="none")) == [(0, 1.0)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(BackendInvalidResponse, match="not finite"):
        classify([bad, 1.0], Head(classes=2))


@settings(deadline=None)
@given(
    values=arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    activation=st.sampled_from(["softmax", "sigmoid"]),
    top_k=st.integers(1, 60),
    threshold=st.floats(0, 1),
)
def test_what_comes_out_is_sorted_above_the_threshold_and_no_more_than_asked(
    values: np.ndarray[tuple[int], np.dtype[np.float32]], activation: Activation, top_k: int, threshold: float
) -> None:
    found = classify(values.tolist(), Head(thresholds=threshold, activation=activation, top_k=top_k))

    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert all(threshold < score <= 1 for score in scores)
    assert len(found) <= min(top_k, values.size)
    assert len({class_id for class_id, _ in found}) == len(found)


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_same_classes_as_the_tool_that_exported_the_model(path: Path) -> None:
    with np.load(path) as stored:
        for case in range(int(stored["cases"])):
            (output,) = (stored[name] for name in stored.files if name.startswith(f"{case}.output."))
            head = Head(classes=output.size, activation="none", thresholds=0.0, top_k=output.size)
            found = classify(output[0].tolist(), head)
            assert [class_id for class_id, _ in found] == stored[f"{case}.answer.classes"].tolist()
            assert [score for _, score in found] == pytest.approx(stored[f"{case}.answer.scores"].tolist(), abs=1e-6)
