"""The Broker port over MQTT 5 or 3.1.1: a session that is kept up over many connections."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import chain

import structlog

from gateway.adapters.mqtt_back_off import BackOff
from gateway.adapters.mqtt_connack import Learned
from gateway.adapters.mqtt_connection import Connection, ConnectionEnded, Delivery, Session
from gateway.adapters.mqtt_outbox import Outbox
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.errors import BrokerUnavailable
from gateway.messages import Message, Publication
from gateway.session_states import SessionStates
from gateway.topics import topic_matches

__all__ = ["MqttBroker", "MqttSettings"]

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT_S = 2.0
STEADY_AFTER_S = 10.0
"""A session that has lasted so long was a good one: the next reconnect is quick again."""
LOG_EVERY_S = 60.0


class MqttBroker:
    """One session with an MQTT broker; see the port for what each method promises.

    `events` is called with the stable name of what happened to the session: connected, lost, session_lost,
    unreachable, connect_refused, subscribe_refused, taken_over, credentials_renewed, asked_again, inbox_full.
    """

    def __init__(self, settings: MqttSettings, events: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._event = events or (lambda _name: None)
        self._states = SessionStates()
        self._inbox = _Inbox(settings)
        self._outbox = Outbox(settings.max_waiting_publications, settings.max_waiting_bytes)
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._had_session = False
        self._closed = False
        self._complaints = _Complaints(settings)
        self._learned = Learned()
        self._left: tuple[str, ...] = ()
        """The filters of groups that were left; a session that the broker has kept may still hold them."""
        self._all_left = asyncio.Event()
        self._dealt_at = 0.0

    @property
    def connected(self) -> bool:
        return self._states.up

    @property
    def trouble(self) -> str:
        return self._complaints.reason

    @property
    def backlog(self) -> int:
        return self._outbox.bytes

    def sessions(self) -> AsyncIterator[bool]:
        return self._states.listen()

    def messages(self) -> AsyncIterator[Message]:
        return self._inbox.read()

    def awaits(self, message: Message) -> bool:
        return isinstance(message.delivery, Delivery) and message.delivery.connection.awaits(message.delivery)

    def acknowledge(self, message: Message) -> None:
        if isinstance(message.delivery, Delivery):
            message.delivery.connection.acknowledge(message.delivery)

    async def publish(self, publication: Publication) -> None:
        await self._outbox.publish(publication)

    async def run(self) -> None:
        if self._closed:
            return
        self._keeper = asyncio.create_task(self._keep_session(), name="mqtt session")
        try:
            await asyncio.wait({self._keeper})
        finally:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if not self._keeper.cancelled():
            self._keeper.result()

    async def close(self) -> None:
        self._closed = True
        self._outbox.close()
        self._inbox.close()
        if self._connection is not None:
            await self._connection.close(CLOSE_TIMEOUT_S)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        self._states.close()

    @property
    def dealt_at(self) -> float:
        return self._dealt_at

    async def leave_groups(self) -> None:
        shared = tuple(each for each in self._settings.subscriptions if each.startswith("$share/"))
        own = tuple(each for each in self._settings.subscriptions if each not in shared)
        self._settings = replace(self._settings, subscriptions=own)  # for the connections that may follow
        self._left += shared
        if self._connection is not None and self.connected:
            with contextlib.suppress(ConnectionEnded):
                await self._leave_on(self._connection)
        if self._left and self._keeper is not None:
            left = asyncio.create_task(self._all_left.wait(), name="mqtt groups left")
            try:
                await asyncio.wait({left, self._keeper}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                left.cancel()

    async def _leave_on(self, connection: Connection) -> None:
        """UNSUBSCRIBE what was left, on each connection anew: only so a session that was kept forgets it."""
        if self._left:
            await connection.unsubscribe(self._left)
            self._all_left.set()

    def ask_again(self, why: str) -> None:
        """Have the broker send again all that is unacknowledged: on a new connection with the same session."""
        if self._connection is not None and self.connected:
            self._connection.begin_anew("asked_again", why)

    async def _keep_session(self) -> None:
        back_off = BackOff()
        while True:
            tried_at = time.monotonic()
            end = await self._one_connection(back_off)
            if self._closed:
                return
            self._event(end.event)
            self._complaints.about(end)
            if end.event == "taken_over":
                raise BrokerUnavailable(
                    f"Two gateways share the client id {self._settings.client_id!r}; the other one has the session now",
                    where=end.where,
                    fix=end.fix,
                )
            if end.event not in (
                "credentials_renewed",
                "asked_again",
            ):  # the broker is well: straight back, with the new ones
                since = time.monotonic() if end.event == "lost" else tried_at
                await asyncio.sleep(back_off.pause_s(since))

    async def _one_connection(self, back_off: BackOff) -> ConnectionEnded:
        connection = Connection(
            self._settings,
            received=self._received,
            answered=self._outbox.answered,
            happened=self._event,
            learned=self._learned,
        )
        self._connection = connection
        try:
            session = await connection.open()
            await self._leave_on(connection)
            opened_at = time.monotonic()
            self._up(connection, session)
            end = await connection.until_ended()
            if time.monotonic() - opened_at >= STEADY_AFTER_S:
                back_off.reset()
        except ConnectionEnded as failure:
            return failure
        else:
            return end
        finally:
            connection.abort()
            self._outbox.lost()
            self._states.set(False)

    def _up(self, connection: Connection, session: Session) -> None:
        if session.resumed:
            self._inbox.forget_older_than(connection)
        elif self._had_session and self._settings.session_expiry_s:
            self._event("session_lost")
            log.warning(
                "The broker has forgotten the session; messages that it held for the gateway are lost",
                broker=self._settings.address,
                fix="Turn persistence on at the broker, and raise AIO_MQTT_SESSION_EXPIRY above its longest absence",
            )
        self._had_session = True
        self._complaints.settled()
        log.info("Connected to the broker", broker=self._settings.address, session_resumed=session.resumed)
        self._event("connected")
        self._outbox.connected(connection.send, min(self._settings.publish_window, session.receive_maximum))
        self._states.set(True)

    def _received(self, message: Message) -> bool:
        if self._left and any(topic_matches(each, message.topic) for each in self._left):
            self._dealt_at = message.received_at
        kept = self._inbox.put(message)
        if not kept:
            self._event("inbox_full")
        return kept


class _Inbox:
    """Messages that have arrived and are not yet read, bounded in number and in bytes.

    Receive Maximum bounds QoS 1, as far as the broker keeps to it, and nothing bounds QoS 0; so what does not fit is
    dropped; the connection sees to it that QoS 1 messages come again.
    """

    def __init__(self, settings: MqttSettings) -> None:
        self._max_messages = settings.inbox_max_messages
        self._max_bytes = settings.inbox_max_bytes
        self._bytes = 0
        self._messages: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, message: Message) -> bool:
        """False when it did not fit."""
        size = _size(message)
        full = len(self._messages) >= self._max_messages or self._bytes + size > self._max_bytes
        if full and self._messages:
            return False
        self._messages.append(message)
        self._bytes += size
        self._arrived.set()
        return True

    async def read(self) -> AsyncIterator[Message]:
        while True:
            while not self._messages and not self._closed:
                self._arrived.clear()
                await self._arrived.wait()
            if self._closed:
                return
            self._bytes -= _size(self._messages[0])
            yield self._messages.popleft()  # in no variable, which would keep the last one while nothing comes

    def forget_older_than(self, connection: Connection) -> None:
        """Drop QoS 1 messages of earlier connections: the broker sends them again on this one."""
        kept = [
            message
            for message in self._messages
            if not isinstance(message.delivery, Delivery) or message.delivery.connection is connection
        ]
        self._messages = deque(kept)
        self._bytes = sum(map(_size, kept))

    def close(self) -> None:
        self._closed = True
        self._messages.clear()
        self._arrived.set()


def _size(message: Message) -> int:
    """Bytes of all that its sender has a say in."""
    properties = message.properties
    texts = (properties.content_type or "", properties.response_topic or "", *chain(*properties.user_properties))
    own = len(message.payload) + len(message.topic) + len(properties.correlation_data or b"")
    return own + sum(map(len, texts))


class _Complaints:
    """Says once why there is no session, then again when the reason changes or a minute has passed."""

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        self._said: tuple[str, str] | None = None
        self._said_at = 0.0
        self.reason = ""
        """Why there is no session now."""

    def about(self, end: ConnectionEnded) -> None:
        self.reason = end.message
        now, saying = time.monotonic(), (end.event, end.message)
        if saying == self._said and now - self._said_at < LOG_EVERY_S:
            return
        self._said, self._said_at = saying, now
        if end.event == "unreachable":
            log.warning(
                "Waiting for the broker",
                host=self._settings.host,
                port=self._settings.port,
                reason=end.message,
                fix=end.fix,
            )
        elif end.event in ("credentials_renewed", "asked_again"):
            log.info("Connecting anew", broker=end.where, reason=end.message)
        elif end.event == "lost":
            log.warning("Lost the session with the broker", broker=end.where, reason=end.message, fix=end.fix)
        else:
            log.error("No session with the broker", broker=end.where, reason=end.message, fix=end.fix)

    def settled(self) -> None:
        self._said, self.reason = None, ""
