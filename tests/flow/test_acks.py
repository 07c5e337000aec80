"""Acknowledged once, last, and in the order of arrival, whatever order the outcomes come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Outcome
from gateway.flow.acks import AckLedger
from gateway.messages import Message
from gateway.metrics import Metrics
from tests.flow.builders import message


@given(st.permutations(range(8)), st.integers(0, 8))
def test_acknowledgements_follow_the_order_of_arrival(order: list[int], settled: int) -> None:
    acknowledged: list[Message] = []
    ledger = AckLedger(acknowledged.append, Metrics())
    tickets = [ledger.open(message(b"%d" % number)) for number in range(8)]
    messages = [ticket.message for ticket in tickets]
    done: set[int] = set()
    for index in order[:settled]:
        ledger.settle(tickets[index], Outcome.PUBLISHED)
        done.add(index)
        prefix = next((n for n in range(8) if n not in done), 8)
        assert acknowledged == messages[:prefix]
    assert ledger.abandon_rest() == 8 - settled
    assert acknowledged == [item for n, item in enumerate(messages) if n in done], "settled ones, in order"


def test_a_ticket_is_settled_once() -> None:
    ledger = AckLedger(lambda _: None, Metrics())
    ticket = ledger.open(message(b""))
    ledger.settle(ticket, Outcome.FAILED)
    with pytest.raises(AssertionError, match="settled twice"):
        ledger.settle(ticket, Outcome.PUBLISHED)


def test_abandoned_messages_are_never_acknowledged() -> None:
    acknowledged: list[Message] = []
    metrics = Metrics()
    ledger = AckLedger(acknowledged.append, metrics)
    ledger.open(message(b"1"))
    ledger.abandon_rest()
    assert not acknowledged
    assert metrics.value("snapshots_total", outcome="abandoned") == 1
    assert metrics.value("unacknowledged_messages") == 0
