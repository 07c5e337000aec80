"""Agreement is symmetric, exact on itself, and counts what is missing or flipped."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import compare
from gateway.layouts.boxes import iou_matrix
from gateway.messages import Agreement, Prediction, VariantResult

sides = st.integers(1, 60)
boxes = st.builds(
    lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)),
    st.integers(0, 100), st.integers(0, 100), sides, sides,
)  # fmt: skip
predictions = st.lists(
    st.builds(Prediction, st.just("c"), st.integers(0, 2), st.floats(0.1, 1.0), boxes), max_size=8
).map(tuple)


def detection(class_id: int, *bbox: float, confidence: float = 0.9) -> Prediction:
    return Prediction(f"c{class_id}", class_id, confidence, (bbox[0], bbox[1], bbox[2], bbox[3]))


def result(*seen: Prediction, score: float | None = None, values: tuple[float, ...] | None = None) -> VariantResult:
    return VariantResult("v", "1", 1.0, seen, score, values)


def agree(first: tuple[Prediction, ...], second: tuple[Prediction, ...], match_iou: float) -> Agreement:
    return compare.agree(result(*first), result(*second), match_iou)


@given(predictions, predictions)
def test_the_counts_add_up(first: tuple[Prediction, ...], second: tuple[Prediction, ...]) -> None:
    result = agree(first, second, 0.5)
    assert result.matched + result.class_flips + result.only_first == len(first)
    assert result.matched + result.class_flips + result.only_second == len(second)
    assert result.mean_iou is None or 0.5 <= result.mean_iou <= 1.0 + 1e-6


@given(predictions)
def test_everything_agrees_with_itself(first: tuple[Prediction, ...]) -> None:
    result = agree(first, first, 0.5)
    assert result.match
    assert result.matched == len(first)
    assert not first or result.max_confidence_delta is not None


def slowly(first: tuple[Prediction, ...], second: tuple[Prediction, ...], match_iou: float) -> Agreement:
    """Every pair is looked at, best overlap first; once for those of the same class, once for the rest."""
    overlap = iou_matrix(np.array([p.bbox for p in first]), np.array([p.bbox for p in second])).tolist()
    order = sorted(
        ((i, j) for i in range(len(first)) for j in range(len(second))), key=lambda at: -overlap[at[0]][at[1]]
    )
    pairs: list[tuple[int, int]] = []
    for flipped in (False, True):
        for i, j in order:
            enough = overlap[i][j] >= float(np.float32(match_iou))
            free = all(i != row and j != column for row, column in pairs)
            if enough and free and flipped == (first[i].class_id != second[j].class_id):
                pairs.append((i, j))
    flips = sum(first[i].class_id != second[j].class_id for i, j in pairs)
    return Agreement(
        matched=len(pairs) - flips,
        only_first=len(first) - len(pairs),
        only_second=len(second) - len(pairs),
        class_flips=flips,
        mean_iou=float(np.mean([overlap[i][j] for i, j in pairs])) if pairs else None,
        max_confidence_delta=max((abs(first[i].confidence - second[j].confidence) for i, j in pairs), default=None),
    )


crowds = st.lists(
    st.builds(
        lambda class_id, confidence, x, y: detection(class_id, x, y, x + 8, y + 8, confidence=confidence),
        st.integers(0, 2), st.floats(0.1, 1.0), st.integers(0, 5), st.integers(0, 5),
    ), min_size=1, max_size=30,
).map(tuple)  # fmt: skip


@given(st.one_of(predictions, crowds), st.one_of(predictions, crowds), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_the_pairs_are_those_of_the_slow_way(
    first: tuple[Prediction, ...], second: tuple[Prediction, ...], match_iou: float
) -> None:
    assert agree(first, second, match_iou) == slowly(first, second, match_iou)


@pytest.mark.parametrize("crowd", ["in one place", "one after the other", "scattered a little"])
def test_a_thousand_boxes_in_one_place_do_not_keep_the_loop(crowd: str) -> None:
    shifts = {
        "in one place": np.zeros((2, 1000)),
        "one after the other": np.stack((np.zeros(1000), np.linspace(0, 5, 1000))),
        "scattered a little": np.random.default_rng(1).uniform(0, 5, (2, 1000)),
    }[crowd]
    first, second = (
        tuple(detection(index % 3, shift, shift, shift + 100, shift + 100) for index, shift in enumerate(side))
        for side in shifts
    )
    began = time.process_time()
    found = agree(first, second, 0.5)
    took_s = time.process_time() - began
    assert (found.matched + found.class_flips, found.only_first, found.only_second) == (1000, 0, 0)
    assert took_s < 0.5, "pair by pair it takes seconds"


def test_missing_and_flipped_detections_are_told_apart() -> None:
    first = (detection(0, 0, 0, 10, 10), detection(1, 50, 50, 60, 60), detection(2, 80, 80, 90, 90))
    second = (detection(0, 0, 0, 10, 9, confidence=0.8), detection(2, 50, 50, 60, 60))
    result = agree(first, second, 0.5)
    assert (result.matched, result.class_flips, result.only_first, result.only_second) == (1, 1, 1, 0)
    assert result.mean_iou == pytest.approx((0.9 + 1.0) / 2)
    assert result.max_confidence_delta == pytest.approx(0.1)
    assert not result.match


def test_two_objects_in_one_place_do_not_cross_over() -> None:
    pair = (detection(0, 0, 0, 10, 10), detection(1, 0, 0, 10, 10))
    assert agree(pair, pair[::-1], 0.5).match


def test_objects_of_two_classes_in_nearly_one_place_find_their_own_class() -> None:
    first = (detection(0, 0, 0, 100, 100), detection(1, 1, 0, 101, 100))
    second = (detection(1, 0, 0, 100, 100), detection(0, 2, 0, 102, 100))
    assert agree(first, second, 0.5).match


def test_classes_without_a_place_pair_by_rank() -> None:
    clear, blocked = Prediction("clear", 0, 0.9), Prediction("blocked", 1, 0.8)
    assert agree((clear,), (clear,), 0.5).match
    assert agree((clear,), (blocked,), 0.5).class_flips == 1


def test_nothing_on_both_sides_is_agreement() -> None:
    result = agree((), (), 0.5)
    assert result.match
    assert result.mean_iou is None


def test_regressions_agree_when_their_numbers_do() -> None:
    assert compare.agree(result(values=(1.0, 200.0)), result(values=(1.0005, 200.1)), 0.5).match
    assert not compare.agree(result(values=(1.0,)), result(values=(1.1,)), 0.5).match
    assert not compare.agree(result(values=(1.0,)), result(values=(1.0, 2.0)), 0.5).match


def test_the_score_of_an_anomaly_counts_as_a_confidence() -> None:
    found = compare.agree(result(score=0.3), result(score=0.45), 0.5)
    assert found.max_confidence_delta == pytest.approx(0.15)
    assert found.match
