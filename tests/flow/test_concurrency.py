"""The limit of a variant goes where more brings nothing, stays there under noise, and comes back after a stall."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.flow.concurrency import LEAST, Came, Limit
from tests.flow.server_simulation import Law, Run

MOST = 64
SETTLED_S = 60.0

laws = st.builds(
    Law,
    executors=st.integers(1, 6),
    run_s=st.sampled_from((0.005, 0.02, 0.1)),
    each_s=st.just(0.0),
    decode_s=st.sampled_from((0.0005, 0.002)),
    noise=st.sampled_from((0.0, 0.1, 0.3)),
)


def run(law: Law, seed: int = 0, most: int = MOST) -> Run:
    return Run(Limit(most), law, random.Random(seed))


def settled(law: Law, seed: int = 0, most: int = MOST) -> Run:
    """A run in which the limit has been found."""
    found = run(law, seed, most)
    found.go(40 + 2000 * (law.run_s + law.each_s) / law.executors)
    found.go(SETTLED_S)
    return found


@settings(max_examples=25, deadline=None)
@given(laws, st.integers(0, 1000))
def test_with_executors_side_by_side_it_finds_about_as_many_and_nearly_all_that_they_give(law: Law, seed: int) -> None:
    found = settled(law, seed)
    assert found.rate(SETTLED_S) >= (0.9 - 0.3 * law.noise) * law.capacity
    assert found.mean_limit(SETTLED_S) <= 1.6 * law.executors * (1 + law.decode_s / law.run_s) + 1.5


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_one_instance_has_two_in_flight_and_hardly_ever_another_number(noise: float) -> None:
    share = settled(Law(run_s=0.025, decode_s=0.004, noise=noise)).share_of_limits(SETTLED_S)
    assert share[2] >= 0.9, share
    assert max(share) <= 4, share


@settings(max_examples=10, deadline=None)
@given(st.sampled_from((4, 8, 16)), st.sampled_from((0.0, 0.1, 0.3)), st.integers(0, 1000))
def test_with_batching_it_goes_as_high_as_brings_answers(batch: int, noise: float, seed: int) -> None:
    law = Law(run_s=0.01, each_s=0.0005, batch=batch, noise=noise)
    found = settled(law, seed)
    assert found.rate(SETTLED_S) >= 0.8 * law.capacity
    assert found.mean_limit(SETTLED_S) <= 3 * batch


def test_where_a_batch_costs_as_much_as_its_parts_it_stays_low() -> None:
    found = settled(Law(run_s=0.0005, each_s=0.01, batch=8))
    assert found.mean_limit(SETTLED_S) <= 3


def test_it_never_exceeds_what_may_be_had_at_most() -> None:
    found = settled(Law(executors=8), most=5)
    assert max(limit for _, limit in found.history) == 5
    found.limit.most = 1
    found.go(1)
    assert found.limit.limit == found.limit.in_flight == 1


def test_a_server_that_becomes_slower_or_faster_is_followed() -> None:
    found = settled(Law(executors=6))
    assert found.limit.limit >= 6
    found.law = Law(executors=1)
    found.go(400)
    assert found.mean_limit(SETTLED_S) <= 4
    found.law = Law(executors=6)
    found.go(200)
    assert found.rate(SETTLED_S) >= 0.85 * found.law.capacity


def test_without_enough_to_do_nothing_is_changed() -> None:
    limit, now = Limit(MOST), 0.0
    for _ in range(2000):
        limit.enter(now)
        now += 0.01
        limit.leave(now, now - 0.01, Came.ANSWER)
    assert limit.limit == LEAST


# --- failures --------------------------------------------------------------------------------------


def test_a_stall_halves_it_once_for_all_that_were_in_flight_and_it_comes_back() -> None:
    found = settled(Law(executors=8))
    before = found.limit.limit
    found.stall(1)
    assert found.limit.limit == before // 2
    found.stall(6)
    assert found.limit.limit == 1
    answers = len(found.history)
    found.go(2)
    assert found.limit.limit >= before
    assert len(found.history) - answers >= 0.7 * 2 * found.law.capacity


def test_what_says_nothing_changes_nothing() -> None:
    limit = Limit(MOST)
    for now in range(100):
        limit.enter(now)
        limit.leave(now + 0.5, now, Came.NOTHING)
    assert (limit.limit, limit.in_flight) == (LEAST, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Came), st.integers(0, 20)), max_size=300), st.integers(1, 20))
def test_whatever_comes_it_is_within_its_bounds(events: list[tuple[Came, int]], most: int) -> None:
    limit, now, entered = Limit(most), 0.0, [0.0]
    limit.enter(now)
    for came, more in events:
        now += 0.05
        for _ in range(more):
            limit.enter(now)
            entered.append(now)
        if entered:
            limit.leave(now, entered.pop(0), came)
        assert 1 <= limit.limit <= most
        assert limit.in_flight == len(entered)
