"""Between the gateway's messages and paho's."""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.adapters.mqtt_framing import to_varint
from gateway.messages import Message, MessageProperties, Oversize, Publication
from gateway.topics import safe_text

_NO_PROPERTIES = MessageProperties()
PUBLISH = PacketTypes.PUBLISH << 4
_LONGEST = 65_535
"""Bytes of a string of MQTT."""
_WILDCARDS = frozenset("+#")


def to_message(
    incoming: MQTTMessage | Incoming,
    delivery: object,
    payload: bytes | None,
    oversize: Oversize | None,
    received_at: float,
) -> Message:
    """The message that paho has read; of one with a `payload` of its own, or an oversize one, paho has crumbs only."""
    read = incoming.payload if payload is None else payload
    return Message(
        topic=incoming.topic,
        payload=b"" if oversize else bytes(read),
        received_at=received_at,
        qos=incoming.qos,
        retain=incoming.retain,
        duplicate=incoming.dup,
        properties=_message_properties(incoming.properties),
        delivery=delivery,
        oversize=oversize,
    )


class Incoming(NamedTuple):
    """A PUBLISH that has arrived, as paho's own class has it; of one with a payload beside it there are crumbs only."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    mid: int
    properties: None = None


def read_publish(first: int, packet: bytearray, *, is_v5: bool) -> Incoming | None:
    """A PUBLISH without properties, as most cameras send; None for any other, and for what is none: they are paho's.

    paho builds a table of all properties there are for each one that it reads. Raises UnicodeDecodeError.
    """
    qos = first >> 1 & 0b11
    start = 2 + int.from_bytes(packet[:2], "big")
    end = start + (2 if qos else 0) + is_v5
    if qos > 1 or start == 2 or len(packet) < end or (is_v5 and packet[end - 1]):
        return None
    topic, packet_id = packet[2:start].decode(), int.from_bytes(packet[start : start + 2], "big") if qos else 0
    return Incoming(topic, bytes(packet[end:]), qos, bool(first & 0b1), bool(first & 0b1000), packet_id)


def _message_properties(properties: Properties | None) -> MessageProperties:
    if properties is None:
        return _NO_PROPERTIES
    return MessageProperties(
        content_type=getattr(properties, "ContentType", None),
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation_data=getattr(properties, "CorrelationData", None),
        message_expiry_s=getattr(properties, "MessageExpiryInterval", None),
        user_properties=tuple(getattr(properties, "UserProperty", ())),
    )


def new_properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def will_properties(publication: Publication) -> Properties | None:
    """MQTT 5 properties of a last will."""
    if publication.content_type is None and publication.correlation_data is None and not publication.user_properties:
        return None
    properties = new_properties(PacketTypes.WILLMESSAGE)
    if publication.content_type is not None:
        properties.ContentType = publication.content_type
    if publication.correlation_data is not None:
        properties.CorrelationData = publication.correlation_data
    if publication.user_properties:
        properties.UserProperty = list(publication.user_properties)
    return properties


def publish_packet(publication: Publication, packet_id: int, *, retain: bool, is_v5: bool) -> bytes:
    """The PUBLISH of a publication as it goes over the wire; raises ValueError for what no broker would take.

    paho would build an object with a name for each property, and keep the message under its packet identifier when it
    finds out that it cannot be sent.
    """
    texts = "".join((publication.topic, *chain(*publication.user_properties)))
    if not publication.topic or safe_text(texts) != texts or not _WILDCARDS.isdisjoint(publication.topic):
        raise ValueError("the topic is empty or has wildcards, or a text has control characters")
    identifier = packet_id.to_bytes(2, "big") if publication.qos else b""
    properties = _properties(publication)  # looked at for MQTT 3.1.1 too: what can be sent is the same for both
    body = b"".join((_texts(publication.topic), identifier, properties if is_v5 else b"", publication.payload))
    return bytes((PUBLISH | publication.qos << 1 | retain,)) + to_varint(len(body)) + body


def _properties(publication: Publication) -> bytes:
    """The properties of a PUBLISH of MQTT 5, their length in front."""
    parts: list[bytes] = []
    if publication.content_type is not None:
        parts += (b"\x03", _texts(publication.content_type))
    if publication.correlation_data is not None:
        parts += (b"\x09", _data(publication.correlation_data))
    for pair in publication.user_properties:
        parts += (b"\x26", _texts(*pair))
    packed = b"".join(parts)
    return to_varint(len(packed)) + packed


def _texts(*texts: str) -> bytes:
    return _data(*[text.encode() for text in texts])


def _data(*strings: bytes) -> bytes:
    """Each with its length in front."""
    if max(map(len, strings)) > _LONGEST:
        raise ValueError(f"the topic or a property has more than {_LONGEST} bytes")
    return b"".join([len(data).to_bytes(2, "big") + data for data in strings])
