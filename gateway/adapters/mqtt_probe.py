"""One look at a broker: what it grants to us and what its limits are; leaves no session and takes no messages."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paho.mqtt import MQTTException
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.adapters.mqtt_client import FramedClient
from gateway.adapters.mqtt_connack import (
    MAX_QUOTE,
    Limits,
    fix_for,
    fix_for_dialling,
    in_words,
    limits,
    no_connack,
    tls_hint,
    why_not,
)
from gateway.adapters.mqtt_connection import ConnectionEnded
from gateway.adapters.mqtt_framing import FramedSocket
from gateway.adapters.mqtt_packets import new_properties
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.errors import GatewayError
from gateway.messages import Publication
from gateway.topics import safe_text

TURN_S = 0.1


@dataclass(frozen=True, slots=True)
class Grant:
    """What the broker said to a subscription, or to a publication; `qos` is None where it says none."""

    topic: str
    refused: bool
    reason: str
    qos: int | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """Of the broker: whose it is, who vouches for it, and when it ends in epoch seconds."""

    subject: str
    issuer: str
    ends_at: float


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """What CONNACK says, with the defaults of MQTT where it says nothing, and what is granted."""

    peer: str = ""
    """The address that the name led to."""
    tls: str = ""
    """Version and cipher; empty without TLS."""
    certificate: Certificate | None = None
    assigned_client_id: str | None = None
    """What the broker calls us in place of the client id that we gave, if it does."""
    session_expiry_s: int | None = None
    """For how long the broker would keep the session that was asked for; None where it cannot be told."""
    limits: Limits = field(default_factory=Limits)
    server_keep_alive_s: int | None = None
    """What the broker sets in place of AIO_MQTT_KEEP_ALIVE, if it does."""
    subscriptions: tuple[Grant, ...] = ()
    publications: tuple[Grant, ...] = ()


def probe_broker(
    settings: MqttSettings, publications: Sequence[Publication], session_expiry_s: int, limit_s: float
) -> BrokerFacts:
    """Connect, subscribe each topic of `settings` by itself, publish, and go; blocks for `limit_s` at most.

    Give it a client id of its own. Raises ConnectionEnded with the reason when there is no session.
    """
    ends_at = time.monotonic() + limit_s
    facts = _Probe(settings, ends_at).run(publications)
    if settings.protocol != "5" or not session_expiry_s:
        return facts
    # A session of its own, which subscribes nothing: one that stays, should we be killed now, keeps no messages.
    asking = replace(settings, subscriptions=(), session_expiry_s=session_expiry_s, client_id=f"{settings.client_id}-x")
    try:
        return replace(facts, session_expiry_s=_Probe(asking, ends_at).granted_expiry())
    except ConnectionEnded:
        return facts


class _ProbeClient(FramedClient):
    """Notes what TLS has settled."""

    tls = ""
    peer = ""
    certificate: Certificate | None = None

    def _create_socket(self) -> FramedSocket:
        stream = super()._create_socket()
        inner = stream._sock  # noqa: SLF001 - the one place that wants to know about TLS
        self.peer = str(inner.getpeername()[0])
        if isinstance(inner, ssl.SSLSocket):
            cipher = inner.cipher()
            self.tls = f"{inner.version()}, {cipher[0] if cipher else 'unknown cipher'}"
            self.certificate = _certificate(dict(inner.getpeercert() or {}))
        return stream


def _certificate(peer: dict[str, Any]) -> Certificate | None:
    ends = peer.get("notAfter")
    if not isinstance(ends, str):
        return None
    return Certificate(_common_name(peer, "subject"), _common_name(peer, "issuer"), ssl.cert_time_to_seconds(ends))


def _common_name(peer: dict[str, Any], part: str) -> str:
    names = {key: str(value) for pairs in peer.get(part, ()) for key, value in pairs}
    return safe_text(names.get("commonName") or names.get("organizationName") or "without a name")[:MAX_QUOTE]


class _Probe:
    """The state of one look; paho's callbacks run in the thread that calls `run`."""

    def __init__(self, settings: MqttSettings, ends_at: float) -> None:
        self._settings = settings
        self._ends_at = ends_at
        self._client = _ProbeClient(settings)
        self._connack: tuple[ReasonCode, Properties | None] | None = None
        self._suback: list[ReasonCode] = []
        self._puback: list[ReasonCode] = []
        self._gone: ReasonCode | None = None
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish
        self._client.on_disconnect = self._on_disconnect

    def run(self, publications: Sequence[Publication]) -> BrokerFacts:
        with self._session() as properties:
            return self._facts(properties, publications)

    def granted_expiry(self) -> int:
        """Seconds for which the broker keeps the session of `settings`, as it says, or else as was asked for."""
        with self._session() as properties:
            return int(getattr(properties, "SessionExpiryInterval", self._settings.session_expiry_s))

    @contextlib.contextmanager
    def _session(self) -> Iterator[Properties | None]:
        """Connected, with the properties of CONNACK; the session ends with it, whatever expiry was asked for."""
        try:
            self._client.dial()
        except (OSError, ValueError, MQTTException, GatewayError) as error:
            raise self._ended(why_not(error), fix_for_dialling(error, self._settings)) from error
        try:
            self._until(lambda: self._connack is not None, "CONNACK")
            reason, properties = self._connack or (None, None)
            if reason is None or reason.is_failure:
                fix = fix_for(reason, self._settings) if reason else ""
                raise self._ended(f"The broker refused the connection: {in_words(reason, properties)}", fix)
            yield properties
        finally:
            self._client.disconnect(properties=self._goodbye())
            self._client.loop_write()
            self._client.abort()

    def _goodbye(self) -> Properties | None:
        if self._settings.protocol != "5" or not self._settings.session_expiry_s:
            return None
        properties = new_properties(PacketTypes.DISCONNECT)
        properties.SessionExpiryInterval = 0
        return properties

    def _facts(self, properties: Properties | None, publications: Sequence[Publication]) -> BrokerFacts:
        subscriptions = tuple(self._subscribe(topic) for topic in self._settings.subscriptions)
        return BrokerFacts(
            peer=self._client.peer,
            tls=self._client.tls,
            certificate=self._client.certificate,
            assigned_client_id=getattr(properties, "AssignedClientIdentifier", None),
            limits=limits(properties),
            server_keep_alive_s=getattr(properties, "ServerKeepAlive", None),
            subscriptions=subscriptions,
            publications=tuple(self._publish(each) for each in publications),
        )

    def _subscribe(self, topic: str) -> Grant:
        """By itself, so that a broker that hangs up over it tells which one it was."""
        self._suback = []
        if self._settings.protocol == "5":
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            self._client.subscribe([(topic, options)])
        else:
            self._client.subscribe([(topic, 1)])
        if not self._answered(lambda: bool(self._suback)):
            return Grant(topic, refused=True, reason=f"no answer ({self._gone or 'in time'})")
        reason = self._suback[0]
        return Grant(topic, reason.is_failure, str(reason), None if reason.is_failure else reason.value)

    def _publish(self, publication: Publication) -> Grant:
        self._puback = []
        if self._gone is None:
            self._client.publish(publication.topic, publication.payload, 1)
        if not self._answered(lambda: bool(self._puback)):
            return Grant(publication.topic, refused=True, reason=f"no answer ({self._gone or 'in time'})")
        return Grant(publication.topic, self._puback[0].is_failure, str(self._puback[0]))

    def _answered(self, condition: Callable[[], bool]) -> bool:
        while not condition() and self._gone is None and time.monotonic() < self._ends_at:
            if self._client.loop(TURN_S) is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                break
        return condition()

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        if not self._answered(condition):
            if trouble := self._client.why_gone():
                raise self._ended(trouble.message, trouble.fix)
            if self._gone is not None:
                raise self._ended(f"The connection ended before {what}", no_connack(self._settings))
            fix = f"Check that an MQTT broker listens at this address, and {tls_hint(self._settings)}"
            raise self._ended(f"No {what} came", fix)

    def _ended(self, message: str, fix: str) -> ConnectionEnded:
        return ConnectionEnded(message, event="unreachable", fix=fix, where=self._settings.address)

    def _on_connect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._connack = (reason, properties)

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._suback = reasons

    def _on_publish(
        self, _client: paho.Client, _data: Any, _mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._puback.append(reason)

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._gone = reason
