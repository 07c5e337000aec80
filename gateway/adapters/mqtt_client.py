"""paho's client as this package uses it: its own way to dial, a framed socket to read from, and AUTH."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.adapters.mqtt_connack import Learned
from gateway.adapters.mqtt_framing import FramedSocket, Framing
from gateway.adapters.mqtt_packets import new_properties, publish_properties
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.adapters.tls import FileWatch, TlsError, explain, handshake, speaks_tls
from gateway.credentials import BROKER, read_secret

K8S_SAT = "K8S-SAT"
AUTH = PacketTypes.AUTH << 4
RE_AUTHENTICATE = 0x19


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
            properties = publish_properties(will, PacketTypes.WILLMESSAGE) if is_v5 else None
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
        if self._in_packet["command"] != AUTH:
            return super()._packet_handle()
        reason = self._in_packet["packet"][:1]  # may be left out for success
        if self.on_auth is None or any(reason):
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self.on_auth()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

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
