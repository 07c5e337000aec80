"""One outcome each, acknowledged last, in the order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gateway.errors import Outcome
from gateway.messages import Message
from gateway.metrics import Metrics


@dataclass(slots=True, eq=False)
class _Ticket:
    """The receipt of one message, without its payload: that is needed until it is decoded, the ticket much longer."""

    message: Message
    settled: bool = False
    acknowledge: bool = True
    followers: list[_Ticket] = field(default_factory=list)
    shared: int = 0
    """Deliveries of the same snapshot with QoS 0: counted, for nobody waits for their acknowledgement."""


class AckLedger:
    """All messages that have arrived and are not acknowledged yet.

    MQTT asks for acknowledgements in the order of arrival: a settled message waits here for the older ones. The
    `result_id` is the handle that travels with a snapshot.
    """

    def __init__(self, acknowledge: Callable[[Message], None], metrics: Metrics) -> None:
        self._acknowledge = acknowledge
        self._metrics = metrics
        self._tickets: deque[_Ticket] = deque()
        self._open: dict[str, _Ticket] = {}

    def open(self, result_id: str, message: Message) -> bool:
        """Take a message in; from here on it gets an outcome.

        False when the same snapshot is on its way already: this delivery shares its outcome.
        """
        self._metrics.snapshots_received.inc()
        leader = self._open.get(result_id)
        if leader is not None and not message.qos:
            leader.shared += 1
            return False
        ticket = _Ticket(replace(message, payload=b""))
        if message.qos:  # nobody waits for the acknowledgement of the others, so they hold nothing back
            self._tickets.append(ticket)
            self._metrics.unacknowledged_messages.set(len(self._tickets))
        if leader is not None:
            leader.followers.append(ticket)
            return False
        self._open[result_id] = ticket
        return True

    def pass_by(self, message: Message) -> None:
        """A message that is no snapshot: acknowledged in its turn, without an outcome."""
        if message.qos:
            self._tickets.append(_Ticket(replace(message, payload=b""), settled=True))
        self._acknowledge_settled()

    def settle(self, result_id: str, outcome: Outcome) -> None:
        """Give a snapshot its outcome and acknowledge every message that no older one holds back."""
        leader = self._open.pop(result_id)
        for ticket in (leader, *leader.followers):
            self._close(ticket, outcome)
        self._metrics.snapshots.labels(outcome.value).inc(leader.shared)
        self._acknowledge_settled()

    def abandon_rest(self) -> int:
        """At shutdown: nothing gets an outcome any more; returns how many messages the broker will send again."""
        again = sum(bool(ticket.message.qos) for ticket in self._open.values())
        for result_id in list(self._open):
            self.settle(result_id, Outcome.ABANDONED)
        return again

    def _close(self, ticket: _Ticket, outcome: Outcome) -> None:
        ticket.settled = True
        ticket.acknowledge = outcome is not Outcome.ABANDONED
        self._metrics.snapshots.labels(outcome.value).inc()

    def _acknowledge_settled(self) -> None:
        while self._tickets and self._tickets[0].settled:
            ticket = self._tickets.popleft()
            if ticket.acknowledge:
                self._acknowledge(ticket.message)
        self._metrics.unacknowledged_messages.set(len(self._tickets))
