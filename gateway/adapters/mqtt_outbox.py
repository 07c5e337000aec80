"""Publications between the caller and the broker's acknowledgement; they outlive connections.

paho would keep them too, but also those whose caller has given up, past the broker's Receive Maximum after a
reconnect, and with no way out if one of them makes the broker hang up every time. A publication that was not
acknowledged is sent again under a new packet identifier; for QoS 1 the broker keeps nothing that could tell.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gateway.errors import BrokerError, BrokerUnavailable, PublishRefused
from gateway.messages import Publication
from gateway.ports import held_by

log = structlog.get_logger(__name__)

SUSPECT_AFTER = 2
"""A publication that was in flight at so many losses of the connection is sent alone from then on."""
GIVE_UP_AFTER = 5
"""A publication that was alone in flight at so many losses is what the broker hangs up on."""


@dataclass(slots=True, eq=False)
class _Waiting:
    publication: Publication
    done: asyncio.Future[None]
    losses: int = 0
    losses_alone: int = 0


class Outbox:
    """In order, at most a window of them in flight, a bounded number and size in all.

    When it is full, a caller waits for room with his publication in his own hands: one that was refused would be
    lost, and an alert whose end is lost stays open for ever with those who read alerts.
    """

    def __init__(self, max_waiting: int, max_bytes: int) -> None:
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._bytes = 0
        self._room = asyncio.Event()
        self._queue: deque[_Waiting] = deque()
        self._in_flight: dict[int, _Waiting] = {}
        self._send: Callable[[Publication], int] | None = None
        self._window = 0
        self._closed = False

    async def publish(self, publication: Publication) -> None:
        """Return when the broker has acknowledged; waits for room before. Raises as the port says."""
        while not self._closed and self._full(publication):
            self._room.clear()
            await self._room.wait()
        if self._closed:
            raise _closed()
        waiting = _Waiting(publication, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._bytes += held_by(publication)
        self._fill()
        try:
            await waiting.done
        except asyncio.CancelledError:
            if waiting in self._queue:  # not sent yet, and nobody waits for it any more
                self._queue.remove(waiting)
                self._gone(waiting)
            raise

    @property
    def bytes(self) -> int:
        """Size of all that waits or is in flight."""
        return self._bytes

    def _full(self, publication: Publication) -> bool:
        """One that is larger than the bound goes when nothing else waits."""
        count = len(self._queue) + len(self._in_flight)
        return count >= self._max_waiting or (count > 0 and self._bytes + held_by(publication) > self._max_bytes)

    def _gone(self, waiting: _Waiting) -> None:
        self._bytes -= held_by(waiting.publication)
        self._room.set()

    def connected(self, send: Callable[[Publication], int], window: int) -> None:
        """Send with `send`, which returns a packet identifier, until the connection is `lost`."""
        self._send = send
        self._window = window
        self._fill()

    def answered(self, packet_id: int, refusal: BrokerError | None) -> None:
        """The broker has answered a publication, or a QoS 0 one has been written."""
        waiting = self._in_flight.pop(packet_id, None)
        if waiting is not None:
            self._finish(waiting, refusal)
        self._fill()

    def lost(self) -> None:
        """Take back what was in flight, in its old order."""
        self._send = None
        lost = list(self._in_flight.values())
        self._in_flight.clear()
        for waiting in lost:
            waiting.losses += 1
            waiting.losses_alone += len(lost) == 1
            if waiting.losses_alone >= GIVE_UP_AFTER:
                self._finish(waiting, _hangs_up(waiting.publication))
            elif waiting.done.done():  # its caller was cancelled
                self._gone(waiting)
        self._queue.extendleft(waiting for waiting in reversed(lost) if not waiting.done.done())

    def close(self) -> None:
        """Fail all that still wait."""
        self._closed = True
        self._send = None
        for waiting in (*self._in_flight.values(), *self._queue):
            self._finish(waiting, _closed())
        self._room.set()
        self._in_flight.clear()
        self._queue.clear()

    def _fill(self) -> None:
        while self._send is not None and self._queue:
            suspect = any(waiting.losses >= SUSPECT_AFTER for waiting in (self._queue[0], *self._in_flight.values()))
            if len(self._in_flight) >= (1 if suspect else self._window):
                return
            waiting = self._queue.popleft()
            try:
                packet_id = self._send(waiting.publication)
            except BrokerError as refusal:
                self._finish(waiting, refusal)
            except Exception as error:  # one message must not take the session, and its caller must not wait for ever
                log.exception("A defect of the gateway", topic=waiting.publication.topic[:200])
                self._finish(waiting, _unexpected(error, waiting.publication))
            else:
                self._in_flight[packet_id] = waiting

    def _finish(self, waiting: _Waiting, refusal: BrokerError | None) -> None:
        self._gone(waiting)
        if waiting.done.done():  # its caller was cancelled
            return
        if refusal is None:
            waiting.done.set_result(None)
        else:
            waiting.done.set_exception(refusal)
            waiting.done.exception()  # counts as seen, should its caller be cancelled before it looks


def _closed() -> BrokerUnavailable:
    return BrokerUnavailable("The session with the broker has been closed", fix="Publish before close")


def _unexpected(error: Exception, publication: Publication) -> PublishRefused:
    fix = "Report it with the traceback in the log"
    return PublishRefused(f"It cannot be sent: unexpected {type(error).__name__}", where=publication.topic, fix=fix)


def _hangs_up(publication: Publication) -> PublishRefused:
    return PublishRefused(
        f"The broker ended the connection each time it was sent this message of {len(publication.payload)} bytes",
        where=publication.topic,
        fix="See the broker's log; its limit on packets or its rules for topics are the usual reasons",
    )
