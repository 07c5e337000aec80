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

COUNT = 8


def ledger() -> tuple[AckLedger, list[str], Metrics]:
    """A ledger, the topics that it has acknowledged so far, and its metrics."""
    acknowledged: list[str] = []

    def acknowledge(item: Message) -> None:
        assert not item.payload, "the ledger holds no payloads"
        acknowledged.append(item.topic)

    metrics = Metrics()
    return AckLedger(acknowledge, metrics), acknowledged, metrics


@given(st.permutations(range(COUNT)), st.integers(0, COUNT))
def test_acknowledgements_follow_the_order_of_arrival(order: list[int], settled: int) -> None:
    book, acknowledged, _ = ledger()
    for number in range(COUNT):
        assert book.open(str(number), message(b"payload", topic=str(number)))
    done: set[int] = set()
    for index in order[:settled]:
        book.settle(str(index), Outcome.PUBLISHED)
        done.add(index)
        prefix = next((n for n in range(COUNT) if n not in done), COUNT)
        assert acknowledged == [str(number) for number in range(prefix)]
    assert book.abandon_rest() == COUNT - settled
    assert acknowledged == [str(number) for number in sorted(done)], "settled ones, in order"


def test_a_snapshot_is_settled_once() -> None:
    book, _, _ = ledger()
    book.open("a", message(b""))
    book.settle("a", Outcome.FAILED)
    with pytest.raises(KeyError):
        book.settle("a", Outcome.PUBLISHED)


def test_abandoned_messages_are_never_acknowledged() -> None:
    book, acknowledged, metrics = ledger()
    book.open("a", message(b"1"))
    book.abandon_rest()
    assert not acknowledged
    assert metrics.value("snapshots_total", outcome="abandoned") == 1
    assert metrics.value("unacknowledged_messages") == 0


def test_a_redelivery_of_a_snapshot_under_way_shares_its_outcome() -> None:
    book, acknowledged, metrics = ledger()
    assert book.open("a", message(b"1", topic="first delivery"))
    assert book.open("b", message(b"2", topic="another"))
    assert not book.open("a", message(b"1", topic="second delivery"))
    book.settle("a", Outcome.PUBLISHED)
    assert acknowledged == ["first delivery"]
    book.settle("b", Outcome.REJECTED)
    assert acknowledged == ["first delivery", "another", "second delivery"]
    assert metrics.value("snapshots_received_total") == 3
    assert metrics.value("snapshots_total", outcome="published") == 2


def test_other_messages_are_acknowledged_in_their_turn() -> None:
    book, acknowledged, metrics = ledger()
    book.open("a", message(b"1", topic="snapshot"))
    book.pass_by(message(b"2", topic="retained"))
    assert not acknowledged
    book.settle("a", Outcome.PUBLISHED)
    assert acknowledged == ["snapshot", "retained"]
    assert metrics.value("snapshots_received_total") == 1


def test_a_redelivery_of_a_settled_snapshot_is_settled_on_its_own() -> None:
    book, acknowledged, metrics = ledger()
    book.open("older", message(b"1", topic="older"))
    book.open("a", message(b"2", topic="lost with its connection"))
    book.settle("a", Outcome.DROPPED_FULL)
    assert book.open("a", message(b"2", topic="sent again", duplicate=True))
    book.settle("a", Outcome.DROPPED_FULL)
    book.settle("older", Outcome.PUBLISHED)
    assert acknowledged == ["older", "lost with its connection", "sent again"]
    assert metrics.value("snapshots_total", outcome="dropped_full") == 2
