"""A broker in memory under the same port and contract tests as the real one: what it grants, Mosquitto grants too."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from gateway.errors import BrokerUnavailable, PublishRefused
from gateway.messages import Message, MessageProperties, Oversize, Publication
from gateway.ports import MAX_PROPERTIES, MAX_PROPERTIES_BYTES, held_by
from gateway.session_states import SessionStates
from gateway.topics import topic_matches


@dataclass(frozen=True, slots=True)
class _Stored:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: MessageProperties


@dataclass(slots=True, eq=False)
class _Session:
    """What the broker keeps for a client id, whether it is connected or not."""

    subscriptions: list[str] = field(default_factory=list)
    unacknowledged: dict[int, _Stored] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)  # of the unacknowledged, those not sent on this connection
    delivered: set[int] = field(default_factory=set)  # of the unacknowledged, those sent before
    client: MemoryBrokerClient | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Delivery:
    connection: object
    number: int


class MemoryBroker:
    """Persistent sessions, QoS 0 and 1, retained messages, shared subscriptions, last wills and outages."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[str, _Stored] = {}
        self._denied: list[str] = []
        self._numbers = itertools.count(1)
        self._turns: dict[str, int] = {}
        self._clients: list[MemoryBrokerClient] = []
        self.running = True
        self.latency_s = 0.0
        """Until a publication is acknowledged."""

    def client(
        self,
        client_id: str,
        subscriptions: Iterable[str] = (),
        will: Publication | None = None,
        *,
        max_payload_bytes: int = 8 * 1024 * 1024,
        receive_maximum: int = 65_535,
    ) -> MemoryBrokerClient:
        """A client that connects as soon as its `run` does; the session lasts as long as the broker object.

        No more than `receive_maximum` QoS 1 messages are unacknowledged at the client; the rest waits in the session.
        """
        client = MemoryBrokerClient(self, client_id, tuple(subscriptions), will, max_payload_bytes, receive_maximum)
        self._clients.append(client)
        return client

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        properties: MessageProperties | None = None,
    ) -> None:
        """Publish as some camera would, with any properties and without a session."""
        self._route(_Stored(topic, payload, qos, retain, properties or MessageProperties()))

    def members(self, shared: str) -> set[str]:
        """The clients that share a subscription, those that are away among them."""
        return {name for name, session in self._sessions.items() if shared in session.subscriptions}

    def deny(self, topic_filter: str) -> None:
        """Refuse publications of clients on these topics from now on."""
        self._denied.append(topic_filter)

    def stop(self) -> None:
        """Go down as after `kill -9`: every connection is lost, no will is sent, sessions stay."""
        self.running = False
        for client in self._clients:
            client.lose()

    def start(self) -> None:
        self.running = True
        for client in self._clients:
            client.wake()

    # --- what clients ask ------------------------------------------------------------------------

    def connect(self, client: MemoryBrokerClient) -> None:
        """Open or resume the client's session and send what it has not acknowledged."""
        session = self._sessions.setdefault(client.client_id, _Session())
        if session.client is not None:
            session.client.take_over()
        session.client = client
        session.waiting = deque(session.unacknowledged)
        self._send_waiting(session)
        for topic_filter in client.subscriptions:
            if topic_filter not in session.subscriptions:
                session.subscriptions.append(topic_filter)
                self._send_retained(session, topic_filter)

    def disconnect(self, client: MemoryBrokerClient) -> None:
        session = self._sessions.get(client.client_id)
        if session is not None and session.client is client:
            session.client = None

    def leave_groups(self, client_id: str) -> None:
        session = self._sessions[client_id]
        session.subscriptions = [each for each in session.subscriptions if not each.startswith("$share/")]

    def accept(self, publication: Publication) -> None:
        """Take a client's publication; raises PublishRefused on a denied topic or one with a wildcard."""
        topic = publication.topic
        if not topic or set(topic) & set("+#\0"):
            raise PublishRefused("Not an MQTT topic", where=topic, fix="Use a topic without wildcards")
        longest = max((len(text.encode()) for pair in publication.user_properties for text in pair), default=0)
        if max(longest, len(publication.correlation_data or b""), len(topic.encode())) > 65_535:
            raise PublishRefused("Not an MQTT message", where=topic, fix="Use properties below 64 KiB")
        if any(topic_matches(denied, topic) for denied in self._denied):
            raise PublishRefused("The broker refused the message: Not authorized", where=topic, fix="Allow this topic")
        properties = MessageProperties(
            content_type=publication.content_type,
            correlation_data=publication.correlation_data,
            user_properties=publication.user_properties,
        )
        self._route(_Stored(topic, publication.payload, publication.qos, publication.retain, properties))

    def awaits(self, client_id: str, number: int) -> bool:
        return number in self._sessions[client_id].unacknowledged

    def acknowledged(self, client_id: str, number: int) -> None:
        session = self._sessions[client_id]
        session.unacknowledged.pop(number, None)
        session.delivered.discard(number)
        self._send_waiting(session)

    # --- inside ----------------------------------------------------------------------------------

    def _route(self, stored: _Stored) -> None:
        if stored.retain:
            self._retained.pop(stored.topic, None)
            if stored.payload:
                self._retained[stored.topic] = stored
        live = _Stored(stored.topic, stored.payload, stored.qos, False, stored.properties)
        groups: dict[str, list[_Session]] = {}
        for session in self._sessions.values():
            matching = [each for each in session.subscriptions if topic_matches(each, stored.topic)]
            if any(not each.startswith("$share/") for each in matching):
                self._enqueue(session, live)
            for shared in {each for each in matching if each.startswith("$share/")}:
                groups.setdefault(shared, []).append(session)
        for shared, members in groups.items():
            connected = [member for member in members if member.client is not None] or members
            turn = self._turns[shared] = self._turns.get(shared, -1) + 1
            self._enqueue(connected[turn % len(connected)], live)

    def _send_retained(self, session: _Session, topic_filter: str) -> None:
        if not topic_filter.startswith("$share/"):
            for stored in [each for each in self._retained.values() if topic_matches(topic_filter, each.topic)]:
                self._enqueue(session, stored)

    def _enqueue(self, session: _Session, stored: _Stored) -> None:
        number = next(self._numbers)
        if stored.qos:
            session.unacknowledged[number] = stored
            session.waiting.append(number)
            self._send_waiting(session)
        elif session.client is not None:
            session.client.receive(number, stored, duplicate=False)

    def _send_waiting(self, session: _Session) -> None:
        """Send what the client's Receive Maximum allows."""
        client = session.client
        while client and session.waiting and self._outstanding(session) < client.receive_maximum:
            number = session.waiting.popleft()
            client.receive(number, session.unacknowledged[number], duplicate=number in session.delivered)
            session.delivered.add(number)

    @staticmethod
    def _outstanding(session: _Session) -> int:
        return len(session.unacknowledged) - len(session.waiting)


