"""One connection with the broker: a paho client of its own, driven by the event loop, used once.

A fresh client for each connection makes a late acknowledgement harmless by construction: it reaches a client
that has no socket any more, never a newer message that happens to have the same packet identifier.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from paho.mqtt import MQTTException
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.adapters.mqtt_client import FramedClient, subscriptions
from gateway.adapters.mqtt_connack import (
    NO_QOS_1,
    RETAIN_NOT_SUPPORTED,
    Learned,
    Limits,
    fix_for,
    fix_for_dialling,
    impossible,
    in_words,
    limits,
    no_connack,
    tls_hint,
    why_not,
)
from gateway.adapters.mqtt_packets import Incoming, to_message
from gateway.adapters.mqtt_renewal import Renewal
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.errors import BrokerError, BrokerUnavailable, GatewayError, PublishRefused
from gateway.messages import Message, Publication

log = structlog.get_logger(__name__)
T = TypeVar("T")

BYTES_PER_TURN = 262_144
"""Read at most so much, give or take a packet, before other tasks have their turn."""
SILENT_AFTER = 1.5
"""Keep-alive times without a word of the broker, who is asked for one after the first, until the session is lost."""
_SESSION_TAKEN_OVER = 0x8E


class ConnectionEnded(BrokerUnavailable):
    """A connection could not be made or is gone; `event` is the stable name of how."""

    def __init__(self, message: str, *, event: str, fix: str, where: str) -> None:
        super().__init__(message, fix=fix, where=where)
        self.event = event


@dataclass(frozen=True, slots=True)
class Session:
    """What the broker granted."""

    resumed: bool
    receive_maximum: int


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """The handle in `Message.delivery`: this packet on this connection."""

    connection: Connection
    packet_id: int


class Connection:
    """Opened once, ends once; afterwards all its methods are without effect.

    `received` returns False for a message that it had to drop. The broker still holds it and sends it again on the
    next connection, which is made as soon as the QoS 1 messages before it have been acknowledged; those after it are
    left to the next connection too, so that a steady stream cannot put that off. `happened` is told the name of what
    does not end the connection; `learned` is shared by all connections with one broker.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        received: Callable[[Message], bool],
        answered: Callable[[int, BrokerError | None], None],
        happened: Callable[[str], None] = lambda _name: None,
        learned: Learned | None = None,
    ) -> None:
        self._settings = settings
        self._happened = happened
        self._learned = learned or Learned()
        self._received = received
        self._answered = answered
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ConnectionEnded] = self._loop.create_future()
        self._connack: asyncio.Future[Session] = self._loop.create_future()
        self._suback: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._attached = False
        self._waits_to_write = False
        self._limits = Limits()
        self._unacknowledged: dict[int, Delivery] = {}
        self._dropped = False
        self._anew = ("", "")
        self._client = FramedClient(settings, self._learned)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_disconnect = self._on_disconnect
        self._client.on_socket_close = self._on_socket_close
        self._client.on_socket_register_write = self._on_register_write
        self._client.on_socket_unregister_write = self._on_unregister_write

    # --- life ------------------------------------------------------------------------------------

    async def open(self) -> Session:
        """Connect and subscribe; raises ConnectionEnded with the reason why not."""
        dialling = self._loop.run_in_executor(None, self._client.dial)
        try:
            await asyncio.shield(dialling)
        except asyncio.CancelledError:
            dialling.add_done_callback(self._abandon)
            raise
        except (OSError, ValueError, MQTTException, GatewayError) as error:
            raise self._end("unreachable", why_not(error), fix=fix_for_dialling(error, self._settings)) from error
        self._attach()
        session = await self._answer(self._connack, "CONNACK")
        if wanted := self._possible():
            self._client.subscribe(subscriptions(self._settings, wanted))
            self._judge(wanted, await self._answer(self._suback, "SUBACK"))
        return session

    async def unsubscribe(self, topic_filters: tuple[str, ...]) -> None:
        """Return when the broker has confirmed it; raises ConnectionEnded."""
        unsuback: asyncio.Future[None] = self._loop.create_future()
        self._client.on_unsubscribe = lambda *_said: unsuback.set_result(None)
        self._client.unsubscribe(list(topic_filters))
        await self._answer(unsuback, "UNSUBACK")

    async def until_ended(self) -> ConnectionEnded:
        """Keep the connection alive; return how it ended."""
        following = asyncio.create_task(self._renew(), name="mqtt credentials")
        keep_alive_s = self._client.keepalive  # the broker's Server Keep Alive, if it says one
        tick = min(1.0, keep_alive_s / 4 or 1.0)
        try:
            while not self._ended.done():
                await asyncio.wait({self._ended}, timeout=tick)
                self._guarded(self._client.loop_misc)
                self._end_if_silent(keep_alive_s * SILENT_AFTER)
        finally:
            following.cancel()
        return self._ended.result()

    def _end_if_silent(self, limit_s: float) -> None:
        """paho would wait for another keep-alive time, and for longer while messages go out."""
        if limit_s and time.monotonic() - self._client.stream.received_at >= limit_s:
            fix = "Check the network between here and the broker, and whether the broker hangs"
            self._end("lost", f"The broker has not answered for {limit_s:g} s, not even a ping", fix=fix)

    async def _renew(self) -> None:
        """DISCONNECT in order when credentials were renewed: the broker keeps the session, and sends no last will."""
        why = await Renewal(self._settings, self._client, self._happened).needs_connection()
        self.begin_anew("credentials_renewed", why)

    def begin_anew(self, event: str, why: str) -> None:
        """DISCONNECT in order; the broker sends again on the next connection what is unacknowledged."""
        self._anew = event, why
        self._guarded(self._client.disconnect)

    async def close(self, timeout_s: float) -> None:
        """Write what is pending, then DISCONNECT, so that the broker forgets the last will."""
        if not self._ended.done() and self._attached:
            self._client.disconnect()
            await asyncio.wait({self._ended}, timeout=timeout_s)
        self.abort()

    def abort(self) -> None:
        """Close the socket as it is; the broker sends the last will."""
        self._end("lost", "closed by the gateway", fix="")
        self._client.abort()

    def _abandon(self, dialling: asyncio.Future[None]) -> None:
        dialling.exception()
        self._client.abort()

    def _end(self, event: str, message: str, *, fix: str) -> ConnectionEnded:
        """The first reason counts; what follows from it does not."""
        if not self._ended.done():
            self._unacknowledged.clear()
            self._ended.set_result(ConnectionEnded(message, event=event, fix=fix, where=self._settings.address))
        return self._ended.result()

    async def _answer(self, answer: asyncio.Future[T], what: str) -> T:
        either: set[asyncio.Future[Any]] = {answer, self._ended}
        await asyncio.wait(either, timeout=self._settings.answer_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        fix = f"Check that an MQTT broker listens at this address, and {tls_hint(self._settings)}"
        raise self._end("unreachable", f"No {what} came", fix=fix)

    # --- use -------------------------------------------------------------------------------------

    def send(self, publication: Publication) -> int:
        """Queue one publication and return its packet identifier; raises PublishRefused."""
        return self._client.send_publish(publication, self._limits)

    def awaits(self, delivery: Delivery) -> bool:
        """False when it is acknowledged already or the connection is gone."""
        return self._unacknowledged.get(delivery.packet_id) is delivery

    def acknowledge(self, delivery: Delivery) -> None:
        """Without effect when nobody awaits it."""
        if self.awaits(delivery):
            del self._unacknowledged[delivery.packet_id]
            self._client.ack(delivery.packet_id, 1)
            self._ask_again_when_settled()

    def _ask_again_when_settled(self) -> None:
        if self._dropped and not self._unacknowledged:
            self._client.disconnect()

    # --- the event loop --------------------------------------------------------------------------

    def _attach(self) -> None:
        self._attached = True
        self._loop.add_reader(self._client.stream.fileno(), self._on_readable)
        if self._client.want_write():
            self._on_register_write(self._client, None, None)

    def _on_readable(self) -> None:
        stream = self._client.stream
        enough = stream.received_bytes + BYTES_PER_TURN
        while not self._ended.done() and stream.received_bytes < enough:
            self._guarded(self._client.loop_read)
            if not (stream.pending() or self._client.packet_waits):
                return
        if not self._ended.done():
            self._loop.call_soon(self._on_readable)

    def _on_writable(self) -> None:
        self._guarded(self._client.loop_write)
        if self._attached and not self._waits_to_write and self._client.want_write():
            self._waits_to_write = True
            self._loop.add_writer(self._client.stream.fileno(), self._on_writable)

    def _guarded(self, step: Callable[[], MQTTErrorCode]) -> None:
        """A packet that breaks paho ends the connection, not the gateway."""
        if self._ended.done():
            return
        try:
            step()
        except Exception as error:  # whatever the bytes of a stranger can raise in paho
            log.exception("The broker sent what cannot be read", broker=self._settings.address)
            self._end("lost", f"Protocol error: {error!r}", fix="See the traceback in the log")

    def _on_register_write(self, _client: paho.Client, _userdata: Any, _sock: Any) -> None:
        """Write at the end of this turn, without asking whether the socket is ready: it nearly always is."""
        if self._attached:
            self._loop.call_soon(self._on_writable)

    def _on_unregister_write(self, _client: paho.Client, _userdata: Any, _sock: Any) -> None:
        if self._attached and self._waits_to_write:
            self._waits_to_write = False
            self._loop.remove_writer(self._client.stream.fileno())

    def _on_socket_close(self, _client: paho.Client, _userdata: Any, _sock: Any) -> None:
        if self._attached:
            self._attached = False
            self._loop.remove_reader(self._client.stream.fileno())
            self._loop.remove_writer(self._client.stream.fileno())

    # --- what the broker says --------------------------------------------------------------------

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refused(reason, properties)
            return
        self._limits = limits(properties)
        if not self._limits.maximum_qos:
            self._end("connect_refused", NO_QOS_1[0], fix=NO_QOS_1[1])
            return
        self._learn_retain(self._limits.retain_available)
        self._connack.set_result(Session(flags.session_present, self._limits.receive_maximum))

    def _refused(self, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.value == RETAIN_NOT_SUPPORTED:
            self._learn_retain(False)
        said, fix = in_words(reason, properties), fix_for(reason, self._settings)
        self._end("connect_refused", f"The broker refused the connection: {said}", fix=fix)

    def _learn_retain(self, available: bool) -> None:
        """Warn once, whatever number of connections follow."""
        if self._learned.retain and not available:
            log.warning(
                "The broker has no retained messages: the status and the state of models are seen by those who listen",
                broker=self._settings.address,
                fix="Allow retained messages at the broker",
            )
        self._learned.retain = available

    def _possible(self) -> tuple[str, ...]:
        """The filters to subscribe; raises ConnectionEnded for one that this broker can never grant."""
        settings, wrong = self._settings, impossible(self._limits, filters(self._settings))
        for topic_filter, (why, fix) in wrong.items():
            if topic_filter not in settings.optional_subscriptions:
                where = "of MQTT_INPUT_TOPICS or of a model's input_topics"
                raise self._end("subscribe_refused", f"{topic_filter!r} {where} is not possible: {why}", fix=fix)
            log.warning("The broker cannot take a subscription", filter=topic_filter, reason=why, fix=fix)
        return tuple(topic_filter for topic_filter in filters(settings) if topic_filter not in wrong)

    def _on_subscribe(
        self, _client: paho.Client, _userdata: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._suback.set_result(reasons)

    def _judge(self, wanted: tuple[str, ...], reasons: list[ReasonCode]) -> None:
        for topic_filter, reason in zip(wanted, reasons, strict=False):
            if reason.is_failure and topic_filter in self._settings.optional_subscriptions:
                fix = f"Allow the client {self._settings.client_id!r} to subscribe it, or switch off what it is for"
                log.warning("The broker refuses a subscription", filter=topic_filter, reason=str(reason), fix=fix)
            elif reason.is_failure:
                fix = f"Allow the client {self._settings.client_id!r} to subscribe it, or change MQTT_INPUT_TOPICS"
                raise self._end("subscribe_refused", f"Subscription to {topic_filter!r} refused: {reason}", fix=fix)
            elif reason.value == 0:
                fix = "Allow QoS 1 at the broker"
                log.warning("Messages can be lost: subscribed with QoS 0 only", filter=topic_filter, fix=fix)

    def _on_message(self, _client: paho.Client, _userdata: Any, incoming: paho.MQTTMessage | Incoming) -> None:
        delivery = Delivery(self, incoming.mid) if incoming.qos == 1 else None
        if delivery is not None and self._dropped:
            return  # it comes again, behind the one that was dropped
        stream = self._client.stream
        kept = self._received(to_message(incoming, delivery, stream.take_payload(), stream.oversize, time.monotonic()))
        if delivery is not None and kept:
            self._unacknowledged[incoming.mid] = delivery
        elif delivery is not None:
            self._dropped = True
            self._ask_again_when_settled()

    def _on_publish(
        self, _client: paho.Client, _userdata: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        refusal = None
        if reason.is_failure:
            fix = "Allow the gateway's client to publish on this topic, or see the broker's log"
            refusal = PublishRefused(f"The broker refused the message: {reason}", fix=fix)
        self._answered(mid, refusal)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        said = in_words(reason, properties)
        if flags.is_disconnect_packet_from_server and reason.value == _SESSION_TAKEN_OVER:
            fix = "Give each gateway a client id of its own (AIO_MQTT_CLIENT_ID or GATEWAY_ID)"
            self._end("taken_over", f"Another client connected as {self._settings.client_id!r}", fix=fix)
        elif self._anew[0]:
            self._end(*self._anew, fix="")
        elif self._dropped:
            fix = "Raise inbox_max_messages or inbox_max_bytes, or lower receive_maximum"
            self._end("lost", "Asking the broker again for messages that did not fit into the inbox", fix=fix)
        elif self._connack.done() and flags.is_disconnect_packet_from_server:
            self._end("lost", f"The broker closed the session: {said}", fix=fix_for(reason, self._settings))
        elif trouble := self._client.why_gone():
            self._end("lost" if self._connack.done() else "unreachable", trouble.message, fix=trouble.fix)
        elif self._connack.done():
            fix = f"If this goes on, look for another client with the id {self._settings.client_id!r}"
            self._end("lost", f"The connection is gone: {said}", fix=fix)  # so ends a takeover in MQTT 3.1.1
        else:
            self._end("unreachable", f"The connection ended before CONNACK: {said}", fix=no_connack(self._settings))


def filters(settings: MqttSettings) -> tuple[str, ...]:
    """All topic filters, the optional ones last."""
    return (*settings.subscriptions, *settings.optional_subscriptions)
