"""Follows MQTT's framing between the socket and paho, so that an oversize payload never lies in memory.

paho collects a whole packet and copies it several times before anyone can look at it. MQTT 5's Maximum Packet Size
is no help: the broker then drops the message silently, and nobody could answer it. So paho reads from `FramedSocket`,
which hands on every packet as it is, except a PUBLISH with a large payload: of that one paho gets the head and one
byte, a crumb, for each 64 KiB of payload. The payload itself is collected beside it, in one piece of memory where paho
takes three, and most of it is read straight into that; one that is too large is only hashed and counted.

Properties count too: paho copies the rest of the packet for each one that it reads, so 40,000 of them in 256 KiB would
stop the event loop for seconds. Where they are too many or too long they are hashed and counted with the payload.
"""

from __future__ import annotations

import hashlib
import io
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass

from gateway.messages import Oversize
from gateway.ports import MAX_PROPERTIES, MAX_PROPERTIES_BYTES

READ_BYTES = 65_536
CRUMB_BYTES = 65_536
"""Payload per crumb. Crumbs rather than no payload at all: they tell paho's keep-alive that bytes still arrive."""
COLLECTED_BYTES = 16_384
"""A payload larger than this is collected beside paho."""
ROOM_BYTES = 1_048_576
"""Memory for a payload that is collected, or as much as has arrived of it: what is said to come may never come."""
READ_INTO_BYTES = 262_144
"""Read at most so much of a payload at once."""

TLS_ALERT = b"\x15\x03"
"""How a TLS record with an alert begins."""

_PUBLISH = 3
_MORE = 0x80
_SUBSCRIPTION_IDENTIFIER = 0x0B
_FIXED_SIZES = {0x01: 1, 0x02: 4, 0x23: 2}
"""Payload format, message expiry and topic alias, by bytes."""
_STRINGS = {0x03: 1, 0x08: 1, 0x09: 1, 0x26: 2}
"""Content type, response topic, correlation data and user property, by how many strings they have."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one packet; on the last one of a packet with crumbs `payload` or, if too large, `oversize` is set."""

    data: bytes
    oversize: Oversize | None = None
    payload: bytes | None = None


