"""Models on plain numbers: reconstruction errors, classes and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse
from gateway.layouts import AnomalyMap, Classes, Head, Values, named
from gateway.layouts.binding import read

QUESTION = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=np.float32)


def reconstruct(answer: NDArray[Any], question: NDArray[Any] | None = QUESTION, threshold: float | None = 0.5) -> float:
    layout = "reconstruction-flat" if answer.ndim == 1 else "reconstruction"
    head = Head(question=question, anomaly_threshold=threshold)
    seen = read(named(layout), {"reconstruction": answer}, head)
    assert isinstance(seen, AnomalyMap)
    assert seen.heat is None
    return seen.score


def test_a_perfect_reconstruction_is_not_unusual() -> None:
    assert reconstruct(QUESTION) == 0.0


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_confidence_follows_the_mean_squared_error(kind: type[np.floating[Any]]) -> None:
    answer = QUESTION.copy()
    answer[1, 1] += 3.0  # 9 in one of six

    assert reconstruct(answer.astype(kind)) == pytest.approx(1.5 / (1.5 + 0.5))
    assert reconstruct(answer.astype(kind).ravel()) == pytest.approx(1.5 / (1.5 + 0.5))


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 5)),
    threshold=st.floats(1e-6, 1e6),
    spread=st.sampled_from([1e-3, 1.0, 1e15]),
)
def test_same_as_one_number_after_the_other(seed: int, shape: tuple[int, int], threshold: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    question, answer = rng.normal(0, spread, (2, *shape)).astype(np.float32)
    squares = [(float(a) - float(b)) ** 2 for a, b in zip(question.flat, answer.flat, strict=True)]
    error = sum(squares) / len(squares)

    assert reconstruct(answer, question, threshold) == pytest.approx(error / (error + threshold))


@pytest.mark.parametrize("answer", [QUESTION.T, QUESTION[:2], QUESTION.ravel()[:5]])
def test_another_shape_than_the_question(answer: NDArray[Any]) -> None:
    with pytest.raises(BackendInvalidResponse, match=r"shape of the question, \[3, 2\]"):
        reconstruct(answer)


def test_a_question_in_pictures_cannot_be_compared() -> None:
    with pytest.raises(BackendInvalidResponse, match="shape of the question, pictures"):
        reconstruct(QUESTION, question=None)


def test_an_error_needs_a_threshold() -> None:
    with pytest.raises(BackendInvalidResponse) as caught:
        reconstruct(QUESTION, threshold=None)
    assert "inference.anomaly_threshold" in caught.value.fix


def test_values_that_are_not_finite() -> None:
    with pytest.raises(BackendInvalidResponse, match="not finite"):
        reconstruct(np.full_like(QUESTION, np.inf))


def test_classes_of_a_window() -> None:
    seen = read(named("sensor-classification"), {"output": np.array([0.0, 5.0, 1.0])}, Head(classes=3))

    assert isinstance(seen, Classes)
    assert seen.class_ids.tolist() == [1]


def test_values_come_as_they_are() -> None:
    seen = read(named("values"), {"output": np.array([21.5, -3.25], np.float16)}, Head())

    assert isinstance(seen, Values)
    assert seen.values.tolist() == [21.5, -3.25]
