"""A PUBLISH as it is read here is the one that paho reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt._packet import decode_publish
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.adapters.mqtt_packets import PUBLISH, publish_packet, read_publish
from gateway.messages import Publication


@given(
    first=st.integers(0, 15).map(PUBLISH.__or__),
    packet=st.binary(max_size=12) | st.binary(max_size=9).map(b"\x00\x01t".__add__),
    is_v5=st.booleans(),
)
def test_what_is_read_here_is_what_paho_reads(first: int, packet: bytes, is_v5: bool) -> None:
    try:
        ours = read_publish(first, bytearray(packet), is_v5=is_v5)
    except UnicodeDecodeError:
        return  # so says paho too, when it is asked for the topic
    if ours is not None:
        protocol = MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311
        theirs = decode_publish(first, packet, protocol)
        assert (ours.topic.encode(), ours.payload, ours.qos) == (theirs.topic, theirs.payload, theirs.qos)
        assert (ours.retain, ours.dup, ours.mid) == (theirs.retain, theirs.dup, theirs.mid)
        assert theirs.properties is None or theirs.properties.isEmpty()  # type: ignore[no-untyped-call]


@given(payload=st.binary(max_size=20), qos=st.sampled_from((0, 1)), is_v5=st.booleans())
def test_what_is_sent_is_read_again(payload: bytes, qos: int, is_v5: bool) -> None:
    packet = publish_packet(Publication("a/b", payload, qos=qos), 7, retain=True, is_v5=is_v5)
    read = read_publish(packet[0], bytearray(packet[2:]), is_v5=is_v5)
    assert read is not None
    assert (read.topic, read.payload, read.qos, read.retain, read.mid) == ("a/b", payload, qos, True, 7 if qos else 0)


def test_properties_and_qos_2_are_left_to_paho() -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = [("a", "b")]
    packed = properties.pack()  # type: ignore[no-untyped-call]
    assert read_publish(PUBLISH, bytearray(b"\x00\x01t" + packed + b"payload"), is_v5=True) is None
    assert read_publish(PUBLISH | 2 << 1, bytearray(b"\x00\x01t\x00\x07payload"), is_v5=False) is None
