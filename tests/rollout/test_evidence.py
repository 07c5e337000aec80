"""What counts as evidence for or against a candidate, and what says nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    DeadlineExceeded,
    ModelUnavailable,
    SnapshotError,
)
from gateway.messages import Prediction, VariantResult
from gateway.models.spec import ModelSpec
from gateway.models.trial import Jury, Observation
from gateway.rollout.evidence import MOST_TIMES, Evidence, agreement_of
from gateway.rollout.gates import Gate, Mean
from gateway.rollout.steps import Step
from tests.flow.builders import spec

BOX = (10.0, 10.0, 50.0, 50.0)
ELSEWHERE = (100.0, 100.0, 150.0, 150.0)


def model(**rollout: Any) -> ModelSpec:
    return spec(rollout={"shadow": 10, "min_samples": 10, **rollout})


def shadow(**rollout: Any) -> Evidence:
    return Evidence(model(**rollout), Step.SHADOW)


def canary(**rollout: Any) -> Evidence:
    return Evidence(model(**rollout), Step.CANARY)


def saw(
    name: str = "helmet",
    bbox: tuple[float, float, float, float] | None = BOX,
    confidence: float = 0.9,
    class_id: int = 0,
) -> Prediction:
    return Prediction(name, class_id, confidence, bbox)


def answer(*predictions: Prediction, ms: float = 10.0, variant: str = "onnx", **more: Any) -> dict[str, VariantResult]:
    return {variant: VariantResult(variant, "2", ms, predictions, **more)}


def error(
    kind: type[SnapshotError] = BackendRejected, ms: float = 10.0, variant: str = "onnx"
) -> dict[str, VariantResult]:
    return {variant: VariantResult(variant, "", ms, error=kind("broken"))}


def pair(candidate: dict[str, VariantResult], stable: dict[str, VariantResult], **more: Any) -> Observation:
    return Observation("camera", candidate, stable, **more)


def alone(candidate: dict[str, VariantResult]) -> Observation:
    return Observation("camera", candidate=candidate, published_by_candidate=True)


def of_stable(stable: dict[str, VariantResult]) -> Observation:
    return Observation("camera", stable=stable)


# --- which steps want what ----------------------------------------------------------------------------


def test_shadow_wants_pairs_until_there_are_enough_and_canary_always() -> None:
    juries: list[Jury] = [shadow(), canary()]
    for jury, after in zip(juries, (False, True), strict=True):
        for _ in range(10):
            assert jury.wants_pairs
            jury.saw(pair(answer(saw()), answer(saw())))
        assert jury.wants_pairs is after


def test_each_step_waits_for_as_many_as_model_yaml_says() -> None:
    assert (shadow(shadow=7).needed, canary(min_samples=3).needed) == (7, 3)


def test_a_good_candidate_passes_and_says_how_far_it_is() -> None:
    jury = shadow()
    for _ in range(9):
        jury.saw(pair(answer(saw(), ms=21.0), answer(saw(), ms=19.0)))
    assert jury.verdict.passed is None
    assert jury.progress == "9 of 10 snapshots, 0 errors, p99 21 ms against 19 ms, agreement 1.00"
    jury.saw(pair(answer(saw(), ms=21.0), answer(saw(), ms=19.0)))
    assert jury.verdict.passed is True


# --- errors -------------------------------------------------------------------------------------------


def test_an_error_of_the_candidate_alone_counts() -> None:
    jury = shadow()
    jury.saw(pair(error(), answer(saw())))
    assert jury.verdict.gate is Gate.ERRORS


@pytest.mark.parametrize(
    "stable",
    [
        error(BackendTimeout),
        error(BackendTimeout, variant="torch"),
        {**error(BackendTimeout), **answer(saw(), variant="torch")},
    ],
)
def test_a_snapshot_on_which_the_stable_version_failed_too_says_nothing(stable: dict[str, VariantResult]) -> None:
    jury = shadow()
    for _ in range(50):
        jury.saw(pair(error(BackendTimeout), stable))
    assert jury.verdict.passed is None
    assert jury.figures.samples == 0
    assert jury.wants_pairs


def test_another_variant_of_the_stable_version_excuses_nothing() -> None:
    jury = shadow()
    jury.saw(pair(error(), {**answer(saw()), **error(variant="torch")}))
    assert jury.verdict.gate is Gate.ERRORS


@pytest.mark.parametrize("kind", [ModelUnavailable, BackendUnavailable])
def test_a_variant_that_is_away_says_nothing(kind: type[SnapshotError]) -> None:
    jury = canary()
    for _ in range(20):
        jury.saw(alone({**answer(saw()), **error(kind, variant="torch")}))
    assert jury.verdict.passed is True
    assert "torch" not in jury.figures.variants


def test_a_variant_for_which_no_time_was_left_says_nothing_but_a_slow_one_does() -> None:
    jury = canary()
    jury.saw(alone(error(DeadlineExceeded, ms=0.1)))
    assert jury.figures.samples == 0
    jury.saw(alone(error(DeadlineExceeded, ms=900.0)))
    assert jury.verdict.gate is Gate.ERRORS


def test_on_an_overloaded_machine_both_time_out_and_nothing_is_rolled_back() -> None:
    jury = canary()
    for number in range(60):
        late = number % 6 == 0
        jury.saw(of_stable(error(BackendTimeout) if late else answer(saw())))
        jury.saw(alone(error(BackendTimeout) if late else answer(saw())))
    assert jury.verdict.passed is True
    assert "10 as the stable version has them" in jury.progress


def test_errors_of_another_kind_than_the_stable_versions_are_not_excused() -> None:
    jury = canary()
    for number in range(60):
        late = number % 6 == 0
        jury.saw(of_stable(error(BackendTimeout) if late else answer(saw())))
        jury.saw(alone(error(BackendRejected) if late else answer(saw())))
    assert jury.verdict.gate is Gate.ERRORS


def test_only_where_both_fail_on_everything_there_is_never_a_verdict() -> None:
    jury = canary()
    for _ in range(100):
        jury.saw(of_stable(error()))
        jury.saw(alone(error()))
    assert jury.verdict.passed is None


# --- time ---------------------------------------------------------------------------------------------


def test_a_candidate_five_times_slower_fails_in_either_step() -> None:
    juries = [shadow(), canary()]
    for _ in range(20):
        juries[0].saw(pair(answer(saw(), ms=50.0), answer(saw(), ms=10.0)))
        juries[1].saw(alone(answer(saw(), ms=50.0)))
        juries[1].saw(of_stable(answer(saw(), ms=10.0)))
    assert [jury.verdict.gate for jury in juries] == [Gate.LATENCY, Gate.LATENCY]


def test_pairs_are_not_held_against_snapshots_that_the_stable_version_had_for_itself() -> None:
    jury = shadow()
    for _ in range(50):
        jury.saw(of_stable(answer(saw(), ms=10.0)))
        jury.saw(pair(answer(saw(), ms=50.0), answer(saw(), ms=50.0)))
    assert jury.verdict.passed is True


def test_two_variants_at_once_are_not_held_against_one() -> None:
    jury = canary()
    both = {**answer(saw(), ms=50.0), **answer(saw(), ms=50.0, variant="torch")}
    for _ in range(50):
        jury.saw(pair(both, answer(saw(), ms=10.0), published_by_candidate=True))
    assert jury.verdict.passed is True


def test_the_variants_of_the_shadow_are_asked_one_after_the_other_and_so_they_are() -> None:
    jury = shadow()
    both = {**answer(saw(), ms=50.0), **answer(saw(), ms=50.0, variant="torch")}
    for _ in range(50):
        jury.saw(pair(both, answer(saw(), ms=10.0)))
    assert jury.verdict.gate is Gate.LATENCY


def test_what_is_kept_is_bounded_and_the_latest() -> None:
    jury = canary()
    for number in range(3 * MOST_TIMES):
        jury.saw(alone(answer(saw(), ms=float(number))))
    paired, own = jury.figures.variants["onnx"].times
    assert (len(paired.candidate), len(own.candidate)) == (0, MOST_TIMES)
    assert min(own.candidate) == 2 * MOST_TIMES
    assert jury.figures.samples == 3 * MOST_TIMES


# --- agreement ----------------------------------------------------------------------------------------


def test_versions_are_compared_variant_by_variant_else_first_with_first() -> None:
    jury = shadow()
    good, bad = saw(), saw(bbox=ELSEWHERE)
    jury.saw(pair({**answer(bad), **answer(good, variant="torch")}, answer(good, variant="torch")))
    assert jury.figures.agreement == Mean(1, 1.0)
    jury.saw(pair(answer(bad), answer(good, variant="torch")))
    assert jury.figures.agreement == Mean(2, 1.0)
    jury.saw(pair({**error(), **answer(good, variant="torch")}, answer(good)))
    assert jury.figures.agreement == Mean(3, 2.0)


def test_wrong_weights_fail_by_agreement_with_the_stable_version() -> None:
    jury = shadow()
    for _ in range(10):
        jury.saw(pair(answer(saw(bbox=ELSEWHERE)), answer(saw())))
    assert jury.verdict.gate is Gate.AGREEMENT


def test_variants_that_disagree_fail_where_one_differs_from_the_stable_version() -> None:
    jury = canary(min_agreement=0.0)
    for _ in range(10):
        jury.saw(alone({**answer(saw()), **answer(saw(bbox=ELSEWHERE), variant="torch")}))
    assert jury.verdict.gate is Gate.VARIANT_AGREEMENT
    assert jury.verdict.reason.startswith("onnx and torch agree by 0.00 on 10 snapshots")


def result(*predictions: Prediction, **more: Any) -> VariantResult:
    return VariantResult("onnx", "1", 1.0, predictions, **more)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (result(), result(), 1.0),
        (result(saw()), result(), 0.0),
        (result(saw(), saw(bbox=ELSEWHERE)), result(saw()), 0.5),
        (result(saw()), result(saw("no-helmet", class_id=1)), 0.0),
        (result(saw(class_id=0)), result(saw(class_id=4)), 1.0),  # the same name, numbered anew
        (result(saw("cat", class_id=0)), result(saw("dog", class_id=0)), 0.0),
        (result(saw("clear", None, 0.9)), result(saw("clear", None, 0.9)), 1.0),
        (result(saw("clear", None, 0.9)), result(saw("blocked", None, 0.9)), 0.0),
        (
            result(saw("clear", None, 0.55), saw("blocked", None, 0.45)),
            result(saw("blocked", None, 0.55), saw("clear", None, 0.45)),
            pytest.approx(0.9 / 1.1),
        ),
        (result(score=0.2), result(score=0.3), pytest.approx(0.9)),
        (result(saw("anomaly", None, 0.55), score=0.55), result(score=0.45), 0.0),
        (result(values=(20.0, 30.0)), result(values=(21.0, 29.0)), pytest.approx(0.96)),
        (result(values=(0.0,)), result(values=(0.0,)), 1.0),
        (result(values=(5.0,)), result(values=(-5.0,)), 0.0),
        (result(values=(5.0,)), result(values=(5.0, 5.0)), 0.0),
        (result(values=(5.0,)), result(), 0.0),
    ],
)
def test_agreement_on_one_snapshot(first: VariantResult, second: VariantResult, expected: float) -> None:
    assert agreement_of(first, second, 0.5) == expected
    assert agreement_of(second, first, 0.5) == expected


boxes = st.builds(
    lambda x, y, side: (float(x), float(y), float(x + side), float(y + side)),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(1, 40),
)
confidences = st.floats(0.0, 1.0)
objects = st.builds(saw, st.sampled_from("abc"), boxes, confidences, st.integers(0, 2))
classes = st.builds(saw, st.sampled_from("abc"), st.none(), confidences)
results = st.one_of(
    st.lists(objects, max_size=5).map(lambda seen: result(*seen)),
    st.lists(classes, max_size=3).map(lambda seen: result(*seen)),
    st.builds(lambda score: result(score=score), confidences),
    st.lists(st.floats(-1e6, 1e6), max_size=4).map(lambda values: result(values=tuple(values))),
)


@given(results, results)
def test_agreement_is_a_share_and_whole_with_itself(first: VariantResult, second: VariantResult) -> None:
    assert 0.0 <= agreement_of(first, second, 0.5) <= 1.0 + 1e-9
    assert agreement_of(first, first, 0.5) == pytest.approx(1.0)
    assert agreement_of(first, second, 0.5) == pytest.approx(agreement_of(second, first, 0.5))


kinds = st.sampled_from([BackendRejected, BackendTimeout, ModelUnavailable, DeadlineExceeded])
sides = st.dictionaries(
    st.sampled_from(["onnx", "torch"]),
    st.one_of(
        st.builds(lambda ms: VariantResult("v", "1", ms, (saw(),)), st.floats(0, 100)),
        st.builds(lambda kind, ms: VariantResult("v", "1", ms, error=kind("x")), kinds, st.floats(0, 100)),
    ),
)
observations = st.builds(Observation, st.just("camera"), sides, sides, st.booleans())


@given(st.lists(observations, max_size=40), st.sampled_from([Step.SHADOW, Step.CANARY]))
def test_whatever_is_seen_gives_a_verdict(seen: list[Observation], step: Step) -> None:
    jury = Evidence(model(), step)
    for each in seen:
        jury.saw(each)
    assert jury.verdict.reason
    assert jury.progress
    assert 0 <= jury.figures.samples <= len(seen)
    for variant in jury.figures.variants.values():
        assert 0 <= variant.excused <= sum(variant.errors.values())


@given(st.lists(observations, max_size=40))
def test_one_more_error_of_the_candidate_never_turns_a_fail_into_a_pass(seen: list[Observation]) -> None:
    jury = canary(max_error_rate=0.1)
    for each in seen:
        jury.saw(each)
    before = jury.verdict.gate
    jury.saw(alone(error()))
    if before is Gate.ERRORS:
        assert jury.verdict.passed is False
