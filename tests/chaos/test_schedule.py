"""The same seed, the same faults; and never two at once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.faults import INJECTIONS
from tests.chaos.schedule import LENGTHS_S, QUIET_S, plan

runs = st.tuples(st.integers(0, 2**32), st.floats(30, 3600), st.integers(1, 60))


@given(runs)
def test_a_plan_follows_from_its_arguments_alone(arguments: tuple[int, float, int]) -> None:
    assert plan(*arguments) == plan(*arguments)


@given(runs)
def test_faults_come_one_after_the_other_with_time_to_recover(arguments: tuple[int, float, int]) -> None:
    _, seconds, count = arguments
    faults = plan(*arguments)
    quiet = min(QUIET_S, seconds / count / 2) - 0.01  # times are rounded
    assert len(faults) == count
    assert faults[0].at_s >= 0
    assert all(fault.end_s + quiet <= later.at_s for fault, later in pairwise(faults))
    assert faults[-1].end_s + quiet <= seconds


@given(runs)
def test_no_kind_comes_twice_before_all_have_come(arguments: tuple[int, float, int]) -> None:
    kinds = [fault.kind for fault in plan(*arguments)]
    for start in range(0, len(kinds), len(LENGTHS_S)):
        part = kinds[start : start + len(LENGTHS_S)]
        assert len(set(part)) == len(part)


def test_another_seed_is_another_plan() -> None:
    assert len({plan(seed, 900, 20) for seed in range(50)}) == 50


def test_every_kind_can_be_injected() -> None:
    assert INJECTIONS.keys() == LENGTHS_S.keys()
