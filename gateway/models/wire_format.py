"""Walks a protobuf message in a file field by field; what is not asked for is never read.

Made for ONNX files, where a few hundred bytes of interest lie between gigabytes of weights. The file may be hostile:
bytes read and fields seen are counted, and the caller goes down only as many levels as it names itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf; the two others, groups, have been out of use since before ONNX."""

WINDOW_BYTES = 1024
"""Read at once; small, for most of it is thrown away where each weight follows on a name."""
MAX_READ_BYTES = 64 << 20
MAX_FIELDS = 500_000
MAX_VARINT_BYTES = 10


class WireError(Exception):
    """The bytes are no protobuf message, or one that goes beyond the bounds; says which, as part of a sentence."""


class Field(NamedTuple):
    """One field of a message: its number and type, its value if it is a varint, else where its bytes lie."""

    number: int
    kind: int
    value: int
    start: int
    end: int


class WireReader:
    """Reads messages of one seekable binary file of `size` bytes; raises WireError.

    Give it an unbuffered file: a buffer would read more than this counts. Never reads more than MAX_READ_BYTES.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._window = b""
        self._window_start = 0
        self._read = 0
        self._fields = 0

    def whole(self) -> Iterator[Field]:
        """The fields of the message that the file as a whole is."""
        return self._between(0, self._size)

    def inside(self, field: Field) -> Iterator[Field]:
        """The fields of the message that is this field's value."""
        if field.kind != BYTES:
            raise WireError(f"has a number where field {field.number} should be a message")
        return self._between(field.start, field.end)

    def content(self, field: Field, limit: int) -> bytes:
        """The value of a text or bytes field of at most `limit` bytes."""
        if field.kind != BYTES:
            raise WireError(f"has a number where field {field.number} should be a text")
        length = field.end - field.start
        if length > limit:
            raise WireError(f"has a text of {length} bytes in field {field.number}, the limit is {limit}")
        found = self._look(field.start, length)
        if len(found) < length:
            raise WireError("ends in the middle of a text")
        return found

    def _between(self, position: int, end: int) -> Iterator[Field]:
        while position < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise WireError(f"has more than {MAX_FIELDS} fields")
            tag, position = self._varint(position, end)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise WireError("has a field with the number 0")
            value, start = 0, position
            if kind == VARINT:
                value, position = self._varint(position, end)
            elif kind == BYTES:
                length, start = self._varint(position, end)
                position = start + length
            elif kind in (FIXED64, FIXED32):
                position += 8 if kind == FIXED64 else 4
            else:
                raise WireError(f"has a field of the unknown type {kind}")
            if position > end:
                raise WireError("ends in the middle of a field")
            yield Field(number, kind, value, start, position)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """A number as protobuf writes it, seven bits a byte, the lowest first; and the position behind it."""
        number = 0
        for count, byte in enumerate(self._look(position, min(MAX_VARINT_BYTES, end - position))):
            number |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return number & (1 << 64) - 1, position + count + 1
        short = end - position < MAX_VARINT_BYTES
        raise WireError("ends in the middle of a number" if short else "has an endless number")

    def _look(self, position: int, length: int) -> bytes:
        """`length` bytes from `position` on, fewer only at the end of the file."""
        offset = position - self._window_start
        if not 0 <= offset <= len(self._window) - length:
            self._fill(position, max(length, WINDOW_BYTES))
            offset = 0
        return self._window[offset : offset + length]

    def _fill(self, position: int, length: int) -> None:
        length = min(length, self._size - position)
        self._read += length
        if self._read > MAX_READ_BYTES:
            raise WireError(f"takes more than {MAX_READ_BYTES >> 20} MiB to look through")
        self._file.seek(position)
        parts: list[bytes] = []
        while length > 0 and (part := self._file.read(length)):
            parts.append(part)
            length -= len(part)
        self._window, self._window_start = b"".join(parts), position
