"""The state machine of a circuit breaker, against a model of it that hypothesis drives."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.errors import BackendRejected, BackendTimeout
from gateway.flow.breaker import UNCLEAR_S, Breaker, BreakerState
from gateway.models.catalog import ServedVariant

OPEN_S = 2.0
ERROR = BackendRejected("no")


def breaker() -> Breaker:
    return Breaker(1, ServedVariant("onnx", "detector-onnx"))


class Snapshots(RuleBasedStateMachine):
    """Snapshots that begin and end in any order, while time passes."""

    @initialize(limit=st.integers(1, 4))
    def start(self, limit: int) -> None:
        self.limit, self.now, self.in_a_row = limit, 100.0, 0
        self.breaker = breaker()
        self.asking: list[bool] = []
        """Who is asking: whether each is the one that probes."""
        self.opened_until: float | None = None

    @rule(passed=st.sampled_from([0.0, UNCLEAR_S, OPEN_S / 2, OPEN_S]))
    def time_passes(self, passed: float) -> None:
        self.now += passed

    @rule(needed=st.booleans(), last_resort=st.booleans())
    def begins(self, needed: bool, last_resort: bool) -> None:
        before, free, due = self.breaker.state, self.breaker.free, self.breaker.due(self.now)
        admitted = self.breaker.begin(self.now, needed=needed, last_resort=last_resort)
        probes = admitted and before is BreakerState.OPEN
        if before is BreakerState.CLOSED:
            assert admitted == (free or last_resort)
        elif before is BreakerState.HALF_OPEN:
            assert not admitted, "a second one probes"
        else:
            assert admitted == (last_resort or (needed and due))
        if admitted:
            self.asking.append(probes)

    def _one_ends(self, data: st.DataObject) -> bool:
        probing = self.asking.pop(data.draw(st.integers(0, len(self.asking) - 1)))
        self.breaker.end()
        return probing

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def is_answered(self, data: st.DataObject) -> None:
        self._one_ends(data)
        self.breaker.succeeded()
        self.in_a_row = 0
        self.asking = [False] * len(self.asking)  # a probe that is overtaken is as any other
        assert self.breaker.state is BreakerState.CLOSED

    @precondition(lambda self: self.asking)
    @rule(data=st.data(), late=st.booleans())
    def fails(self, data: st.DataObject, late: bool) -> None:
        before, probing = self.breaker.state, self._one_ends(data)
        self.breaker.failed(ERROR, self.now, self.limit, OPEN_S, late=late, probing=probing)
        if before is BreakerState.CLOSED:
            self.in_a_row += 1
            assert (self.breaker.state is BreakerState.OPEN) == (self.in_a_row >= self.limit)
        if probing:
            assert self.breaker.state is BreakerState.OPEN
        if probing or (before is BreakerState.CLOSED and self.breaker.state is BreakerState.OPEN):
            assert not self.breaker.due(self.now + OPEN_S - 0.01)
            assert self.breaker.due(self.now + OPEN_S)

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def says_nothing(self, data: st.DataObject) -> None:
        failures, probing = self.breaker.failures, self._one_ends(data)
        self.breaker.unclear(self.now, probing=probing)
        assert self.breaker.failures == failures
        if probing:
            assert self.breaker.due(self.now + UNCLEAR_S)

    @rule()
    def is_loaded_again(self) -> None:
        was_closed = self.breaker.state is BreakerState.CLOSED
        self.breaker = self.breaker.of_new_load(self.breaker.variant, self.now)
        self.asking, self.in_a_row = [], 0
        assert self.breaker.free if was_closed else self.breaker.due(self.now)

    @invariant()
    def holds(self) -> None:
        assert self.breaker.asked == len(self.asking)
        assert sum(self.asking) == (self.breaker.state is BreakerState.HALF_OPEN), "exactly one probes while half open"


Snapshots.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestBreaker = Snapshots.TestCase


def test_one_that_was_late_holds_up_one_snapshot_at_a_time_until_it_answers() -> None:
    one = breaker()
    assert one.begin(0.0, needed=True, last_resort=False)
    assert one.begin(0.0, needed=True, last_resort=False)
    one.end()
    one.failed(BackendTimeout("late"), 5.0, 5, OPEN_S, late=True, probing=False)
    assert not one.begin(5.0, needed=True, last_resort=False), "the other one is still waiting for it"
    one.end()
    one.failed(BackendTimeout("late"), 5.0, 5, OPEN_S, late=True, probing=False)
    assert one.begin(5.0, needed=True, last_resort=False)
    assert not one.free
    one.end()
    one.succeeded()
    assert one.free


@pytest.mark.parametrize("needed", [True, False])
def test_who_only_compares_probes_nothing(needed: bool) -> None:
    one = breaker()
    one.failed(ERROR, 0.0, 1, OPEN_S, late=False, probing=False)
    assert one.begin(OPEN_S, needed=needed, last_resort=False) is needed