class _Collected:
    """A payload in one piece of memory, which the socket fills, and which is given away without a copy."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory = io.BytesIO()
        self._filled = 0

    def write(self, data: memoryview) -> None:
        """Copy what has been read along with the head."""
        self._memory.seek(self._filled)
        self._memory.write(data)
        self._filled += len(data)

    def room(self) -> memoryview:
        """Where what comes next goes; to be released before anything else is done."""
        if self._filled == self._memory.getbuffer().nbytes:
            self._memory.seek(min(self._size, self._filled + max(ROOM_BYTES, self._filled)) - 1)
            self._memory.write(b"\x00")
        return self._memory.getbuffer()[self._filled : self._filled + READ_INTO_BYTES]

    def filled(self, count: int) -> None:
        """So many bytes have been written there."""
        self._filled += count

    def take(self) -> bytes:
        """All of it, once all of it is there."""
        return self._memory.getvalue()  # hands its memory over: no copy


class Framing:
    """Turns what the broker sent, split anywhere, into pieces that paho may read."""

    def __init__(self, max_payload_bytes: int, *, properties: bool) -> None:
        """`properties` says whether packets have them, as MQTT 5's do."""
        self._max_payload_bytes = max_payload_bytes
        self._properties = properties
        self._step = self._fixed_header
        self._fixed = bytearray()
        self._head = bytearray()
        self._remaining = 0
        self._swallowed = 0
        self._too_many = False
        """Whether the properties are swallowed too."""
        self._crumbs = 0
        self._digest = hashlib.sha256()
        self._payload: _Collected | None = None
        """What is collected; None while a payload is only counted."""

    def feed(self, data: bytes) -> list[Piece]:
        """What paho may read now that `data` has arrived; nothing while a payload is being swallowed."""
        pieces: list[Piece] = []
        view = memoryview(data)
        while view:
            view = view[self._step(view, pieces) :]
        return pieces

    def room(self) -> memoryview | None:
        """Where the next bytes may be read to, to be told to `filled`; None while they have to be fed."""
        return self._payload.room() if self._payload is not None else None

    def filled(self, count: int) -> list[Piece]:
        """What paho may read now that so many bytes have been read to the room."""
        assert self._payload is not None
        self._payload.filled(count)
        pieces: list[Piece] = []
        self._count(count, pieces)
        return pieces

    def _fixed_header(self, view: memoryview, pieces: list[Piece]) -> int:
        for taken, byte in enumerate(view, 1):
            self._fixed.append(byte)
            if len(self._fixed) > 1 and (not byte & _MORE or len(self._fixed) == 5):
                self._begin_packet(pieces)
                return taken
        return len(view)

    def _begin_packet(self, pieces: list[Piece]) -> None:
        length = _varint(self._fixed, 1)
        if length is None or self._fixed[-1] & _MORE:
            # Malformed: paho refuses it on the next byte and ends the connection.
            self._hand_on(bytes(self._fixed), pieces, body=2**63)
            return
        self._remaining, _ = length
        if self._fixed[0] >> 4 == _PUBLISH and self._remaining:
            self._head.clear()
            self._step = self._publish_head
        else:
            self._hand_on(bytes(self._fixed), pieces, body=self._remaining)

    def _hand_on(self, data: bytes, pieces: list[Piece], *, body: int) -> None:
        pieces.append(Piece(data))
        self._fixed.clear()
        self._remaining = body
        self._step = self._body if body else self._fixed_header

    def _body(self, view: memoryview, pieces: list[Piece]) -> int:
        taken = view[: self._remaining]
        self._remaining -= len(taken)
        pieces.append(Piece(bytes(taken)))
        if not self._remaining:
            self._step = self._fixed_header
        return len(taken)

    def _publish_head(self, view: memoryview, pieces: list[Piece]) -> int:
        taken = 0
        while len(self._head) < (wanted := self._head_wanted()) <= self._remaining:
            part = view[taken : taken + wanted - len(self._head)]
            if not part:
                return taken
            self._head += part
            taken += len(part)
        if wanted > self._remaining:  # malformed: paho refuses it when the packet is complete
            self._hand_on(bytes(self._fixed + self._head), pieces, body=self._remaining - len(self._head))
        else:
            self._judge(pieces)
        return taken

    def _head_wanted(self) -> int:
        """Bytes of topic, packet identifier and properties, as far as their lengths are known by now."""
        if len(self._head) < 2:
            return 2
        start = self._properties_start()
        if not self._properties or len(self._head) < start:
            return start
        length = _varint(self._head, start)
        if length is None:
            return len(self._head) + 1
        size, end = length
        return end if size > MAX_PROPERTIES_BYTES else end + size

    def _properties_start(self) -> int:
        has_identifier = self._fixed[0] & 0b0110
        return 2 + int.from_bytes(self._head[:2], "big") + (2 if has_identifier else 0)

    def _judge(self, pieces: list[Piece]) -> None:
        self._remaining -= len(self._head)
        head, swallowed = self._without_swallowed_properties()
        self._too_many = head is not self._head
        fits = not self._too_many and self._remaining <= self._max_payload_bytes
        if fits and self._remaining <= COLLECTED_BYTES:
            self._hand_on(bytes(self._fixed + head), pieces, body=self._remaining)
            return
        self._swallowed = len(swallowed)
        self._crumbs = -(-(self._swallowed + self._remaining) // CRUMB_BYTES)
        if fits:
            self._payload = _Collected(self._remaining)
        else:
            self._payload, self._digest = None, hashlib.sha256(swallowed)
        length = to_varint(len(head) + self._crumbs)
        pieces.append(Piece(bytes(self._fixed[:1] + length + head)))
        self._step = self._swallow
        if not self._remaining:  # all of it was properties
            self._end(pieces)

    def _without_swallowed_properties(self) -> tuple[bytearray, bytes]:
        """The head, with no properties if they are too many or too long, and what was taken out of it."""
        start = self._properties_start()
        length = _varint(self._head, start) if self._properties else None
        if length is None:
            return self._head, b""
        size, end = length
        if size <= MAX_PROPERTIES_BYTES and _count_properties(self._head, end) <= MAX_PROPERTIES:
            return self._head, b""
        return self._head[:start] + b"\x00", bytes(self._head[end:])

    def _swallow(self, view: memoryview, pieces: list[Piece]) -> int:
        taken = view[: self._remaining]
        if self._payload is not None:
            self._payload.write(taken)
        else:
            self._digest.update(taken)
        self._count(len(taken), pieces)
        return len(taken)

    def _count(self, taken: int, pieces: list[Piece]) -> None:
        """So much of a payload has been taken away: the crumbs for it."""
        before, self._swallowed = self._swallowed, self._swallowed + taken
        self._remaining -= taken
        crumbs = min(self._swallowed // CRUMB_BYTES, self._crumbs - 1) - min(before // CRUMB_BYTES, self._crumbs - 1)
        if crumbs:
            pieces.append(Piece(bytes(crumbs)))
        if not self._remaining:
            self._end(pieces)

    def _end(self, pieces: list[Piece]) -> None:
        """The last crumb, with what there is to say of the whole."""
        if self._payload is not None:
            pieces.append(Piece(b"\x00", payload=self._payload.take()))
        else:
            pieces.append(Piece(b"\x00", Oversize(self._swallowed, self._digest.hexdigest(), self._too_many)))
        self._payload = None
        self._fixed.clear()
        self._step = self._fixed_header


class FramedSocket:
    """The socket as paho sees it; when paho handles a packet, `oversize` and `take_payload` tell about that packet."""

    def __init__(self, sock: socket.socket, framing: Framing) -> None:
        self._sock = sock
        self._framing = framing
        self._pieces: deque[Piece] = deque()
        self._read = 0
        self.received_bytes = 0
        self.received_at = time.monotonic()
        self.oversize: Oversize | None = None
        self._payload: bytes | None = None
        self.failure: OSError | None = None
        """The error that ended the connection; paho tells only that it has ended."""
        self.answered_tls = False
        """Whether the other side has answered plain text with a TLS alert."""

    def recv(self, buffer_size: int) -> bytes:
        """At most `buffer_size` bytes of one packet; empty when the broker has closed."""
        if not self._pieces:
            if not self._receive():
                return b""
            if not self._pieces:
                raise BlockingIOError  # it was swallowed: back to the event loop, which comes again for more
        piece = self._pieces[0]
        data = piece.data[self._read : self._read + buffer_size]
        self._read += len(data)
        if self._read == len(piece.data):
            self._pieces.popleft()
            self._read = 0
        self.oversize, self._payload = piece.oversize, piece.payload
        return data

    def take_payload(self) -> bytes | None:
        """The payload of which paho has crumbs only, given away so that nothing here keeps it in memory."""
        payload, self._payload = self._payload, None
        return payload

    def _receive(self) -> int:
        """Have the framing take what has arrived; how many bytes that is, 0 when the broker has closed."""
        try:
            room = self._framing.room()
            if room is None:
                data = self._sock.recv(READ_BYTES)
                count = len(data)
            else:
                data = b""
                with room:
                    count = self._sock.recv_into(room)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self.failure = error
            raise
        if not count:
            return 0
        if not self.received_bytes:
            self.answered_tls = data[:2] == TLS_ALERT and not isinstance(self._sock, ssl.SSLSocket)
        self.received_bytes += count
        self.received_at = time.monotonic()
        self._pieces.extend(self._framing.filled(count) if room is not None else self._framing.feed(data))
        return count

    def pending(self) -> bool:
        """True while there is more to read that would not make the socket readable."""
        return bool(self._pieces) or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)

    def send(self, buffer: bytes | bytearray) -> int:
        return self._sock.send(buffer)

    def close(self) -> None:
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)


