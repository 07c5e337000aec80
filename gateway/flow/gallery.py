"""What the console shows: the last results of each camera, as references to the bytes that are published anyway.

Bounded in cameras, results and bytes, whatever device ids somebody invents. Without anybody who looks, a result costs
it a microsecond and no copy; pictures are kept only while somebody looks (see `kept_pictures`).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from gateway.errors import Outcome
from gateway.flow.agreements import Agreements
from gateway.flow.kept_pictures import KeptPictures
from gateway.messages import Comparison, Origin

MAX_CAMERAS = 500
"""Beyond them the one gives way that has been silent for longest."""
MAX_ENTRIES = 2000
"""Of all cameras together; each has an equal share."""
MAX_OF_CAMERA = 30
MAX_BYTES = 8 * 2**20
"""Of all results together; of each camera an equal share, and its latest."""
LARGEST = 256 * 1024
"""Bytes of a result that is kept; a larger one is shown as too large."""
MAX_ALERTS = 200
MAX_DISAGREEMENTS = 50
MAX_DISAGREEMENT_BYTES = 2 * 2**20
SUMMARY_S = 60.0
"""The stretch of time over which a camera's rate is taken."""
_DROPPED = (Outcome.DROPPED_FULL, Outcome.DROPPED_STALE, Outcome.DROPPED_LIMITED)
_TOO_LARGE = b'{"error":{"code":"RESULT_TOO_LARGE","message":"the result is too large to be shown"}}'

