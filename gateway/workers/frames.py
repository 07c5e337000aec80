"""What the front and its workers say to each other, over a pair of sockets: a record, and the bytes that go with it.

A frame is the length of the record and of the bytes, both 32 bit, then the record in MessagePack, then the bytes as
they are. Both ends are the same program; a frame that breaks the rules ends the channel.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import msgspec
import structlog

from gateway.messages import MessageProperties, Oversize

log = structlog.get_logger(__name__)

BUFFER_BYTES = 64 * 1024
SOCKET_BYTES = 4 * 2**20
"""Asked of the kernel for each direction, which gives less where its own limit is lower."""
MAX_RECORD_BYTES = 64 * 2**20
MAX_BYTES = 256 * 2**20
"""The largest MAX_PAYLOAD_BYTES."""
_LENGTHS = struct.Struct("!II")


class Deliver(msgspec.Struct, tag="deliver", array_like=True, frozen=True):
    """A message of the broker, for the worker that owns its camera; its payload goes with it."""

    number: int
    topic: str
    received_at: float
    qos: int
    retain: bool
    duplicate: bool
    properties: MessageProperties
    oversize: Oversize | None
    within_topic_limit: bool


class SessionState(msgspec.Struct, tag="session", array_like=True, frozen=True):
    """Whether the session with the broker is up, and why not."""

    up: bool
    trouble: str


class Done(msgspec.Struct, tag="done", array_like=True, frozen=True):
    """What became of a publication; without `refusal` the broker has it."""

    number: int
    refusal: tuple[str, str, str] | None = None
    """Message, place and remedy of the broker's refusal."""


class Scrape(msgspec.Struct, tag="scrape", array_like=True, frozen=True):
    """Ask for all metrics."""


class ChosenLevel(msgspec.Struct, tag="level", array_like=True, frozen=True):
    """The level that somebody has chosen for the log; None: the configured one."""

    level: str | None


class FinishBy(msgspec.Struct, tag="finish", array_like=True, frozen=True):
    """The gateway stops: when what was accepted is to be finished, by the clock that all processes share."""

    at: float


class Taken(msgspec.Struct, tag="taken", array_like=True, frozen=True):
    """The worker has taken so many more messages, of so many bytes, out of its inbox; the front may send as many."""

    messages: int
    size: int


class Acknowledge(msgspec.Struct, tag="acknowledge", array_like=True, frozen=True):
    """The worker is done with a message."""

    number: int


class Publish(msgspec.Struct, tag="publish", array_like=True, frozen=True):
    """A publication; its payload goes with it."""

    number: int
    topic: str
    qos: int
    retain: bool
    content_type: str | None
    correlation_data: bytes | None
    user_properties: tuple[tuple[str, str], ...]


class WorkerState(msgspec.Struct, tag="state", array_like=True, frozen=True):
    """How a worker stands, and what of the configuration it has read again; said again and again, as a sign of life."""

    ready: bool
    started: bool
    reasons: tuple[str, ...]
    degraded: tuple[str, ...]
    serving: dict[str, dict[str, str | int]]
    """For each model the version of each variant."""
    rate_limit_per_topic: float | None
    drain_timeout_s: float
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["json", "text"]


class Family(msgspec.Struct, array_like=True, frozen=True):
    """One metric with its samples: name, labels, value."""

    name: str
    documentation: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


class Samples(msgspec.Struct, tag="samples", array_like=True, frozen=True):
    """The answer to Scrape."""

    families: list[Family]


ToWorker = Deliver | SessionState | Done | Scrape | ChosenLevel | FinishBy
ToFront = Taken | Acknowledge | Publish | WorkerState | Samples
Record = TypeVar("Record")


class FrameError(Exception):
    """What came is no frame of ours; where the next one begins cannot be known."""


class Channel(asyncio.BufferedProtocol, Generic[Record]):
    """One end. `take` gets each frame as it comes, `lost` is called once, when the other end is gone.

    `worker` is the number, from 1, that the log names; None in the worker itself, whose every line has it.
    """

    def __init__(
        self,
        kind: Any,
        take: Callable[[Record, bytes], None],
        lost: Callable[[], None],
        worker: int | None = None,
    ) -> None:
        self._decode: Callable[[Any], Record] = msgspec.msgpack.Decoder(kind).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._take = take
        self._lost = lost
        self._worker = worker
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._filled = 0
        self._body: memoryview | None = None
        """Of a frame that is larger than the buffer, and how much of it is there."""
        self._body_filled = 0
        self._record_bytes = 0

    async def open(self, end: socket.socket) -> None:
        """Begin to talk over one end of a pair of stream sockets."""
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
        await asyncio.get_running_loop().create_connection(lambda: self, sock=end)

    def send(self, record: Any, content: bytes = b"") -> None:
        """Send one frame, in the order of the calls; without effect when the channel is gone."""
        if self._transport is None or self._transport.is_closing():
            return
        text = self._encode(record)
        head = _LENGTHS.pack(len(text), len(content)) + text
        if len(content) < BUFFER_BYTES:
            self._transport.write(head + content)
        else:
            self._transport.write(head)
            self._transport.write(content)

    def close(self) -> None:
        """Send what is pending, then end."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once; what is pending is dropped."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio's side ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: BaseException | None) -> None:
        """Say that the other end is gone."""
        self._transport = None
        self._lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: into the frame itself where it is a large one."""
        return self._buffer[self._filled :] if self._body is None else self._body[self._body_filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take the frames that are complete."""
        try:
            self._fill(nbytes)
        except FrameError as error:
            log.error("A frame cannot be read, and the channel ends", reason=str(error), worker=self._worker)
            self.abort()

    def _fill(self, nbytes: int) -> None:
        if self._body is not None:
            self._body_filled += nbytes
            if self._body_filled == len(self._body):
                body, self._body = self._body, None
                self._one(body, self._record_bytes)
            return
        self._filled += nbytes
        self._take_buffered()

    def _take_buffered(self) -> None:
        start = 0
        while self._filled - start >= _LENGTHS.size:
            record_bytes, content_bytes = _LENGTHS.unpack_from(self._buffer, start)
            if record_bytes > MAX_RECORD_BYTES or content_bytes > MAX_BYTES:
                raise FrameError(f"it would have {record_bytes} and {content_bytes} bytes")
            begin, size = start + _LENGTHS.size, record_bytes + content_bytes
            if self._filled - begin < size:
                if size > BUFFER_BYTES - _LENGTHS.size:
                    self._begin_body(begin, size, record_bytes)
                    return
                break
            self._one(self._buffer[begin : begin + size], record_bytes)
            start = begin + size
        left = self._filled - start
        if start and left:
            self._buffer[:left] = bytes(self._buffer[start : self._filled])
        self._filled = left

    def _begin_body(self, begin: int, size: int, record_bytes: int) -> None:
        self._body, self._record_bytes = memoryview(bytearray(size)), record_bytes
        self._body_filled = self._filled - begin
        self._body[: self._body_filled] = self._buffer[begin : self._filled]
        self._filled = 0

    def _one(self, frame: memoryview, record_bytes: int) -> None:
        try:
            record = self._decode(frame[:record_bytes])
        except msgspec.DecodeError as error:
            raise FrameError(str(error)) from error
        try:
            self._take(record, bytes(frame[record_bytes:]))
        except Exception as defect:  # one poisonous message must not take the channel from all others
            log.error("A defect of the gateway", frame=type(record).__name__, exc_info=defect, worker=self._worker)
