"""The few pictures that are in memory while somebody looks at the console: the newest of each camera, still encoded."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.flow.gallery import Entry

MAX_BYTES = 16 * 2**20
"""Of all pictures together, as they were sent."""
LARGEST_PART = 2
"""Part of MAX_BYTES, one in so many, up to which a picture is kept."""
MAX_APART = 24
"""Pictures on which two variants disagree."""
APART_PART = 4
"""Part of MAX_BYTES, one in so many, for them where there is too little room."""
HELD_PART = 4
"""Part of MAX_BYTES, one in so many, for the pictures of results that are not with the broker yet."""
LOOK_S = 30.0
"""After the last look at the console all pictures are dropped."""

Kept = tuple["Entry", bytes]


class KeptPictures:
    """References to the bytes that came; without a look at the console in the last LOOK_S there are none.

    Where they are too many, those go first that nobody has asked for, then those of disagreements; of cameras those
    with more than an equal share, so that one with large pictures does not push the others out. The picture of a result
    on its way to the broker is held here, so that the result itself holds none, which may wait for long.
    """

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._held_size = 0
        self._disputed: set[str] = set()
        """Of those that are held: two versions have disagreed on them already."""
        self._newest: OrderedDict[str, Kept] = OrderedDict()
        self._apart: OrderedDict[str, Kept] = OrderedDict()
        self._wanted: dict[str, float] = {}
        """When somebody asked last for a camera's picture."""
        self._size = 0
        self._looked_at = float("-inf")
        self.watched = False
        """Whether pictures are kept now."""

    @property
    def size(self) -> int:
        """Bytes of all pictures; one that is kept for two reasons counts twice."""
        return self._size

    def look(self, camera: str | None = None) -> None:
        """Somebody looks, at this camera if one is named: keep pictures from now on."""
        if self._allowed:
            self.watched, self._looked_at = True, time.monotonic()
            if camera is not None:
                self._wanted[camera] = self._looked_at

    def expire(self, now: float) -> None:
        """Drop all when nobody has looked for a while; to be called now and then."""
        if self.watched and now - self._looked_at > LOOK_S:
            self.watched = False
            for kept in (self._held, self._disputed, self._newest, self._apart, self._wanted):
                kept.clear()
            self._size = self._held_size = 0
        self._wanted = {name: at for name, at in self._wanted.items() if now - at <= LOOK_S}

    def hold(self, result_id: str, picture: bytes) -> None:
        """Hold the picture of a result that is on its way, if somebody looks."""
        if not self.watched or not picture or len(picture) > MAX_BYTES // LARGEST_PART:
            return
        self.let_go(result_id)
        self._held[result_id] = picture
        self._held_size += len(picture)
        self._size += len(picture)
        while len(self._held) > 1 and self._held_size > MAX_BYTES // HELD_PART:
            self.let_go(next(iter(self._held)))
        self._make_room()

    def let_go(self, result_id: str) -> bytes:
        """Hold it no longer; returns the picture, empty where there is none."""
        self._disputed.discard(result_id)
        picture = self._held.pop(result_id, b"")
        self._held_size -= len(picture)
        self._size -= len(picture)
        return picture

    def dispute(self, result_id: str) -> None:
        """Two versions disagree on a result that may still be on its way: then its picture is kept apart."""
        if result_id in self._held:
            self._disputed.add(result_id)

    def keep(self, entry: Entry, *, latest: bool) -> bytes:
        """Keep what was held for this result, if it is its camera's latest; returns it, empty where none was held."""
        disputed = entry.result_id in self._disputed
        picture = self.let_go(entry.result_id)
        if picture and latest:
            self._put(self._newest, entry.camera, (entry, picture))
        if disputed:
            self.keep_apart(entry, picture)
        return picture

    def keep_apart(self, entry: Entry, picture: bytes) -> None:
        """Keep a picture on which two variants disagree."""
        if len(self._apart) >= MAX_APART:
            self._drop(self._apart, next(iter(self._apart)))
        self._put(self._apart, entry.result_id, (entry, picture))

    def forget(self, camera: str) -> None:
        """Drop the picture of a camera that is forgotten."""
        self._drop(self._newest, camera)
        self._wanted.pop(camera, None)

    def of_camera(self, camera: str) -> Kept | None:
        """The newest picture of a camera and its result."""
        return self._newest.get(camera)

    def of_result(self, camera: str, result_id: str) -> Kept | None:
        """The picture of this very result."""
        kept = self._newest.get(camera)
        return kept if kept is not None and kept[0].result_id == result_id else self._apart.get(result_id)

    def find(self, result_id: str) -> Kept | None:
        """As `of_result`, whichever camera it is of."""
        newest = (kept for kept in self._newest.values() if kept[0].result_id == result_id)
        return self._apart.get(result_id) or next(newest, None)

    def _put(self, shelf: OrderedDict[str, Kept], key: str, kept: Kept) -> None:
        self._drop(shelf, key)
        size = len(kept[1])
        if size > MAX_BYTES // LARGEST_PART:
            return
        shelf[key] = kept
        self._size += size
        self._make_room()

    def _make_room(self) -> None:
        while self._size > MAX_BYTES:
            unwanted = [name for name in self._newest if name not in self._wanted]
            apart_size = sum(len(picture) for _, picture in self._apart.values())
            if (large := next(self._above_share(unwanted), None)) is not None:
                self._drop(self._newest, large)
            elif self._apart and (not unwanted or apart_size > MAX_BYTES // APART_PART):
                self._drop(self._apart, next(iter(self._apart)))
            elif unwanted:
                self._drop(self._newest, unwanted[0])
            elif (large := next(self._above_share(self._newest), None)) is not None:
                self._drop(self._newest, large)
            else:  # each has its share, so what is too much waits for the broker
                self.let_go(next(iter(self._held)))

    def _above_share(self, names: Iterable[str]) -> Iterator[str]:
        """Those of the cameras whose picture is larger than an equal share, the oldest first."""
        share = MAX_BYTES // len(self._newest) if self._newest else 0
        return (name for name in names if len(self._newest[name][1]) > share)

    def _drop(self, shelf: OrderedDict[str, Kept], key: str) -> None:
        if (kept := shelf.pop(key, None)) is not None:
            self._size -= len(kept[1])