Kind = Literal["dual", "shadow"]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One result or error as published; `number` orders all that the gallery has seen."""

    number: int
    camera: str
    result_id: str
    model: str | None
    received_at: float
    """Of `time.monotonic()`, as everything named so."""
    payload: bytes
    failed: bool


class Pair(msgspec.Struct, frozen=True, gc=False):
    """What two variants, or two versions, said of one snapshot; `payload` is the comparison message."""

    number: int
    camera: str
    result_id: str
    model: str
    received_at: float
    kind: Kind
    payload: bytes


class Alarm(msgspec.Struct, frozen=True, gc=False):
    """One alert as published, its start or its end."""

    number: int
    camera: str
    payload: bytes


class Camera:
    """What is known of one camera."""

    __slots__ = ("dropped", "facility", "failed", "history", "model", "name", "pair", "published", "size")

    def __init__(self, name: str) -> None:
        self.name = name
        self.history: deque[Entry] = deque()
        """Oldest first, never empty once it is in the gallery."""
        self.size = 0
        """Bytes of all that is kept of it."""
        self.model: str | None = None
        self.facility = ""
        self.published = 0
        self.failed = 0
        self.dropped = 0
        self.pair: Pair | None = None
        """Its latest comparison."""

    def rate_per_s(self, now: float) -> float:
        """Answers per second of late."""
        recent = [entry.received_at for entry in self.history if now - entry.received_at < SUMMARY_S]
        return (len(recent) - 1) / (now - recent[0]) if len(recent) > 1 and now > recent[0] else 0.0


class Gallery:
    """Fed by the flow, read by the console; all on the event loop.

    `pictures` says whether the console may show pictures at all.
    """

    def __init__(self, *, pictures: bool) -> None:
        self._cameras: OrderedDict[str, Camera] = OrderedDict()
        self._share = MAX_OF_CAMERA
        self._budget = MAX_BYTES
        self._size = 0
        self._alerts: deque[Alarm] = deque(maxlen=MAX_ALERTS)
        self._disagreements: deque[Pair] = deque()
        self._disagreement_bytes = 0
        self.agreements = Agreements()
        self.pictures = KeptPictures(allowed=pictures)
        self.number = 0
        """Of the last that was seen."""
        self._epoch = time.time() - time.monotonic()

    # --- fed by the flow ----------------------------------------------------------------------------

    def see(self, origin: Origin, payload: bytes, picture: bytes = b"") -> None:
        """A result, and the picture that it is about while the caller has that at hand."""
        camera, entry = self._put(origin, payload, failed=False)
        camera.published += 1
        if picture and self.pictures.watched:
            self.pictures.keep(entry, picture)

    def fail(self, origin: Origin, payload: bytes, outcome: Outcome) -> None:
        """An error message in place of a result."""
        camera, _ = self._put(origin, payload, failed=True)
        if outcome in _DROPPED:
            camera.dropped += 1
        else:
            camera.failed += 1

    def compare(self, origin: Origin, comparison: Comparison, payload: bytes, kind: Kind, picture: bytes = b"") -> None:
        """Two answers to a snapshot whose result it has seen; `origin` names the model."""
        camera = self._cameras.get(origin.device_id)
        history = () if camera is None else camera.history
        entry = next((each for each in reversed(history) if each.result_id == origin.result_id), None)
        if camera is None or entry is None:
            return
        match = None if comparison.agreement is None else comparison.agreement.match
        model = origin.model_name or ""
        self.agreements.count(model, kind, comparison, match, origin.received_at + self._epoch)
        if len(payload) > LARGEST:
            return
        self.number += 1
        pair = Pair(self.number, camera.name, origin.result_id, model, origin.received_at, kind, payload)
        self._grow(camera, len(payload) - (0 if camera.pair is None else len(camera.pair.payload)))
        camera.pair = pair
        if match is False:
            self._keep_disagreement(pair)
            if picture and self.pictures.watched:
                self.pictures.keep_apart(entry, picture)
        self._keep_within(camera)

    def _keep_disagreement(self, pair: Pair) -> None:
        kept = self._disagreements
        kept.append(pair)
        self._disagreement_bytes += len(pair.payload)
        while len(kept) > MAX_DISAGREEMENTS or self._disagreement_bytes > MAX_DISAGREEMENT_BYTES:
            self._disagreement_bytes -= len(kept.popleft().payload)

    def alert(self, device_id: str, payload: bytes) -> None:
        """An alert that was published."""
        self.number += 1
        self._alerts.append(Alarm(self.number, device_id, payload))

    def _put(self, origin: Origin, payload: bytes, *, failed: bool) -> tuple[Camera, Entry]:
        name = origin.device_id
        camera = self._cameras.get(name)
        if camera is None:
            camera = self._begin(name)
        else:
            self._cameras.move_to_end(name)
        if len(payload) > LARGEST:
            payload, failed = _TOO_LARGE, True
        self.number += 1
        entry = Entry(self.number, name, origin.result_id, origin.model_name, origin.received_at, payload, failed)
        camera.history.append(entry)
        camera.model, camera.facility = origin.model_name or camera.model, origin.place.facility
        size = len(payload)
        camera.size += size
        self._size += size
        if len(camera.history) > self._share or camera.size > self._budget or self._size > MAX_BYTES:
            self._keep_within(camera)
        return camera, entry

    # --- bounds -------------------------------------------------------------------------------------

    def _begin(self, name: str) -> Camera:
        if len(self._cameras) >= MAX_CAMERAS:
            self._forget_one()
        camera = self._cameras[name] = Camera(name)
        budget = MAX_BYTES // len(self._cameras)
        if budget < self._budget:  # not once there are MAX_CAMERAS, so that invented ones cost little
            self._share, self._budget = min(MAX_OF_CAMERA, MAX_ENTRIES // len(self._cameras)), budget
            for each in self._cameras.values():
                self._trim(each)
        return camera

    def _grow(self, camera: Camera, size: int) -> None:
        camera.size += size
        self._size += size

    def _keep_within(self, camera: Camera) -> None:
        self._trim(camera)
        while self._size > MAX_BYTES and len(self._cameras) > 1:
            self._forget_one()

    def _trim(self, camera: Camera) -> None:
        history = camera.history
        while len(history) > 1 and (len(history) > self._share or camera.size > self._budget):
            self._grow(camera, -len(history.popleft().payload))

    def _forget_one(self) -> None:
        """Give up the camera that has been silent for longest."""
        name, camera = self._cameras.popitem(last=False)
        self._size -= camera.size
        self.pictures.forget(name)

    # --- read by the console ------------------------------------------------------------------------

    @property
    def cameras(self) -> Mapping[str, Camera]:
        """By name, the one that has been silent for longest first."""
        return self._cameras

    @property
    def size(self) -> int:
        """Bytes of all results and comparisons of cameras."""
        return self._size

    def changed(self, since: int, limit: int) -> list[Entry]:
        """The latest entry of each camera that has one after number `since`, oldest first; the newest `limit`."""
        found: list[Entry] = []
        for camera in reversed(self._cameras.values()):
            latest = camera.history[-1]
            if latest.number <= since or len(found) == limit:
                break
            found.append(latest)
        return found[::-1]

    def alerts(self, since: int = 0, camera: str | None = None) -> Iterator[Alarm]:
        """Those after number `since`, newest first; of one camera or of all."""
        for alarm in reversed(self._alerts):
            if alarm.number <= since:
                return
            if camera is None or alarm.camera == camera:
                yield alarm

    def disagreements(self, since: int = 0) -> Iterator[Pair]:
        """Those after number `since`, newest first."""
        for pair in reversed(self._disagreements):
            if pair.number <= since:
                return
            yield pair

    def pair_of(self, entry: Entry) -> Pair | None:
        """The comparison that belongs to a result, if it is still known."""
        camera = self._cameras.get(entry.camera)
        if camera is not None and camera.pair is not None and camera.pair.result_id == entry.result_id:
            return camera.pair
        return next((pair for pair in self._disagreements if pair.result_id == entry.result_id), None)

    def epoch(self, at: float) -> float:
        """Seconds since 1970 for a time of `time.monotonic()`."""
        return round(at + self._epoch, 3)

    def follow_clock(self) -> None:
        """Take the system's clock as it is now, which may have been put right."""
        self._epoch = time.time() - time.monotonic()