def _varint(data: bytearray, at: int) -> tuple[int, int] | None:
    """MQTT's variable byte integer at `at` and where it ends, or None while bytes of it are missing."""
    value = 0
    for place, byte in enumerate(data[at : at + 4]):
        value |= (byte & 0x7F) << (7 * place)
        if not byte & _MORE or place == 3:
            return value, at + place + 1
    return None


def _count_properties(head: bytearray, at: int) -> int:
    """How many properties begin at `at`, but no more than one too many; paho refuses what cannot be read."""
    count = 0
    while at < len(head) and count <= MAX_PROPERTIES:
        kind, at, count = head[at], at + 1, count + 1
        if kind in _FIXED_SIZES:
            at += _FIXED_SIZES[kind]
        elif kind in _STRINGS:
            for _ in range(_STRINGS[kind]):
                at += 2 + int.from_bytes(head[at : at + 2], "big")
        elif kind == _SUBSCRIPTION_IDENTIFIER and (number := _varint(head, at)) is not None:
            at = number[1]
        else:
            break
    return count


def to_varint(value: int) -> bytes:
    """MQTT's variable byte integer; raises ValueError for one that does not fit into its four bytes."""
    if value >= 1 << 28:
        raise ValueError(f"{value} bytes are more than a packet of MQTT can have")
    data = bytearray()
    while True:
        value, low = divmod(value, 128)
        data.append(low | (_MORE if value else 0))
        if not value:
            return bytes(data)
