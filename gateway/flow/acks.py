"""One outcome each, acknowledged last, in the order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from gateway.errors import Outcome
from gateway.messages import Message
from gateway.metrics import Metrics


@dataclass(slots=True, eq=False)
class Ticket:
    """The receipt of one message, whose payload it does not hold; settled exactly once."""

    message: Message
    outcome: Outcome | None = None


class AckLedger:
    """All messages that have arrived and are not acknowledged yet.

    MQTT asks for acknowledgements in the order of arrival: a settled message waits here for the older ones.
    """

    def __init__(self, acknowledge: Callable[[Message], None], metrics: Metrics) -> None:
        self._acknowledge = acknowledge
        self._metrics = metrics
        self._open: deque[Ticket] = deque()

    def open(self, message: Message) -> Ticket:
        """Take a message in; from here on it gets an outcome."""
        self._metrics.snapshots_received.inc()
        # Without the payload: a ticket lives until the acknowledgement, the bytes only until they are decoded.
        ticket = Ticket(replace(message, payload=b""))
        self._open.append(ticket)
        self._metrics.unacknowledged_messages.set(len(self._open))
        return ticket

    def settle(self, ticket: Ticket, outcome: Outcome) -> None:
        """Give a ticket its outcome and acknowledge every message that no older one holds back."""
        if ticket.outcome is not None:
            raise AssertionError(f"ticket settled twice: {ticket.outcome} and {outcome}")
        ticket.outcome = outcome
        self._metrics.snapshots.labels(outcome.value).inc()
        while self._open and self._open[0].outcome is not None:
            settled = self._open.popleft()
            if settled.outcome is not Outcome.ABANDONED:
                self._acknowledge(settled.message)
        self._metrics.unacknowledged_messages.set(len(self._open))

    def abandon_rest(self) -> int:
        """At shutdown: everything without an outcome is left to the broker, which sends it again."""
        rest = [ticket for ticket in self._open if ticket.outcome is None]
        for ticket in rest:
            self.settle(ticket, Outcome.ABANDONED)
        return len(rest)
