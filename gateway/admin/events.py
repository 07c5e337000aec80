"""`GET /api/events`: what happens, as server-sent events, to a few who look at once.

Nothing is buffered: each stream looks into the gallery a few times a second and sends what has changed since, so one
that is slow gets less, and one that reads nothing is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gateway.admin.answers import SECURITY_HEADERS, error_response
from gateway.admin.console_entries import disagreement_of, entry_of
from gateway.admin.guard import client_of
from gateway.flow.gallery import Alarm, Entry, Gallery

Kept = TypeVar("Kept", Entry, Alarm)
MAX_STREAMS = 8
STAY_S = 30.0
"""Before a stream gives way to one of an address that has as many; so that those of nine people do not end at once."""
EVERY_S = 0.25
COMMENT_EVERY_S = 10.0
"""Something comes as often at least, so that who has left is noticed, here and there."""
UNREAD_S = 10.0
"""For an event of which the client reads nothing."""
MOST_ENTRIES = 200
"""In one event; more come in several, one after the other."""
PART_BYTES = 64 * 1024
"""Of results in one event, as soon as which it is full."""
FIRST_ALERTS = 20
"""Of those that were there before, beside those under way."""
STREAM_HEADERS = {**SECURITY_HEADERS, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
COMMENT = b": all is well\n\n"
BYE = b"event: bye\ndata: {}\n\n"


def event(name: str, data: dict[str, Any]) -> bytes:
    """One event; JSON has no line breaks of its own."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """One open stream, and whose it is."""

    request: web.Request
    address: str
    since: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        """Let go at once of a client that may read nothing; the stream notices that it has left."""
        if self.request.transport is not None:
            self.request.transport.abort()


class Streams:
    """The open streams of this process: so many at most, each seen to its end when the gateway stops.

    When they are too many, the oldest one gives way of the address that has most: who opens many takes them from
    himself alone, and locks nobody out. `may_read` says whether the token that a request has brought still holds.
    """

    def __init__(self, may_read: Callable[[web.Request], bool]) -> None:
        self.may_read = may_read
        self._open: list[_Place] = []
        """The oldest first."""
        self._closing = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Let all end with a word of farewell, for the gateway stops."""
        self._closing.set()

    @property
    def closing(self) -> bool:
        """Whether the gateway stops."""
        return self._closing.is_set()

    async def wait(self) -> None:
        """Return after EVERY_S, or at once when the gateway stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVERY_S):
                await self._closing.wait()

    @contextlib.contextmanager
    def take_one(self, request: web.Request) -> Iterator[bool]:
        """A place for one more; False where there is none."""
        place = _Place(request, client_of(request))
        if len(self._open) >= MAX_STREAMS and not self._make_room(place):
            yield False
            return
        self._open.append(place)
        try:
            yield True
        finally:
            if place in self._open:  # else it has given way
                self._open.remove(place)

    def _make_room(self, place: _Place) -> bool:
        """End one, if that is fair; the new one counts for its address already."""
        held = Counter(each.address for each in (*self._open, place))
        victim = max(self._open, key=lambda each: held[each.address])  # of equals the first, which is the oldest
        if held[victim.address] <= held[place.address] and place.since - victim.since < STAY_S:
            return False
        self._open.remove(victim)
        victim.end()
        return True


class Stream:
    """One client's; `send` gives it events as they are read. `may_read` is asked now and then."""

    def __init__(self, request: web.Request, may_read: Callable[[web.Request], bool]) -> None:
        self._request = request
        self._may_read = may_read
        self._looked_at = time.monotonic()
        self._response = web.StreamResponse(headers=STREAM_HEADERS)
        self._said_at = time.monotonic()

    async def open(self) -> web.StreamResponse:
        """Begin the answer, which is for the handler to return."""
        await self._response.prepare(self._request)
        return self._response

    @property
    def left(self) -> bool:
        """Whether the client has gone."""
        transport = self._request.transport
        return transport is None or transport.is_closing()

    async def send(self, data: bytes) -> None:
        """Raises ConnectionError for a client that has left, or reads nothing."""
        try:
            async with asyncio.timeout(UNREAD_S):
                await self._response.write(data)
        except TimeoutError as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client reads nothing") from error
        self._said_at = time.monotonic()

    async def stay(self) -> None:
        """Say something when nothing has been said for long; raises ConnectionError when the token holds no more."""
        now = time.monotonic()
        if now - self._looked_at >= COMMENT_EVERY_S:
            self._looked_at = now
            if not self._may_read(self._request):
                raise ConnectionResetError("the token has been taken back")
        if now - self._said_at >= COMMENT_EVERY_S:
            await self.send(COMMENT)


