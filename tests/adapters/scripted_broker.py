"""A TCP server that a test scripts byte by byte, for what a well-behaved Mosquitto never does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

CONNACK = bytes.fromhex("20 03 00 00 00")
CONNACK_3_1_1 = bytes.fromhex("20 02 00 00")
DISCONNECT_TAKEN_OVER = bytes.fromhex("e0 01 8e")

CONNACK_RESUMED = bytes.fromhex("20 03 01 00 00")

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ, DISCONNECT, AUTH = 1, 3, 4, 8, 12, 14, 15


@dataclass(frozen=True, slots=True)
class Packet:
    kind: int
    flags: int
    body: bytes

    @property
    def publish_identifier(self) -> bytes:
        end = 2 + int.from_bytes(self.body[:2], "big")
        return self.body[end : end + 2]


class Peer:
    """One connection of a client under test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> Packet:
        """The next packet; raises IncompleteReadError when the client has closed."""
        first = (await self._reader.readexactly(1))[0]
        length, place = 0, 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            length |= (byte & 0x7F) << place
            place += 7
            if not byte & 0x80:
                return Packet(first >> 4, first & 15, await self._reader.readexactly(length))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def accept(self) -> None:
        """Take an MQTT 5 client's CONNECT and its SUBSCRIBE to one filter; its session is there already."""
        await self.read()
        await self.send(CONNACK_RESUMED)
        subscribe = await self.read()
        await self.send(b"\x90\x04" + subscribe.body[:2] + b"\x00\x01")

    async def publish(self, payload: bytes, packet_id: int | None = None) -> None:
        """On the topic `in`; QoS 1 with a packet identifier, QoS 0 without."""
        identifier = b"" if packet_id is None else packet_id.to_bytes(2, "big")
        body = b"\x00\x02in" + identifier + b"\x00" + payload
        await self.send(bytes([0x30 if packet_id is None else 0x32, len(body)]) + body)

    async def acknowledge(self, packet: Packet) -> None:
        await self.send(b"\x40\x02" + packet.publish_identifier)


@contextlib.asynccontextmanager
async def scripted_broker(
    script: Callable[[Peer], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Runs the script on each connection and closes it at the script's end; yields the port."""
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client under test has gone, as clients may
        except Exception as failure:
            failures.append(failure)
            raise
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
    assert not failures
