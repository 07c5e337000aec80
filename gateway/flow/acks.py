"""One outcome each, acknowledged last, in the order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.camera_counts import OUTCOMES
from gateway.errors import Outcome
from gateway.messages import Message
from gateway.metrics import Metrics


@dataclass(slots=True, eq=False)
class _Ticket:
    """The receipt of one message, with no more of it than its acknowledgement takes: the ticket is kept for long."""

    message: Message
    settled: bool = False
    acknowledge: bool = True
    followers: list[_Ticket] = field(default_factory=list)
    shared: int = 0
    """Deliveries of the same snapshot that are only counted, for nobody waits for their acknowledgement any more: with
    QoS 0, or on a connection that is gone."""


class AckLedger:
    """All messages that have arrived and are not acknowledged yet.

    MQTT asks for acknowledgements in the order of arrival: a settled message waits here for the older ones. The
    `result_id` is the handle that travels with a snapshot. `awaits` tells whether a message can still be acknowledged:
    those of a connection that is gone hold nothing back, and what comes again in their place does so at most once.
    """

    def __init__(
        self, acknowledge: Callable[[Message], None], awaits: Callable[[Message], bool], metrics: Metrics
    ) -> None:
        self._acknowledge = acknowledge
        self._awaits = awaits
        self._metrics = metrics
        self._tickets: deque[_Ticket] = deque()
        self._open: dict[str, _Ticket] = {}
        metrics.unacknowledged_messages.set_function(self._tickets.__len__)
        self._outcomes = {each: (metrics.snapshots.labels(each.value), place) for place, each in enumerate(OUTCOMES)}

    def open(self, result_id: str, message: Message) -> bool:
        """Take a message in; from here on it gets an outcome.

        False when the same snapshot is on its way already: this delivery shares its outcome.
        """
        self._metrics.snapshots_received.inc()
        self._forget_lost()
        leader = self._open.get(result_id)
        if leader is not None:
            self._follow(leader, message)
            return False
        ticket = self._open[result_id] = _Ticket(_receipt(message))
        self._queue(ticket)
        return True

    def finished(self, since: float) -> bool:
        """Whether all that came up to that moment (monotonic clock) is acknowledged, or can never be."""
        self._forget_lost()
        return not self._tickets or self._tickets[0].message.received_at > since

    def _follow(self, leader: _Ticket, message: Message) -> None:
        """This delivery takes the place of one that can never be acknowledged, or comes beside the others."""
        if not message.qos:
            leader.shared += 1
            return
        lost = next((each for each in (leader, *leader.followers) if not self._awaits(each.message)), None)
        if lost is None:
            ticket = _Ticket(_receipt(message))
            leader.followers.append(ticket)
        else:
            ticket, lost.message = lost, _receipt(message)
            leader.shared += 1
        self._queue(ticket)

    def _forget_lost(self) -> None:
        """What can never be acknowledged is older than all that can, and holds nothing back."""
        while self._tickets and not self._awaits(self._tickets[0].message):
            self._tickets.popleft()

    def _queue(self, ticket: _Ticket) -> None:
        if ticket.message.qos:  # nobody waits for the acknowledgement of the others
            self._tickets.append(ticket)

    def pass_by(self, message: Message) -> None:
        """A message that is no snapshot: acknowledged in its turn, without an outcome."""
        self._forget_lost()
        self._queue(_Ticket(_receipt(message), settled=True))
        self._acknowledge_settled()

    def settle(self, result_id: str, outcome: Outcome, device_id: str | None = None) -> None:
        """Give a snapshot its outcome and acknowledge every message that no older one holds back.

        Without a `device_id` it is counted for no camera.
        """
        leader = self._open.pop(result_id)
        for ticket in (leader, *leader.followers):
            ticket.settled = True
            ticket.acknowledge = outcome is not Outcome.ABANDONED
        counter, place = self._outcomes[outcome]
        number = 1 + len(leader.followers) + leader.shared
        counter.inc(number)
        if device_id is not None:
            self._metrics.cameras.count(device_id, place, number, leader.message.received_at)
        self._acknowledge_settled()

    def abandon_rest(self) -> int:
        """At shutdown: nothing gets an outcome any more; returns how many messages the broker will send again."""
        again = sum(bool(ticket.message.qos) for ticket in self._open.values())
        for result_id in list(self._open):
            self.settle(result_id, Outcome.ABANDONED)
        return again

    def _acknowledge_settled(self) -> None:
        while self._tickets and self._tickets[0].settled:
            ticket = self._tickets.popleft()
            if ticket.acknowledge:
                self._acknowledge(ticket.message)


def _receipt(message: Message) -> Message:
    return Message("", b"", message.received_at, message.qos, delivery=message.delivery)
