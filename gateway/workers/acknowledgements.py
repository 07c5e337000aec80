"""Acknowledgements of several workers, put back into the order in which the broker sent the messages."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

from gateway.messages import Message
from gateway.ports import Broker


@dataclass(slots=True, eq=False)
class _Ticket:
    number: int
    receipt: Message
    worker: int
    settled: bool = False


class Acknowledgements:
    """MQTT asks for them in the order of arrival; what a worker has done waits here for the others' older ones.

    Of a message no more is kept than its acknowledgement takes.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._numbers = itertools.count(1)
        self._order: deque[_Ticket] = deque()
        self._open: dict[int, _Ticket] = {}

    def __len__(self) -> int:
        return len(self._order)

    def open(self, message: Message, worker: int) -> int:
        """Take in a message for a worker; returns the number by which it is settled."""
        number = next(self._numbers)
        self._forget_lost()
        if message.qos:
            receipt = Message("", b"", message.received_at, message.qos, delivery=message.delivery)
            self._open[number] = ticket = _Ticket(number, receipt, worker)
            self._order.append(ticket)
        return number

    def settle(self, number: int) -> None:
        """A worker is done with it; without effect for one of a session that is gone."""
        ticket = self._open.pop(number, None)
        if ticket is None:
            return
        ticket.settled = True
        while self._order and self._order[0].settled:
            self._broker.acknowledge(self._order.popleft().receipt)

    def owed_by(self, worker: int) -> bool:
        """Whether the broker waits for an acknowledgement that this worker has not given."""
        self._forget_lost()
        return any(ticket.worker == worker and not ticket.settled for ticket in self._order)

    def finished(self, since: float) -> bool:
        """Whether all that came up to that moment (monotonic clock) is acknowledged, or can never be."""
        self._forget_lost()
        return not self._order or self._order[0].receipt.received_at > since

    def _forget_lost(self) -> None:
        """What can never be acknowledged is older than all that can."""
        while self._order and not self._broker.awaits(self._order[0].receipt):
            self._open.pop(self._order.popleft().number, None)
