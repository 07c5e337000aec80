"""paho's client as this package uses it: its own way to dial, and a framed socket to read from."""

from __future__ import annotations

import contextlib
import socket
import ssl

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.adapters.mqtt_framing import FramedSocket, Framing
from gateway.adapters.mqtt_packets import new_properties, publish_properties
from gateway.adapters.mqtt_settings import MqttSettings


class FramedClient(paho.Client):
    """paho with a framed socket, and with what it keeps to itself but an event loop needs."""

    stream: FramedSocket

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
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
        """Connect the socket and queue CONNECT; blocks, and raises OSError or ValueError."""
        settings = self._settings
        if settings.username is not None:
            password = settings.password_file.read_text("utf-8").rstrip("\r\n") if settings.password_file else None
            self.username_pw_set(settings.username, password)
        if settings.will is not None:
            will, is_v5 = settings.will, settings.protocol == "5"
            properties = publish_properties(will, PacketTypes.WILLMESSAGE) if is_v5 else None
            self.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        if settings.protocol == "5":
            properties = _connect_properties(settings)
            self.connect(settings.host, settings.port, settings.keep_alive_s, clean_start=False, properties=properties)
        else:
            self.connect(settings.host, settings.port, settings.keep_alive_s)

    def abort(self) -> None:
        self._sock_close()

    def _create_socket(self) -> FramedSocket:
        settings = self._settings
        sock = socket.create_connection((settings.host, settings.port), timeout=settings.connect_timeout_s)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(sock.close)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an acknowledgement shall not wait for Nagle
            if settings.tls:
                sock = _tls_context(settings).wrap_socket(sock, server_hostname=settings.host)
            on_failure.pop_all()
        self.stream = FramedSocket(sock, Framing(settings.max_payload_bytes, properties=settings.protocol == "5"))
        return self.stream


def _tls_context(settings: MqttSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def _connect_properties(settings: MqttSettings) -> Properties:
    properties = new_properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = settings.session_expiry_s
    properties.ReceiveMaximum = settings.receive_maximum
    if settings.sat_file is not None:
        properties.AuthenticationMethod = "K8S-SAT"
        properties.AuthenticationData = settings.sat_file.read_bytes().strip()
    return properties
