"""A connection that can be cut, delayed and silenced: a small TCP proxy on the loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from gateway.local.processes import LOOPBACK

CHUNK = 65_536
CHUNKS_ON_THE_WAY = 64
"""In each direction of a connection; then the sender has to wait, as on a line."""


class Link:
    """Listens on `port` and passes everything on to `target`, in a thread of its own; a context manager.

    Its methods may be called from any thread.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._delay_s = 0.0
        self._up = True
        self._swallows = False
        self._open_connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self.port = 0

    def cut(self) -> None:
        """Reset every connection, and accept no new one until `mend`."""
        self._up = False
        self._call(self._reset())

    def silence(self) -> None:
        """Let no byte through in either direction until `mend`; nobody is told, nothing is lost."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def swallow(self) -> None:
        """Lose every byte in either direction, also of new connections, until `mend` resets them all."""
        self._swallows = True

    def delay(self, seconds: float) -> None:
        """Let every byte take so long in each direction, until `mend`."""
        self._delay_s = seconds

    def mend(self) -> None:
        """Let all through again."""
        if self._swallows:  # a stream with a gap in it is of no use to anybody
            self._call(self._reset())
        self._delay_s = 0.0
        self._up, self._swallows = True, False
        self._loop.call_soon_threadsafe(self._flowing.set)

    # --- inside -------------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _reset(self) -> None:
        for writer in self._open_connections:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._up:
            writer.transport.abort()
            return
        self._open_connections.add(writer)
        try:
            await self._join(reader, writer)
        except asyncio.CancelledError:  # by _close, and asyncio would tell of it
            pass
        finally:
            self._open_connections.discard(writer)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until one of both sides has ended."""
        try:
            to_reader, to_writer = await asyncio.open_connection(LOOPBACK, self._target)
        except OSError:
            return
        self._open_connections.add(to_writer)
        ways = [
            asyncio.ensure_future(way)
            for pair in ((reader, to_writer), (to_reader, writer))
            for way in self._one_way(*pair)
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._open_connections.discard(to_writer)
            to_writer.transport.abort()

    def _one_way(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        """Two tasks with a line of chunks between them, so that a delay does not lower the throughput."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_ON_THE_WAY)

        async def put_in() -> None:
            with contextlib.suppress(OSError):
                while chunk := await reader.read(CHUNK):
                    await line.put((time.monotonic() + self._delay_s, chunk))
            await line.join()

        async def take_out() -> None:
            with contextlib.suppress(OSError):
                while True:
                    due, chunk = await line.get()
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    await self._flowing.wait()
                    if not self._swallows:
                        writer.write(chunk)
                        await writer.drain()
                    line.task_done()

        return put_in(), take_out()

    async def _close(self) -> None:
        self._server.close()
        self._up = False
        await self._reset()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
