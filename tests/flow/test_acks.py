"""Acknowledged once, last, and in the order of arrival, whatever order the outcomes come in."""

from __future__ import annotations

from collections.abc import Collection
from weakref import WeakSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Outcome
from gateway.flow.acks import AckLedger
from gateway.messages import Message
from gateway.metrics import Metrics
from tests.flow.builders import message

COUNT = 8


def ledger(gone: Collection[object] = ()) -> tuple[AckLedger, list[str], Metrics]:
    """A ledger, the deliveries that it has acknowledged so far, and its metrics; those `gone` nobody awaits."""
    acknowledged: list[str] = []

    def acknowledge(item: Message) -> None:
        assert not item.payload + item.topic.encode(), "the ledger holds no contents"
        assert not item.properties.user_properties
        acknowledged.append(str(item.delivery))

    def awaits(item: Message) -> bool:
        return item.delivery not in gone and item.delivery not in acknowledged

    metrics = Metrics()
    return AckLedger(acknowledge, awaits, metrics), acknowledged, metrics


@given(st.permutations(range(COUNT)), st.integers(0, COUNT))
def test_acknowledgements_follow_the_order_of_arrival(order: list[int], settled: int) -> None:
    book, acknowledged, _ = ledger()
    for number in range(COUNT):
        assert book.open(str(number), message(b"payload", delivery=str(number)))
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
    assert book.open("a", message(b"1", delivery="first delivery"))
    assert book.open("b", message(b"2", delivery="another"))
    assert not book.open("a", message(b"1", delivery="second delivery"))
    book.settle("a", Outcome.PUBLISHED)
    assert acknowledged == ["first delivery"]
    book.settle("b", Outcome.REJECTED)
    assert acknowledged == ["first delivery", "another", "second delivery"]
    assert metrics.value("snapshots_received_total") == 3
    assert metrics.value("snapshots_total", outcome="published") == 2


def test_other_messages_are_acknowledged_in_their_turn() -> None:
    book, acknowledged, metrics = ledger()
    book.open("a", message(b"1", delivery="snapshot"))
    book.pass_by(message(b"2", delivery="retained"))
    assert not acknowledged
    book.settle("a", Outcome.PUBLISHED)
    assert acknowledged == ["snapshot", "retained"]
    assert metrics.value("snapshots_received_total") == 1


def test_a_redelivery_of_a_settled_snapshot_is_settled_on_its_own() -> None:
    book, acknowledged, metrics = ledger()
    book.open("older", message(b"1", delivery="older"))
    book.open("a", message(b"2", delivery="lost with its connection"))
    book.settle("a", Outcome.DROPPED_FULL)
    assert book.open("a", message(b"2", delivery="sent again", duplicate=True))
    book.settle("a", Outcome.DROPPED_FULL)
    book.settle("older", Outcome.PUBLISHED)
    assert acknowledged == ["older", "lost with its connection", "sent again"]
    assert metrics.value("snapshots_total", outcome="dropped_full") == 2


def test_what_comes_again_takes_the_place_of_a_delivery_whose_connection_is_gone() -> None:
    gone: set[object] = set()
    book, acknowledged, metrics = ledger(gone)
    for number in range(5):  # each on a new connection
        gone.update(f"{name}{earlier}" for name in "ab" for earlier in range(number))
        for name in "ab":
            book.open(name, message(b"", delivery=f"{name}{number}"))
        assert metrics.value("unacknowledged_messages") == 2
    book.settle("b", Outcome.REJECTED)
    book.settle("a", Outcome.PUBLISHED)
    assert acknowledged == ["a4", "b4"]
    assert metrics.value("snapshots_received_total") == 10
    assert metrics.value("snapshots_total", outcome="published") == 5
    assert metrics.value("snapshots_total", outcome="rejected") == 5


def test_deliveries_that_are_gone_are_not_kept() -> None:
    class Delivery:
        pass

    last: list[Delivery] = []
    kept: WeakSet[Delivery] = WeakSet()
    book = AckLedger(lambda _item: None, lambda item: item.delivery is last[0], Metrics())
    for _ in range(5):
        last[:] = [Delivery()]
        kept.add(last[0])
        book.open("a", message(b"1", delivery=last[0]))
    assert len(kept) == 1


def test_what_a_lost_connection_has_left_holds_nothing_back() -> None:
    gone: set[object] = set()
    book, acknowledged, metrics = ledger(gone)
    book.open("slow", message(b"1", delivery="slow"))
    book.open("done", message(b"2", delivery="done"))
    book.settle("done", Outcome.PUBLISHED)
    gone.update({"slow", "done"})
    book.open("done", message(b"2", delivery="done again", duplicate=True))
    book.settle("done", Outcome.PUBLISHED)
    assert acknowledged == ["done again"]
    book.open("slow", message(b"1", delivery="slow again", duplicate=True))
    book.settle("slow", Outcome.FAILED)
    assert acknowledged == ["done again", "slow again"]
    assert metrics.value("snapshots_total", outcome="failed") == 2


def test_two_equal_snapshots_are_both_acknowledged() -> None:
    book, acknowledged, _ = ledger()
    book.open("a", message(b"1", delivery="first"))
    book.open("a", message(b"1", delivery="second"))
    book.settle("a", Outcome.PUBLISHED)
    assert acknowledged == ["first", "second"]
