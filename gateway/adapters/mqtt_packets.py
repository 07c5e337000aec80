"""Between the gateway's messages and paho's."""

from __future__ import annotations

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.messages import Message, MessageProperties, Oversize, Publication
from gateway.topics import safe_text

_NO_PROPERTIES = MessageProperties()
_LONGEST = 65_535
"""Bytes of a string of MQTT."""


def to_message(
    incoming: MQTTMessage, delivery: object, payload: bytes | None, oversize: Oversize | None, received_at: float
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


def check(publication: Publication) -> None:
    """Raise ValueError for what no broker would take.

    Before paho has it, who would keep the message under its packet identifier when it finds that out.
    """
    texts = [publication.topic, *(text for pair in publication.user_properties for text in pair)]
    if not publication.topic or any(safe_text(text) != text for text in texts):
        raise ValueError("the topic is empty, or a text has control characters")
    given = [*(text.encode() for text in texts), publication.correlation_data or b""]
    if any(len(data) > _LONGEST for data in given):
        raise ValueError(f"the topic or a property has more than {_LONGEST} bytes")


def new_properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def publish_properties(publication: Publication, packet_type: int = PacketTypes.PUBLISH) -> Properties | None:
    """MQTT 5 properties of a publication or, with PacketTypes.WILLMESSAGE, of a last will."""
    if publication.content_type is None and publication.correlation_data is None and not publication.user_properties:
        return None
    properties = new_properties(packet_type)
    if publication.content_type is not None:
        properties.ContentType = publication.content_type
    if publication.correlation_data is not None:
        properties.CorrelationData = publication.correlation_data
    if publication.user_properties:
        properties.UserProperty = list(publication.user_properties)
    return properties


def packet_size(publication: Publication, properties: Properties | None) -> int:
    """Bytes of the PUBLISH packet on the wire, as the broker's Maximum Packet Size counts them."""
    identifier = 2 if publication.qos else 0
    remaining = 2 + len(publication.topic.encode()) + identifier + len(publication.payload)
    remaining += len(properties.pack()) if properties is not None else 1  # type: ignore[no-untyped-call]
    length_bytes = 1 + (remaining >= 2**7) + (remaining >= 2**14) + (remaining >= 2**21)
    return 1 + length_bytes + remaining
