"""paho's client as this package uses it: its own way to dial, a framed socket to read from, and AUTH."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, cast

from paho.mqtt import client as paho
from paho.mqtt._packet import decode_puback
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.adapters.mqtt_connack import Learned, Limits
from gateway.adapters.mqtt_framing import FramedSocket, Framing
from gateway.adapters.mqtt_packets import PUBLISH, new_properties, publish_packet, read_publish, will_properties
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.adapters.tls import FileWatch, TlsError, explain, handshake, speaks_tls
from gateway.credentials import BROKER, read_secret
from gateway.errors import PublishRefused
from gateway.messages import Publication

K8S_SAT = "K8S-SAT"
AUTH = PacketTypes.AUTH << 4
PUBACK = PacketTypes.PUBACK << 4
RE_AUTHENTICATE = 0x19
_SUCCESS = ReasonCode(PacketTypes.PUBACK)
_NO_PROPERTIES = new_properties(PacketTypes.PUBACK)


class FramedClient(paho.Client):
    """paho with a framed socket, and with what it keeps to itself but an event loop needs.

    paho 2.2 neither sends nor understands AUTH, so both are done here, with its own queue of packets.
    """

    stream: FramedSocket
    files: FileWatch
    """The files that `dial` has read, as they were then."""
    on_auth: Callable[[], None] | None = None
    """Called when the broker has accepted what `authenticate_again` sent."""

    def __init__(self, settings: MqttSettings, learned: Learned | None = None) -> None:
        self._settings = settings
        self._learned = learned or Learned()
        self._unanswered: set[int] = set()
        """Packet identifiers of what `send_publish` has sent."""
        is_v5 = settings.protocol == "5"
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=None if is_v5 else settings.session_expiry_s == 0,
            protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,  # or paho goes down to MQTT 3.1 by itself
            manual_ack=True,
        )
        self.max_inflight_messages = 0  # the outbox holds the window
        self.connect_timeout = settings.connect_timeout_s

    def dial(self) -> None:
        """Connect the socket and queue CONNECT; blocks, and raises OSError, ValueError, ConfigError or TlsError."""
        settings = self._settings
        self.files = FileWatch(settings.credential_files)
        if settings.username is not None:
            file = settings.password_file
            self.username_pw_set(settings.username, read_secret(file, "AIO_MQTT_PASSWORD_FILE") if file else None)
        if settings.will is not None:
            will, is_v5 = settings.will, settings.protocol == "5"
            properties = will_properties(will) if is_v5 else None
            self.will_set(will.topic, will.payload, will.qos, will.retain and self._learned.retain, properties)
        if settings.protocol == "5":
            properties = _connect_properties(settings)
            self.connect(settings.host, settings.port, settings.keep_alive_s, clean_start=False, properties=properties)
        else:
            self.connect(settings.host, settings.port, settings.keep_alive_s)

    @property
    def packet_waits(self) -> bool:
        """Whether a whole packet is read but not handled: paho pauses after 100 reads, even when that was the last."""
        return self._in_packet["have_remaining"] == 1 and self._in_packet["to_process"] == 0

    def abort(self) -> None:
        self._sock_close()

    def send_publish(self, publication: Publication, limits: Limits) -> int:
        """Queue a PUBLISH and return its packet identifier; raises PublishRefused.

        `on_publish` tells of its answer, or that it has been written. Unlike paho's `publish` this keeps no copy to be
        sent again, which the outbox does.
        """
        retain, packet_id = publication.retain and limits.retain_available, self._unused_packet_id()
        try:
            packet = publish_packet(publication, packet_id, retain=retain, is_v5=self._settings.protocol == "5")
        except ValueError as error:
            fix = "Use a topic without wildcards and properties below 64 KiB"
            raise PublishRefused(f"Not an MQTT message: {error}", where=publication.topic, fix=fix) from error
        largest = limits.maximum_packet_size
        if largest is not None and len(packet) > largest:
            said, fix = (
                f"The packet has {len(packet)} bytes, the broker takes {largest}",
                "Raise its maximum packet size",
            )
            raise PublishRefused(said, where=publication.topic, fix=fix)
        if publication.qos:
            self._unanswered.add(packet_id)
        info = None if publication.qos else paho.MQTTMessageInfo(packet_id)
        self._packet_queue(PUBLISH, packet, packet_id, publication.qos, info)
        return packet_id

    def _unused_packet_id(self) -> int:
        while (packet_id := self._mid_generate()) in self._unanswered:
            pass
        return packet_id

    def authenticate_again(self) -> None:
        """Queue AUTH with the token as its file reads now; raises ConfigError. `on_auth` tells that it has worked,
        and the broker ends the session when it refuses the token."""
        packed = _token_properties(PacketTypes.AUTH, self._settings).pack()  # type: ignore[no-untyped-call]
        packet = bytearray([AUTH])
        self._pack_remaining_length(packet, 1 + len(packed))
        packet.append(RE_AUTHENTICATE)
        packet.extend(packed)
        self._packet_queue(AUTH, packet, 0, 0)

    def why_gone(self) -> TlsError | None:
        """What TLS had to do with the end of the connection, as far as can be told."""
        settings, files = self._settings, self._settings.tls_files
        if files is not None and self.stream.failure is not None:
            return explain(self.stream.failure, files, settings.host, settings.port)
        return speaks_tls(BROKER, settings.address) if files is None and self.stream.answered_tls else None

    def _packet_handle(self) -> MQTTErrorCode:
        """All packets but AUTH are paho's; one that asks to go on is not, for a token has nothing more to say."""
        command = self._in_packet["command"]
        if command & 0xF0 == PUBLISH:
            return self._take_publish(command)
        if command == PUBACK and self._is_answered(self._in_packet["packet"]):
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        if command != AUTH:
            return super()._packet_handle()
        reason = self._in_packet["packet"][:1]  # may be left out for success
        if self.on_auth is None or any(reason):
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self.on_auth()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _take_publish(self, command: int) -> MQTTErrorCode:
        incoming = read_publish(command, self._in_packet["packet"], is_v5=self._settings.protocol == "5")
        if incoming is None:
            return super()._packet_handle()
        cast("Callable[..., None]", self.on_message)(self, None, incoming)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _is_answered(self, packet: bytearray) -> bool:
        """Take the answer to one of `send_publish`; nearly all say no more than that it has worked."""
        packet_id = int.from_bytes(packet[:2], "big")
        if len(packet) < 2 or packet_id not in self._unanswered:
            return False  # paho's, as is what cannot be read
        reason, properties = _SUCCESS, _NO_PROPERTIES
        if any(packet[2:]):
            answer = decode_puback(PUBACK, packet, self._protocol)
            reason, properties = answer.reason, answer.properties
        self._unanswered.discard(packet_id)
        cast("Callable[..., None]", self.on_publish)(self, None, packet_id, reason, properties)
        return True

    def _create_socket(self) -> FramedSocket:
        settings = self._settings
        sock = socket.create_connection((settings.host, settings.port), timeout=settings.connect_timeout_s)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(sock.close)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an acknowledgement shall not wait for Nagle
            _notice_dead_links(sock, settings.keep_alive_s)
            if settings.tls_files is not None:
                sock = handshake(sock, settings.tls_files, settings.host, settings.port)
            on_failure.pop_all()
        self.stream = FramedSocket(sock, Framing(settings.max_payload_bytes, properties=settings.protocol == "5"))
        return self.stream