class MemoryBrokerClient:
    """The Broker port on a MemoryBroker."""

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        subscriptions: tuple[str, ...],
        will: Publication | None,
        max_payload_bytes: int,
        receive_maximum: int,
    ) -> None:
        self.client_id = client_id
        self.subscriptions = subscriptions
        self.receive_maximum = receive_maximum
        self._broker = broker
        self._will = will
        self._max_payload_bytes = max_payload_bytes
        self._states = SessionStates()
        self._changed = asyncio.Event()
        self._inbox: deque[Message] = deque()
        self._connection: object | None = None
        self._taken_over = False
        self._closed = False
        self._backlog = 0
        self._left: tuple[str, ...] = ()
        self._dealt_at = 0.0

    @property
    def connected(self) -> bool:
        return self._states.up

    @property
    def backlog(self) -> int:
        return self._backlog

    @property
    def trouble(self) -> str:
        return ""  # it knows no reason but that it was stopped

    async def run(self) -> None:
        try:
            while not self._closed:
                if self._connection is None and self._broker.running:
                    self._open()
                await self._next_change()
                if self._taken_over:
                    raise BrokerUnavailable(
                        f"Two gateways share the client id {self.client_id!r}",
                        fix="Give each gateway a client id of its own",
                    )
        finally:
            self.drop()

    def sessions(self) -> AsyncIterator[bool]:
        return self._states.listen()

    async def messages(self) -> AsyncIterator[Message]:
        while True:
            while not self._inbox and not self._closed:
                await self._next_change()
            if self._closed:
                return
            yield self._inbox.popleft()

    def awaits(self, message: Message) -> bool:
        delivery = message.delivery
        if not isinstance(delivery, _Delivery) or delivery.connection is not self._connection:
            return False
        return self._broker.awaits(self.client_id, delivery.number)

    def acknowledge(self, message: Message) -> None:
        if self.awaits(message) and isinstance(message.delivery, _Delivery):
            self._broker.acknowledged(self.client_id, message.delivery.number)

    async def publish(self, publication: Publication) -> None:
        self._backlog += held_by(publication)
        try:
            while self._connection is None and not self._closed:
                await self._next_change()
            if self._closed:
                raise BrokerUnavailable("The session with the broker has been closed", fix="Publish before close")
            self._broker.accept(publication)
            await asyncio.sleep(self._broker.latency_s)  # a real broker's acknowledgement does not come at once either
        finally:
            self._backlog -= held_by(publication)

    async def leave_groups(self) -> None:
        self._left += tuple(each for each in self.subscriptions if each.startswith("$share/"))
        self.subscriptions = tuple(each for each in self.subscriptions if each not in self._left)
        while self._connection is None and not (self._closed or self._taken_over):
            await self._next_change()
        if self._connection is not None:
            self._broker.leave_groups(self.client_id)

    @property
    def dealt_at(self) -> float:
        return self._dealt_at

    async def close(self) -> None:
        self._closed = True
        self._will = None
        self.lose()
        self._inbox.clear()
        self._states.close()

    def drop(self) -> None:
        """Lose the connection as when a cable is pulled: the broker sends the last will, `run` connects again."""
        if self._connection is None:
            return
        self.lose()
        if self._will is not None:
            with contextlib.suppress(PublishRefused):
                self._broker.accept(self._will)

    # --- what the broker does --------------------------------------------------------------------

    def receive(self, number: int, stored: _Stored, *, duplicate: bool) -> None:
        count, size = _count(stored.properties)
        too_many = count > MAX_PROPERTIES or size > MAX_PROPERTIES_BYTES
        too_large = too_many or len(stored.payload) > self._max_payload_bytes
        digest = hashlib.sha256(repr(stored.properties).encode() * too_many + stored.payload).hexdigest()
        oversize = Oversize(len(stored.payload) + size * too_many, digest, too_many) if too_large else None
        message = Message(
            topic=stored.topic,
            payload=b"" if too_large else stored.payload,
            received_at=time.monotonic(),
            qos=stored.qos,
            retain=stored.retain,
            duplicate=duplicate,
            properties=MessageProperties() if too_many else stored.properties,
            delivery=_Delivery(self._connection, number) if stored.qos else None,
            oversize=oversize,
        )
        if any(topic_matches(each, message.topic) for each in self._left):
            self._dealt_at = message.received_at
        self._inbox.append(message)
        self.wake()

    def lose(self) -> None:
        """The connection is gone, without a will."""
        self._connection = None
        self._broker.disconnect(self)
        self._states.set(False)
        self.wake()

    def take_over(self) -> None:
        self._taken_over = True
        self.lose()

    def wake(self) -> None:
        """Let all go on that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    # --- inside ----------------------------------------------------------------------------------

    def _open(self) -> None:
        self._connection = object()
        self._inbox = deque(message for message in self._inbox if message.delivery is None)  # the rest comes again
        self._broker.connect(self)
        if self._left:
            self._broker.leave_groups(self.client_id)
        self._states.set(True)
        self.wake()

    async def _next_change(self) -> None:
        await self._changed.wait()


def _count(properties: MessageProperties) -> tuple[int, int]:
    """How many properties these are, and their bytes on the wire."""
    single = [properties.content_type, properties.response_topic]
    sizes = [3 + len(text.encode()) for text in single if text is not None]
    sizes += [3 + len(properties.correlation_data)] if properties.correlation_data is not None else []
    sizes += [5] if properties.message_expiry_s is not None else []
    sizes += [5 + len(name.encode()) + len(value.encode()) for name, value in properties.user_properties]
    return len(sizes), sum(sizes)
