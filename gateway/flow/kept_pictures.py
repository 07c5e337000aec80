"""The few pictures that are in memory while somebody looks at the console: the newest of each camera, still encoded."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.flow.gallery import Entry

MAX_BYTES = 16 * 2**20
"""Of all pictures together, as they were sent."""
MAX_APART = 24
"""Pictures on which two variants disagree."""
LOOK_S = 30.0
"""After the last look at the console all pictures are dropped."""

Kept = tuple["Entry", bytes]


class KeptPictures:
    """References to the bytes that came; without a look at the console in the last LOOK_S there are none.

    Where they are too many, those go first that nobody has asked for, then those of disagreements.
    """

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
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
            self._newest.clear()
            self._apart.clear()
            self._wanted.clear()
            self._size = 0
        self._wanted = {name: at for name, at in self._wanted.items() if now - at <= LOOK_S}

    def keep(self, entry: Entry, picture: bytes) -> None:
        """Keep the picture of a camera's newest result, in place of the one before."""
        self._put(self._newest, entry.camera, (entry, picture))

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
        if size > MAX_BYTES:
            return
        shelf[key] = kept
        self._size += size
        while self._size > MAX_BYTES:
            self._make_room()

    def _make_room(self) -> None:
        unwanted = next((name for name in self._newest if name not in self._wanted), None)
        if unwanted is not None:
            self._drop(self._newest, unwanted)
        elif self._apart:
            self._drop(self._apart, next(iter(self._apart)))
        else:
            self._drop(self._newest, next(iter(self._newest)))

    def _drop(self, shelf: OrderedDict[str, Kept], key: str) -> None:
        if (kept := shelf.pop(key, None)) is not None:
            self._size -= len(kept[1])
