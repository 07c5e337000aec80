"""One connection with the broker: a paho client of its own, driven by the event loop, used once.

A fresh client for each connection makes a late acknowledgement harmless by construction: it reaches a client
that has no socket any more, never a newer message that happens to have the same packet identifier.
"""

from __future__ import annotations

import asyncio
import ssl
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
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.adapters.mqtt_client import FramedClient
from gateway.adapters.mqtt_packets import packet_size, publish_properties, to_message
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.errors import BrokerError, BrokerUnavailable, PublishRefused
from gateway.messages import Message, Publication
from gateway.topics import safe_text

log = structlog.get_logger(__name__)
T = TypeVar("T")

BYTES_PER_TURN = 262_144
"""Read at most so much, give or take a packet, before other tasks have their turn."""
_SESSION_TAKEN_OVER = 0x8E
_BAD_CREDENTIALS = {0x86, 0x87, 0x8C}  # user name or password, not authorised, authentication method


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
    left to the next connection too, so that a steady stream cannot put that off.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        received: Callable[[Message], bool],
        answered: Callable[[int, BrokerError | None], None],
    ) -> None:
        self._settings = settings
        self._received = received
        self._answered = answered
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ConnectionEnded] = self._loop.create_future()
        self._connack: asyncio.Future[Session] = self._loop.create_future()
        self._suback: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._attached = False
        self._maximum_packet_size: int | None = None
        self._unacknowledged: dict[int, Delivery] = {}
        self._dropped = False
        self._client = FramedClient(settings)
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
        except (OSError, ValueError, MQTTException) as error:
            raise self._end("unreachable", _reason(error), fix=_fix_for(error, self._settings)) from error
        self._attach()
        session = await self._answer(self._connack, "CONNACK")
        if wanted := _subscriptions(self._settings):
            self._client.subscribe(wanted)
            self._judge(await self._answer(self._suback, "SUBACK"))
        return session

    async def until_ended(self) -> ConnectionEnded:
        """Keep the connection alive; return how it ended."""
        tick = min(1.0, self._settings.keep_alive_s / 4)
        while not self._ended.done():
            await asyncio.wait({self._ended}, timeout=tick)
            self._guarded(self._client.loop_misc)
        return self._ended.result()

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
        raise self._end("unreachable", f"No {what} came", fix="Check that an MQTT broker listens at this address")

    # --- use -------------------------------------------------------------------------------------

    def send(self, publication: Publication) -> int:
        """Hand one publication to paho and return its packet identifier; raises PublishRefused."""
        try:
            texts = [publication.topic, *(text for pair in publication.user_properties for text in pair)]
            if not publication.topic or any(safe_text(text) != text for text in texts):
                raise ValueError("the topic is empty, or a text has control characters")
            properties = publish_properties(publication) if self._settings.protocol == "5" else None
            self._check_size(publication, properties)
            info = self._client.publish(
                publication.topic, publication.payload, publication.qos, publication.retain, properties
            )
        except (ValueError, TypeError, MQTTException) as error:
            fix = "Use a topic without wildcards and properties below 64 KiB"
            raise PublishRefused(f"Not an MQTT message: {error}", where=publication.topic, fix=fix) from error
        return info.mid

    def _check_size(self, publication: Publication, properties: Properties | None) -> None:
        if self._maximum_packet_size is None:
            return
        size = packet_size(publication, properties)
        if size > self._maximum_packet_size:
            raise PublishRefused(
                f"The packet has {size} bytes, the broker takes {self._maximum_packet_size}",
                where=publication.topic,
                fix="Raise the broker's maximum packet size",
            )

    def acknowledge(self, delivery: Delivery) -> None:
        """Without effect when it is done already or the connection is gone."""
        if self._unacknowledged.get(delivery.packet_id) is delivery:
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
            if not stream.pending():
                return
        if not self._ended.done():
            self._loop.call_soon(self._on_readable)

    def _on_writable(self) -> None:
        self._guarded(self._client.loop_write)

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
        if self._attached:
            self._loop.add_writer(self._client.stream.fileno(), self._on_writable)

    def _on_unregister_write(self, _client: paho.Client, _userdata: Any, _sock: Any) -> None:
        if self._attached:
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
            fix = _fix_for_refusal(reason, self._settings)
            self._end("connect_refused", f"The broker refused the connection: {reason}", fix=fix)
            return
        self._maximum_packet_size = getattr(properties, "MaximumPacketSize", None)
        receive_maximum = getattr(properties, "ReceiveMaximum", 65_535)
        self._connack.set_result(Session(flags.session_present, receive_maximum))

    def _on_subscribe(
        self, _client: paho.Client, _userdata: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._suback.set_result(reasons)

    def _judge(self, reasons: list[ReasonCode]) -> None:
        for topic_filter, reason in zip(_filters(self._settings), reasons, strict=False):
            if reason.is_failure and topic_filter in self._settings.optional_subscriptions:
                fix = f"Allow the client {self._settings.client_id!r} to subscribe it, or switch off what it is for"
                log.warning("The broker refuses a subscription", filter=topic_filter, reason=str(reason), fix=fix)
            elif reason.is_failure:
                fix = f"Allow the client {self._settings.client_id!r} to subscribe it, or change MQTT_INPUT_TOPICS"
                raise self._end("subscribe_refused", f"Subscription to {topic_filter!r} refused: {reason}", fix=fix)
            elif reason.value == 0:
                fix = "Allow QoS 1 at the broker"
                log.warning("Messages can be lost: subscribed with QoS 0 only", filter=topic_filter, fix=fix)

    def _on_message(self, _client: paho.Client, _userdata: Any, incoming: paho.MQTTMessage) -> None:
        delivery = Delivery(self, incoming.mid) if incoming.qos == 1 else None
        if delivery is not None and self._dropped:
            return  # it comes again, behind the one that was dropped
        kept = self._received(to_message(incoming, delivery, self._client.stream.oversize, time.monotonic()))
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
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server and reason.value == _SESSION_TAKEN_OVER:
            fix = "Give each gateway a client id of its own (AIO_MQTT_CLIENT_ID or GATEWAY_ID)"
            self._end("taken_over", f"Another client connected as {self._settings.client_id!r}", fix=fix)
        elif self._dropped:
            fix = "Raise inbox_max_messages or inbox_max_bytes, or lower receive_maximum"
            self._end("lost", "Asking the broker again for messages that did not fit into the inbox", fix=fix)
        elif self._connack.done():
            by = "The broker closed the session" if flags.is_disconnect_packet_from_server else "The connection is gone"
            fix = f"If this goes on, look for another client with the id {self._settings.client_id!r}"
            self._end("lost", f"{by}: {reason}", fix=fix)  # Mosquitto 2.0.11 does not say 0x8E, MQTT 3.1.1 cannot
        else:
            fix = "Check that an MQTT broker, with this protocol version and TLS setting, listens at this address"
            self._end("unreachable", f"The connection ended before CONNACK: {reason}", fix=fix)


def _filters(settings: MqttSettings) -> tuple[str, ...]:
    return (*settings.subscriptions, *settings.optional_subscriptions)


def _subscriptions(settings: MqttSettings) -> list[Any]:
    if settings.protocol == "3.1.1":
        return [(topic_filter, 1) for topic_filter in _filters(settings)]
    # Retained messages come with a new subscription only, not again at each reconnect.
    options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
    return [(topic_filter, options) for topic_filter in _filters(settings)]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _fix_for(error: Exception, settings: MqttSettings) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "Check that AIO_TLS_CA_FILE holds the broker's CA and that its certificate names this host"
    if isinstance(error, ssl.SSLError):
        return "Check AIO_MQTT_USE_TLS, the port, and the client certificate"
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return "Check the files of the password, token or certificates"
    return f"Start the broker, or check AIO_BROKER_HOSTNAME ({settings.host}) and AIO_BROKER_TCP_PORT ({settings.port})"


def _fix_for_refusal(reason: ReasonCode, settings: MqttSettings) -> str:
    if reason.value in _BAD_CREDENTIALS:
        return "Check AIO_MQTT_USERNAME, AIO_MQTT_PASSWORD_FILE, AIO_SAT_FILE and the broker's list of clients"
    return f"Check MQTT_PROTOCOL ({settings.protocol}) and the client id {settings.client_id!r}, and the broker's log"
