"""The Broker port in a worker: the front has the session, and passes messages and publications on."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from gateway.errors import BrokerUnavailable, PublishRefused
from gateway.logs import LEVEL
from gateway.messages import Message, Publication
from gateway.ports import held_by
from gateway.session_states import SessionStates
from gateway.workers.frames import (
    Acknowledge,
    Channel,
    ChosenLevel,
    Deliver,
    Done,
    FinishBy,
    Publish,
    Scrape,
    SessionState,
    Taken,
    ToWorker,
)

TAKEN_MESSAGES = 64
TAKEN_BYTES = 2 * 2**20
"""So much is taken before the front is told: a quarter of what it sends ahead, WINDOW_MESSAGES and WINDOW_BYTES."""


@dataclass(frozen=True, slots=True, eq=False)
class _Delivery:
    """The handle in `Message.delivery`; `session` counts the sessions that this worker has seen."""

    number: int
    session: int


class RelayedBroker:
    """One worker's part of the session that the front keeps; `run` ends when the front is gone.

    `scrape` is called when the front asks for this worker's metrics.
    """

    def __init__(self, scrape: Callable[[], None] = lambda: None) -> None:
        self.channel: Channel[ToWorker] = Channel(ToWorker, self._take, self._lost)
        self._scrape = scrape
        self._states = SessionStates()
        self._session = 0
        self._trouble = "the front has not said yet whether there is a session"
        self._inbox: deque[Message] = deque()
        self._taken = self._taken_bytes = 0
        self._arrived = asyncio.Event()
        self._awaited: set[int] = set()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._backlog = 0
        self._finish_by = float("inf")
        self._gone = asyncio.Event()
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._states.up

    @property
    def trouble(self) -> str:
        return "" if self.connected else self._trouble

    @property
    def backlog(self) -> int:
        return self._backlog

    @property
    def finish_by(self) -> float:
        """When the front stops waiting for this worker to finish (monotonic clock); infinite before it has said so."""
        return self._finish_by

    async def run(self) -> None:
        await self._gone.wait()
        if not self._closed:
            raise BrokerUnavailable("the front process has gone", fix="See its log; it starts the workers again")

    def sessions(self) -> AsyncIterator[bool]:
        return self._states.listen()

    async def messages(self) -> AsyncIterator[Message]:
        while True:
            while not self._inbox and not self._gone.is_set():
                self._arrived.clear()
                await self._arrived.wait()
            if self._gone.is_set():
                return
            self._tell_taken(len(self._inbox[0].payload))
            yield self._inbox.popleft()

    def _tell_taken(self, size: int) -> None:
        """The front's window bounds the inbox. To stop reading the channel would stop the answers that come by it."""
        self._taken += 1
        self._taken_bytes += size
        if self._taken >= TAKEN_MESSAGES or self._taken_bytes >= TAKEN_BYTES:
            self.channel.send(Taken(self._taken, self._taken_bytes))
            self._taken = self._taken_bytes = 0

    def awaits(self, message: Message) -> bool:
        delivery = message.delivery
        return (
            isinstance(delivery, _Delivery) and delivery.session == self._session and delivery.number in self._awaited
        )

    def acknowledge(self, message: Message) -> None:
        delivery = message.delivery
        if isinstance(delivery, _Delivery) and delivery.number in self._awaited:
            self._awaited.discard(delivery.number)
            self.channel.send(Acknowledge(delivery.number))

    async def publish(self, publication: Publication) -> None:
        if self._gone.is_set():
            raise _closed()
        number = next(self._numbers)
        done = self._waiting[number] = asyncio.get_running_loop().create_future()
        held = held_by(publication)
        self._backlog += held
        try:
            self.channel.send(_frame(number, publication), publication.payload)
            await done
        finally:
            self._backlog -= held
            self._waiting.pop(number, None)

    async def leave_groups(self) -> None:
        """Nothing: the front has the session, and leaves for all."""

    @property
    def dealt_at(self) -> float:
        return 0.0

    async def close(self) -> None:
        self._closed = True
        self.channel.close()
        self._end()

    # --- what the front says ----------------------------------------------------------------------

    def _take(self, record: ToWorker, content: bytes) -> None:
        match record:
            case Deliver():
                self._receive(record, content)
            case Done():
                self._answered(record)
            case SessionState():
                self._session += not record.up
                if not record.up:
                    self._awaited.clear()
                self._trouble = record.trouble
                self._states.set(record.up)
            case Scrape():
                self._scrape()
            case FinishBy():
                self._finish_by = record.at
            case ChosenLevel():
                LEVEL.follow(record.level)

    def _receive(self, record: Deliver, content: bytes) -> None:
        delivery = None
        if record.qos:
            delivery = _Delivery(record.number, self._session)
            self._awaited.add(record.number)
        self._inbox.append(
            Message(
                topic=record.topic,
                payload=content,
                received_at=record.received_at,
                qos=record.qos,
                retain=record.retain,
                duplicate=record.duplicate,
                properties=record.properties,
                delivery=delivery,
                oversize=record.oversize,
                within_topic_limit=record.within_topic_limit,
            )
        )
        self._arrived.set()

    def _answered(self, record: Done) -> None:
        done = self._waiting.get(record.number)
        if done is None or done.done():
            return
        if record.refusal is None:
            done.set_result(None)
        else:
            message, where, fix = record.refusal
            done.set_exception(PublishRefused(message, where=where, fix=fix))

    def _lost(self) -> None:
        self._end()

    def _end(self) -> None:
        self._gone.set()
        self._arrived.set()
        self._inbox.clear()
        self._awaited.clear()
        self._states.close()
        for done in self._waiting.values():
            if not done.done():
                done.set_exception(_closed())


def _closed() -> BrokerUnavailable:
    return BrokerUnavailable("The session with the broker has been closed", fix="Publish before close")


def _frame(number: int, publication: Publication) -> Publish:
    return Publish(
        number,
        publication.topic,
        publication.qos,
        publication.retain,
        publication.content_type,
        publication.correlation_data,
        publication.user_properties,
    )
