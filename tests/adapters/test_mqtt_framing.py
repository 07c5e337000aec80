"""paho must get the same packets however the network cut them, and never an oversize payload."""

import contextlib
import hashlib
import itertools
import socket
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.mqtt_framing import COLLECTED_BYTES, CRUMB_BYTES, ROOM_BYTES, FramedSocket, Framing
from gateway.messages import Oversize
from gateway.ports import MAX_PROPERTIES, MAX_PROPERTIES_BYTES

LIMIT = 300


def varint(value: int) -> bytes:
    data = bytearray()
    while True:
        value, low = divmod(value, 128)
        data.append(low | (0x80 if value else 0))
        if not value:
            return bytes(data)


@dataclass(frozen=True)
class Packet:
    wire: bytes
    expected: bytes
    oversize: Oversize | None = None


def other(kind: int, body: bytes) -> Packet:
    wire = bytes([kind << 4]) + varint(len(body)) + body
    return Packet(wire, wire)


def publish(topic: bytes, payload: bytes, *, qos: int = 1, properties: bytes | None = None, count: int = 0) -> Packet:
    """`properties` None as in MQTT 3.1.1; `count` of them."""
    start = len(topic).to_bytes(2, "big") + topic + (b"\x00\x07" if qos else b"")
    head = start + (b"" if properties is None else varint(len(properties)) + properties)
    fixed = bytes([0x30 | qos << 1])
    wire = fixed + varint(len(head) + len(payload)) + head + payload
    swallowed = payload
    too_many = properties is not None and (len(properties) > MAX_PROPERTIES_BYTES or count > MAX_PROPERTIES)
    if properties is not None and too_many:
        head, swallowed = start + b"\x00", properties + payload
    elif len(payload) <= LIMIT:
        return Packet(wire, wire)
    crumbs = -(-len(swallowed) // CRUMB_BYTES)
    expected = fixed + varint(len(head) + crumbs) + head + bytes(crumbs)
    return Packet(wire, expected, Oversize(len(swallowed), hashlib.sha256(swallowed).hexdigest(), too_many))


def packets(*, mqtt5: bool) -> st.SearchStrategy[list[Packet]]:
    publishes = st.builds(
        publish,
        st.binary(max_size=40),
        st.one_of(st.binary(max_size=20), st.integers(LIMIT - 1, LIMIT + 200).map(bytes)),
        qos=st.integers(0, 1),
        properties=st.binary(max_size=LIMIT) if mqtt5 else st.none(),
    )
    others = st.builds(other, st.sampled_from([2, 4, 9, 13, 14]), st.binary(max_size=400))
    return st.lists(st.one_of(publishes, others), max_size=6)


def feed(framing: Framing, wire: bytes, cuts: list[int]) -> tuple[bytes, list[Oversize]]:
    edges = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    pieces = [piece for start, end in itertools.pairwise(edges) for piece in framing.feed(wire[start:end])]
    return b"".join(piece.data for piece in pieces), [piece.oversize for piece in pieces if piece.oversize]


@pytest.mark.parametrize("mqtt5", [True, False])
def test_any_split_gives_the_same_packets(mqtt5: bool) -> None:
    @given(packets(mqtt5=mqtt5), st.lists(st.integers(0, 10_000), max_size=12))
    def check(sent: list[Packet], cuts: list[int]) -> None:
        wire = b"".join(packet.wire for packet in sent)
        passed, oversizes = feed(Framing(LIMIT, properties=mqtt5), wire, cuts)
        assert passed == b"".join(packet.expected for packet in sent)
        assert oversizes == [packet.oversize for packet in sent if packet.oversize]

    check()


@pytest.mark.parametrize("mqtt5", [True, False])
def test_byte_by_byte(mqtt5: bool) -> None:
    properties = b"\x80\xff" * 9 if mqtt5 else None
    sent = [publish(b"a/b", bytes(LIMIT + 1), properties=properties), publish(b"c", b"next", properties=properties)]
    wire = b"".join(packet.wire for packet in sent)
    passed, oversizes = feed(Framing(LIMIT, properties=mqtt5), wire, list(range(len(wire))))
    assert passed == b"".join(packet.expected for packet in sent)
    assert oversizes == [sent[0].oversize]


@pytest.mark.parametrize("size", [LIMIT + 1, CRUMB_BYTES, CRUMB_BYTES + 1, 5 * CRUMB_BYTES, 5 * CRUMB_BYTES - 1])
def test_a_long_payload_leaves_crumbs(size: int) -> None:
    packet = publish(b"t", b"x" * size, properties=b"")
    assert feed(Framing(LIMIT, properties=True), packet.wire, [7, 900, CRUMB_BYTES]) == (
        packet.expected,
        [packet.oversize],
    )


def test_huge_properties_are_swallowed_with_the_payload() -> None:
    packet = publish(b"t", b"small", properties=b"\x26" + bytes(MAX_PROPERTIES_BYTES))
    passed, oversizes = feed(Framing(LIMIT, properties=True), packet.wire, [5, 6, 7, 1000])
    assert passed == packet.expected
    assert oversizes == [packet.oversize]


PAIR = b"\x26\x00\x01a\x00\x00"
OTHERS = b"\x01\x00\x02\x00\x00\x00\x09\x03\x00\x01c\x08\x00\x01r\x09\x00\x02id\x0b\x80\x01\x23\x00\x01"


@pytest.mark.parametrize("payload", [b"", b"small", b"x" * (LIMIT + 1)])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("count", [MAX_PROPERTIES, MAX_PROPERTIES + 1, 1000])
def test_too_many_properties_are_swallowed_with_the_payload(count: int, qos: int, payload: bytes) -> None:
    """paho would copy the rest of the packet for each of them."""
    properties = OTHERS + (count - 7) * PAIR
    sent = publish(b"t", payload, qos=qos, properties=properties, count=count)
    following = publish(b"t", b"next", properties=PAIR)
    wire = sent.wire + following.wire
    for cuts in ([], list(range(len(wire)))):
        passed, oversizes = feed(Framing(LIMIT, properties=True), wire, cuts)
        assert passed == sent.expected + following.expected
        assert oversizes == ([sent.oversize] if sent.oversize else [])
    assert (sent.oversize is None) == (count == MAX_PROPERTIES and len(payload) <= LIMIT)


@pytest.mark.parametrize(
    "wire",
    [
        b"\x30\xff\xff\xff\xff\x01abc",  # a length of five bytes
        b"\x32" + varint(LIMIT + 1) + b"\xff\xff" + bytes(LIMIT - 1),  # a topic longer than its packet
        b"\x30" + varint(LIMIT + 5) + b"\x00\x01t" + varint(LIMIT + 2) + bytes(LIMIT),  # properties longer than it
    ],
)
def test_malformed_packets_reach_paho_which_refuses_them(wire: bytes) -> None:
    passed, oversizes = feed(Framing(LIMIT, properties=True), wire, [])
    assert passed == wire
    assert not oversizes


@pytest.mark.parametrize("size", [COLLECTED_BYTES, COLLECTED_BYTES + 1, 10 * CRUMB_BYTES])
def test_a_large_payload_is_collected_and_paho_gets_crumbs(size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    packet = publish(b"t", payload, properties=b"")
    framing = Framing(20 * CRUMB_BYTES, properties=True)
    pieces = [piece for at in range(0, len(packet.wire), 7000) for piece in framing.feed(packet.wire[at : at + 7000])]
    passed = b"".join(piece.data for piece in pieces)
    if size <= COLLECTED_BYTES:
        assert passed == packet.wire
        assert all(piece.payload is None for piece in pieces)
    else:
        assert passed == packet.expected
        assert [piece.payload for piece in pieces if piece.payload] == [payload]
    assert not any(piece.oversize for piece in pieces)


class TestFramedSocket:
    def test_tells_about_the_packet_that_was_read_last(self) -> None:
        large, small = publish(b"a", bytes(LIMIT + 1)), publish(b"b", b"x")
        near, far = socket.socketpair()
        with near, far:
            far.sendall(large.wire + small.wire)
            framed = FramedSocket(near, Framing(LIMIT, properties=False))
            assert self._read(framed, len(large.expected)) == large.expected
            assert framed.oversize == large.oversize
            assert self._read(framed, len(small.expected)) == small.expected
            assert framed.oversize is None
            assert not framed.pending()

    def test_blocks_while_it_swallows_and_ends_with_the_broker(self) -> None:
        near, far = socket.socketpair()
        with near, far:
            framed = FramedSocket(near, Framing(LIMIT, properties=False))
            packet = publish(b"a", bytes(2 * LIMIT))
            far.sendall(packet.wire[:-LIMIT])
            self._read(framed, len(packet.expected) - 1)
            far.sendall(b"\x00")
            with pytest.raises(BlockingIOError):
                framed.recv(1)
            far.close()
            assert framed.recv(1) == b""

    @given(st.lists(st.integers(5_000, 90_000), min_size=1, max_size=8), st.sampled_from([True, False]))
    def test_a_large_payload_is_read_straight_into_its_place(self, writes: list[int], behind: bool) -> None:
        payload = bytes(range(256)) * (4 * CRUMB_BYTES // 256) + b"end"
        large, small = publish(b"a", payload), publish(b"b", b"x")
        wire = large.wire + (small.wire if behind else b"")
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            framed = FramedSocket(near, Framing(20 * CRUMB_BYTES, properties=False))
            passed, at, turn = b"", 0, itertools.cycle(writes)
            payloads: list[bytes] = []
            while at < len(wire):
                at += far.send(wire[at : at + next(turn)])
                with contextlib.suppress(BlockingIOError):
                    while data := framed.recv(7):
                        passed += data
                        payloads += [taken] if (taken := framed.take_payload()) is not None else []
            assert passed == large.expected + (small.wire if behind else b"")
            assert payloads == [payload]
            assert framed.received_bytes == len(wire)

    def test_what_is_said_to_come_takes_no_memory_before_it_comes(self) -> None:
        size = 64 * ROOM_BYTES
        packet = publish(b"a", b"")
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            framed = FramedSocket(near, Framing(2 * size, properties=False))
            tracemalloc.start()
            try:
                far.sendall(packet.wire[:1] + varint(len(packet.wire) - 2 + size) + packet.wire[2:])
                for some in (b"begin", b"and go on"):
                    far.sendall(some)
                    with contextlib.suppress(BlockingIOError):
                        while framed.recv(100):
                            pass
                assert framed.received_bytes == 4 + len(packet.wire) - 1 + len(b"beginand go on")
                assert tracemalloc.get_traced_memory()[1] < 2 * ROOM_BYTES
            finally:
                tracemalloc.stop()

    @staticmethod
    def _read(framed: FramedSocket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += framed.recv(count - len(data))
        return data