def too_many_streams() -> web.Response:
    """The answer to one more than there may be."""
    text, fix = f"{MAX_STREAMS} look at the console already", "Close one of them, or try again"
    return error_response(503, "QUEUE_FULL", text, fix, {"Retry-After": "5"})


class Events:
    """What the gallery sees, to all who look."""

    def __init__(self, gallery: Gallery, streams: Streams) -> None:
        self._gallery = gallery
        self._streams = streams

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Handle one request to its end."""
        with self._streams.take_one(request) as admitted:
            if not admitted:
                return too_many_streams()
            stream = Stream(request, self._streams.may_read)
            response = await stream.open()
            with contextlib.suppress(ConnectionError):
                await self._tell(stream)
            return response

    async def _tell(self, stream: Stream) -> None:
        seen = told = -1
        while not self._streams.closing and not stream.left:
            self._gallery.pictures.look()
            until = self._gallery.number
            others = self._others(told)
            seen = await self._catch_up(stream, seen, until)
            for each in others:
                await stream.send(each)
            told = until
            await stream.stay()
            await self._streams.wait()
        if not stream.left:
            await stream.send(BYE)

    async def _catch_up(self, stream: Stream, seen: int, until: int) -> int:
        """Send the results that came after number `seen`, the oldest first, until all up to number `until` are sent.

        Each event is taken from the gallery when the one before has been read. Returns the number of the last one.
        """
        part = _first(self._gallery.changed(seen))
        if seen < 0 and not part:
            await stream.send(self._results([]))
            return 0
        while part:
            await stream.send(self._results(part))
            seen = part[-1].number
            part = _first(self._gallery.changed(seen)) if seen < until else []
        return seen

    def _results(self, entries: list[Entry]) -> bytes:
        now = self._gallery.epoch(time.monotonic())
        return event("results", {"now": now, "entries": [entry_of(entry, self._gallery) for entry in entries]})

    def _others(self, told: int) -> list[bytes]:
        """Events about alerts and disagreements after number `told`.

        At the beginning alerts alone: the last ones and all that are under way, and also that there are none.
        """
        gallery, begins = self._gallery, told < 0
        alarms = gallery.latest_alerts(FIRST_ALERTS) if begins else list(gallery.alerts(told))[::-1]
        pairs = [] if begins else list(gallery.disagreements(told))[::-1]
        told_of = _alerts(alarms) if alarms or begins else ()
        return [*told_of, *(event("disagreement", disagreement_of(pair, gallery)) for pair in pairs)]


def _alerts(alarms: list[Alarm]) -> Iterator[bytes]:
    """One event at least, also about none."""
    while True:
        part = _first(alarms)
        yield event("alerts", {"alerts": [msgspec.Raw(alarm.payload) for alarm in part]})
        alarms = alarms[len(part) :]
        if not alarms:
            return


def _first(entries: list[Kept]) -> list[Kept]:
    """As many of the first as go into one event."""
    size = 0
    for place, entry in enumerate(entries[:MOST_ENTRIES], 1):
        size += len(entry.payload)
        if size >= PART_BYTES:
            return entries[:place]
    return entries[:MOST_ENTRIES]
