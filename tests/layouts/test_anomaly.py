"""Anomaly scores and maps: confidences as they come, or from raw scores by a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse
from gateway.layouts import AnomalyMap, Head, named
from gateway.layouts.binding import bind, read
from gateway.messages import TensorSpec

MAP = np.array([[[0.1, 0.2, 0.7], [0.0, 1.0, 0.3]]], dtype=np.float32)


def look(layout: str, head: Head | None = None, **outputs: NDArray[Any]) -> AnomalyMap:
    seen = read(named(layout), outputs, head or Head())
    assert isinstance(seen, AnomalyMap)
    return seen


def test_scores_that_are_already_normalised_come_out_unchanged() -> None:
    seen = look("anomaly-map-score", anomaly_map=MAP, pred_score=np.array([0.7], np.float32))

    assert seen.score == pytest.approx(0.7)
    assert seen.heat is not None
    np.testing.assert_array_equal(seen.heat, MAP[0])


def test_without_a_score_the_highest_pixel_is_that_of_the_picture() -> None:
    assert look("anomaly-map", anomaly_map=MAP).score == 1.0
    assert look("anomaly-map-2d", anomaly_map=MAP[0]).score == 1.0


def test_raw_scores_become_confidences_by_the_threshold() -> None:
    seen = look("anomaly-map", Head(anomaly_threshold=12.0), anomaly_map=MAP * 36)

    assert seen.score == pytest.approx(36 / 48)
    assert seen.heat is not None
    assert seen.heat[0, 0] == pytest.approx(3.6 / 15.6)


def test_raw_scores_without_a_threshold_are_not_guessed_at() -> None:
    with pytest.raises(BackendInvalidResponse, match=r"has 36 where a confidence") as caught:
        look("anomaly-map", anomaly_map=MAP * 36)
    assert "inference.anomaly_threshold" in caught.value.fix


@pytest.mark.parametrize(("layout", "role"), [("anomaly-score", "pred_score"), ("sensor-score", "score")])
def test_a_score_alone(layout: str, role: str) -> None:
    plain = look(layout, None, **{role: np.array([0.25])})
    raw = look(layout, Head(anomaly_threshold=2.0), **{role: np.array([2])})

    assert (plain.score, plain.heat) == (0.25, None)
    assert raw.score == 0.5


@settings(deadline=None)
@given(
    scores=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=20),
    threshold=st.floats(1e-6, 1e6),
)
def test_confidences_keep_the_order_and_are_one_half_at_the_threshold(scores: list[float], threshold: float) -> None:
    head = Head(anomaly_threshold=threshold)
    heat = look("anomaly-map-2d", head, anomaly_map=np.array([scores], np.float32)).heat
    middle = look("anomaly-score", head, pred_score=np.array([threshold], np.float64)).score

    assert heat is not None
    assert ((heat >= 0) & (heat <= 1)).all()
    assert (np.diff(heat[0][np.argsort(scores)]) >= 0).all()
    assert middle == pytest.approx(0.5, abs=1e-6)


def test_anomalibs_four_outputs_find_their_roles_by_name() -> None:
    tensors = [
        TensorSpec("pred_label", "BOOL", (-1, 1)),
        TensorSpec("pred_mask", "BOOL", (-1, 1, 256, 256)),
        TensorSpec("anomaly_map", "FP32", (-1, 1, 256, 256)),
        TensorSpec("pred_score", "FP32", (-1, 1)),
    ]

    bound = bind(named("anomaly-map-score"), tensors, 0, {})

    assert bound is not None
    assert {role: output.tensor for role, output in bound.items()} == {
        "anomaly_map": "anomaly_map",
        "pred_score": "pred_score",
    }


@pytest.mark.parametrize("threshold", [None, 1.0])
def test_values_that_are_not_finite(threshold: float | None) -> None:
    bad = MAP.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(BackendInvalidResponse, match="not finite"):
        look("anomaly-map", Head(anomaly_threshold=threshold), anomaly_map=bad)
