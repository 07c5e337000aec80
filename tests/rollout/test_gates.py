"""The gates: exact where they can be, monotone, quiet on an equal model and certain of a slow one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.rollout_spec import RolloutSpec
from gateway.rollout.gates import (
    SIGNIFICANCE,
    Figures,
    Gate,
    Mean,
    Times,
    VariantSeen,
    Verdict,
    is_more_than,
    judge,
    progress,
    quantile,
)

STEADY = (10.0,) * 50


def spec(**more: Any) -> RolloutSpec:
    return RolloutSpec(**more)


def figures(answers: int = 50, **more: Any) -> Figures:
    """A candidate with one variant that answered everything; `more` is of the variant."""
    seen = VariantSeen(answers=answers, **more)
    return Figures(snapshots=math.ceil(seen.counted), variants={"onnx": seen})


def slow(candidate: tuple[float, ...], stable: tuple[float, ...] = STEADY) -> Figures:
    return figures(len(candidate), times=(Times(candidate, stable),))


def failed(verdict: Verdict) -> Gate | None:
    return verdict.gate if verdict.passed is False else None


# --- how many are enough ------------------------------------------------------------------------------


@pytest.mark.parametrize(("answers", "passed"), [(0, None), (19, None), (20, True), (500, True)])
def test_nothing_passes_before_there_are_enough_samples(answers: int, passed: bool | None) -> None:
    verdict = judge(figures(answers), spec(), 20)
    assert verdict.passed is passed
    assert verdict.gate is None
    assert verdict.reason.startswith(f"{answers} of 20 snapshots" if passed is None else f"{answers} snapshots")


# --- errors -------------------------------------------------------------------------------------------


def test_errors_fail_early_only_where_no_further_answer_can_help() -> None:
    allowed = spec(max_error_rate=0.1)
    assert judge(figures(0, errors={"BACKEND_REJECTED": 2}), allowed, 20).passed is None
    verdict = judge(figures(0, errors={"BACKEND_REJECTED": 3}), allowed, 20)
    assert failed(verdict) is Gate.ERRORS
    assert verdict.reason == "onnx failed on 3 of 3 snapshots (BACKEND_REJECTED 3), at most 10 % may"
    assert "rollout.max_error_rate" in verdict.fix
    assert judge(figures(18, errors={"BACKEND_REJECTED": 2}), allowed, 20).passed is True


def test_each_variant_is_held_to_the_error_rate_by_itself() -> None:
    seen = {"onnx": VariantSeen(answers=99), "torch": VariantSeen(answers=1, errors={"BACKEND_REJECTED": 1})}
    verdict = judge(Figures(snapshots=100, variants=seen), spec(max_error_rate=0.1), 50)
    assert failed(verdict) is Gate.ERRORS
    assert verdict.reason.startswith("torch failed on 1 of 2")


def test_a_candidate_whose_every_error_is_excused_has_shown_nothing() -> None:
    verdict = judge(Figures(50, {"onnx": VariantSeen(errors={"DEADLINE_EXCEEDED": 50}, excused=50.0)}), spec(), 20)
    assert verdict.passed is None
    assert "50 as the stable version has them" in verdict.reason


# --- time ---------------------------------------------------------------------------------------------


def test_the_reason_says_figures_and_limits() -> None:
    verdict = judge(slow((50.0,) * 41 + (10.0,) * 9), spec(), 50)
    assert failed(verdict) is Gate.LATENCY
    assert verdict.reason == (
        "p99 of onnx: 41 of 50 answers took longer than 20 ms; the stable version's p99 is 10 ms, "
        "and 2 times that is allowed"
    )
    assert "rollout.max_slowdown" in verdict.fix


@pytest.mark.parametrize("hiccups", [1, 2])
def test_a_hiccup_of_the_machine_rolls_nothing_back(hiccups: int) -> None:
    assert judge(slow((10.0,) * (50 - hiccups) + (500.0,) * hiccups), spec(), 50).passed is True


def test_one_hiccup_of_the_stable_version_does_not_hide_a_slow_candidate() -> None:
    verdict = judge(slow((50.0,) * 50, (*STEADY[:-1], 500.0)), spec(), 50)
    assert failed(verdict) is Gate.LATENCY
    assert verdict.reason.startswith("median of onnx: 50 of 50")


def test_a_slow_tail_alone_fails() -> None:
    verdict = judge(slow((10.0,) * 180 + (50.0,) * 20, STEADY * 4), spec(), 50)
    assert failed(verdict) is Gate.LATENCY
    assert verdict.reason.startswith("p99 of onnx: 20 of 200")


def test_differences_below_a_millisecond_do_not_matter() -> None:
    assert judge(slow((0.9,) * 50, (0.1,) * 50), spec(), 50).passed is True
    assert failed(judge(slow((1.2,) * 50, (0.1,) * 50), spec(), 50)) is Gate.LATENCY


def test_times_are_held_against_as_many_of_the_stable_version_or_none() -> None:
    assert judge(slow((50.0,) * 50, (10.0,) * 4), spec(), 50).passed is True
    assert failed(judge(slow((50.0,) * 50, (10.0,) * 5), spec(), 50)) is Gate.LATENCY
    assert judge(slow((50.0,) * 49), spec(), 50).passed is None


def test_the_binomial_test_is_the_one_of_the_textbook() -> None:
    for of, share in ((20, 0.01), (50, 0.5), (200, 0.01)):
        for found in range(of + 1):
            tail = sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(found, of + 1))
            assert is_more_than(found, of, share) is (tail <= SIGNIFICANCE), (found, of, share)
    assert is_more_than(1_200, 2_000, 0.5)  # where 0.5 ** 2000 is no number of its own any more


def test_the_quantile_is_the_value_that_this_share_lies_above() -> None:
    assert quantile(tuple(range(1, 101)), 0.01) == 99
    assert quantile(tuple(range(1, 101)), 0.5) == 50
    assert quantile((3.0, 1.0, 2.0), 0.01) == 3.0
    assert quantile((7.0,), 0.5) == 7.0


# --- agreement ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "gate", "said"),
    [
        ("agreement", Gate.AGREEMENT, "it agrees with the stable version by 0.30 on 50 snapshots, at least 0.50"),
        ("variant_agreement", Gate.VARIANT_AGREEMENT, "onnx agree by 0.30 on 50 snapshots, at least 0.90"),
    ],
)
def test_too_little_agreement_fails(kind: str, gate: Gate, said: str) -> None:
    low = Mean(50, 15.0)
    seen = replace(figures(), agreement=low) if kind == "agreement" else replace(figures(), variant_agreement=low)
    verdict = judge(seen, spec(), 50)
    assert failed(verdict) is gate
    assert verdict.reason.startswith(said)
    assert f"rollout.min_{kind}" in verdict.fix


def test_agreement_fails_early_only_where_no_further_snapshot_can_help() -> None:
    def seen(count: int) -> Figures:
        return replace(figures(count), agreement=Mean(count, 0.0))

    assert judge(seen(25), spec(), 50).passed is None
    assert failed(judge(seen(26), spec(), 50)) is Gate.AGREEMENT


def test_agreement_on_too_few_pairs_says_nothing() -> None:
    assert judge(replace(figures(), agreement=Mean(4, 0.0)), spec(), 50).passed is True
    assert failed(judge(replace(figures(), agreement=Mean(5, 0.0)), spec(), 50)) is Gate.AGREEMENT


# --- what holds for all -------------------------------------------------------------------------------

times = st.lists(st.floats(0.1, 1e4), max_size=60).map(tuple)


@st.composite
def anything(draw: st.DrawFn) -> Figures:
    seen = {
        name: VariantSeen(
            answers=draw(st.integers(0, 60)),
            errors={"BACKEND_REJECTED": draw(st.integers(0, 5))},
            times=(Times(draw(times), draw(times)),),
        )
        for name in ("onnx", "torch")
    }
    count = draw(st.integers(0, 60))
    agreement = Mean(count, count * draw(st.floats(0, 1)))
    return Figures(draw(st.integers(0, 80)), seen, agreement, agreement)


@given(anything(), st.integers(1, 60), st.floats(0, 1))
def test_more_errors_never_turn_a_fail_into_a_pass(before: Figures, needed: int, rate: float) -> None:
    onnx = before.variants["onnx"]
    worse = replace(onnx, errors={"BACKEND_REJECTED": onnx.errors["BACKEND_REJECTED"] + 1})
    after = replace(before, snapshots=before.snapshots + 1, variants={**before.variants, "onnx": worse})
    if judge(before, spec(max_error_rate=rate), needed).gate is Gate.ERRORS:
        assert judge(after, spec(max_error_rate=rate), needed).gate is Gate.ERRORS


@given(anything(), st.integers(1, 60), st.floats(1.0, 100.0))
def test_slower_answers_never_turn_a_fail_into_a_pass(before: Figures, needed: int, factor: float) -> None:
    slower = {
        name: replace(
            seen, times=tuple(Times([t * factor for t in each.candidate], each.stable) for each in seen.times)
        )
        for name, seen in before.variants.items()
    }
    if judge(before, spec(), needed).passed is False:
        assert judge(replace(before, variants=slower), spec(), needed).passed is False


@given(anything(), st.integers(1, 60), st.floats(0, 1))
def test_less_agreement_never_turns_a_fail_into_a_pass(before: Figures, needed: int, share: float) -> None:
    less = Mean(before.agreement.count, before.agreement.total * share)
    if judge(before, spec(), needed).passed is False:
        assert judge(replace(before, agreement=less), spec(), needed).passed is False


@given(anything(), st.integers(1, 60))
def test_a_verdict_is_one_line_with_a_fix_where_it_fails(seen: Figures, needed: int) -> None:
    verdict = judge(seen, spec(), needed)
    assert verdict.reason
    assert "\n" not in verdict.reason
    assert (verdict.passed is False) == bool(verdict.gate) == bool(verdict.fix)
    assert (verdict.passed is not True) or seen.samples >= needed


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 60), st.floats(0, 1))
def test_an_early_fail_stands_however_good_the_rest_is(errors: int, needed: int, pairs: int, rate: float) -> None:
    early = replace(figures(0, errors={"BACKEND_REJECTED": errors}), agreement=Mean(pairs, 0.0))
    rest = max(0, needed - errors)
    to_come = max(0, needed - pairs)
    late = replace(figures(rest, errors={"BACKEND_REJECTED": errors}), agreement=Mean(pairs + to_come, float(to_come)))
    if early.samples < needed and judge(early, spec(max_error_rate=rate), needed).passed is False:
        assert judge(late, spec(max_error_rate=rate), needed).passed is False


# --- on a noisy machine -------------------------------------------------------------------------------


def noisy(random: np.random.Generator, count: int, *, slower: float = 1.0) -> tuple[float, ...]:
    """Lognormal noise, and one answer in a hundred that takes ten times as long."""
    hiccups = np.where(random.random(count) < 0.01, 10.0, 1.0)
    return tuple((10.0 * slower * random.lognormal(0, 0.2, count) * hiccups).tolist())


def failures(count: int, slower: float, trials: int = 300) -> float:
    random = np.random.default_rng(20)
    verdicts = [
        judge(slow(noisy(random, count, slower=slower), noisy(random, count)), spec(), count) for _ in range(trials)
    ]
    return sum(verdict.passed is False for verdict in verdicts) / trials


@pytest.mark.parametrize("count", [20, 50, 200])
def test_an_equal_model_is_not_rolled_back(count: int) -> None:
    assert failures(count, 1.0) <= 0.01


@pytest.mark.parametrize("count", [20, 50, 200])
def test_a_model_that_is_5_times_slower_always_is(count: int) -> None:
    assert failures(count, 5.0) == 1.0


@pytest.mark.parametrize("count", [50, 200])
def test_a_model_that_is_3_times_slower_is_too(count: int) -> None:
    assert failures(count, 3.0) >= 0.99


# --- for people ---------------------------------------------------------------------------------------


def test_progress_is_a_line_for_people() -> None:
    seen = VariantSeen(answers=12, times=(Times((21.0,) * 12, (19.0,) * 12),))
    assert progress(Figures(12, {"onnx": seen}, Mean(12, 11.64)), 50) == (
        "12 of 50 snapshots, 0 errors, p99 21 ms against 19 ms, agreement 0.97"
    )
    both = Figures(60, {"onnx": replace(seen, errors={"X": 1}), "torch": VariantSeen(answers=3)}, Mean(), Mean(3, 3.0))
    assert progress(both, 10) == (
        "16 snapshots, 1 error, p99 of onnx 21 ms against 19 ms, agreement of the variants 1.00"
    )
    assert progress(Figures(), 50) == "0 of 50 snapshots, 0 errors"