def _notice_dead_links(sock: socket.socket, within_s: int) -> None:
    """Let the kernel end a connection whose other side has vanished: at writes that nobody confirms, and in silence.

    Linux has both limits; elsewhere the keep-alive of MQTT does it alone.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(within_s, 3600) * 1000)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, min(within_s, 3600) // 2))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, min(within_s, 3600) // 6))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def subscriptions(settings: MqttSettings, topic_filters: tuple[str, ...]) -> list[Any]:
    """What paho's `subscribe` takes."""
    if settings.protocol == "3.1.1":
        return [(topic_filter, 1) for topic_filter in topic_filters]
    # Retained messages come with a new subscription only, not again at each reconnect.
    options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
    return [(topic_filter, options) for topic_filter in topic_filters]


def _connect_properties(settings: MqttSettings) -> Properties:
    """Topic Alias Maximum is left out: the broker may use no aliases then, and we use none either."""
    properties = new_properties(PacketTypes.CONNECT)
    if settings.sat_file is not None:
        properties = _token_properties(PacketTypes.CONNECT, settings)
    properties.SessionExpiryInterval = settings.session_expiry_s
    properties.ReceiveMaximum = settings.receive_maximum
    return properties


def _token_properties(packet_type: int, settings: MqttSettings) -> Properties:
    """Enhanced authentication with the token of `settings.sat_file`, read now."""
    assert settings.sat_file is not None
    properties = new_properties(packet_type)
    properties.AuthenticationMethod = K8S_SAT
    properties.AuthenticationData = read_secret(settings.sat_file, "AIO_SAT_FILE").strip().encode()
    return properties
