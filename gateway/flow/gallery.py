"""What the console shows: the last results of each camera, as references to the bytes that were published anyway.

Bounded in cameras, results and bytes, whatever device ids somebody invents. Without anybody who looks, a result costs
it a microsecond and no copy; pictures are kept only while somebody looks (see `kept_pictures`).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.flow.agreements import Agreements, Verdict
from gateway.flow.kept_pictures import KeptPictures
from gateway.messages import Origin, Publication

if TYPE_CHECKING:  # the front of several workers knows the limits, and carries none of the flow
    from gateway.flow.alerts import Alert
    from gateway.flow.observer import Answer

MAX_CAMERAS = 500
"""Beyond them the one gives way that has been silent for longest."""
FORGOTTEN_AFTER_S = 24 * 3600.0
"""A camera that has been silent for so long is not shown any more."""
MAX_OF_CAMERA = 30
MAX_ENTRIES = 2000
"""Of all cameras together; where that is too little, each has an equal share."""
MAX_BYTES = 8 * 2**20
"""Of all results together; where that is too little, each camera has an equal share, and its latest in any case."""
LARGEST = 256 * 1024
"""Bytes of a result that is kept; a larger one is shown as too large."""
MAX_ALERTS = 200
MAX_OPEN_ALERTS = 500
"""Under way, however long ago they began; beyond them the oldest give way."""
MAX_DISAGREEMENTS = 50
MAX_DISAGREEMENT_BYTES = 2 * 2**20
RATE_S = 60.0
"""The stretch of time over which a camera's rate is taken, if not more than RATE_ANSWERS come in it."""
RATE_ANSWERS = 32
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

    __slots__ = ("arrivals", "facility", "history", "model", "name", "pair", "size")

    def __init__(self, name: str) -> None:
        self.name = name
        self.history: deque[Entry] = deque()
        """Oldest first, never empty once it is in the gallery."""
        self.size = 0
        """Bytes of all that is kept of it."""
        self.model: str | None = None
        self.facility = ""
        self.arrivals: deque[float] = deque(maxlen=RATE_ANSWERS)
        """When the snapshots came that were answered last, whatever is left of their results."""
        self.pair: Pair | None = None
        """Its latest comparison."""

    def rate_per_s(self, now: float) -> float:
        """Answers per second of late."""
        recent = [at for at in self.arrivals if now - at < RATE_S]
        since = min(recent, default=now)
        return (len(recent) - 1) / (now - since) if now > since else 0.0


class Gallery:
    """Observes the flow, read by the console; all on the event loop.

    `pictures` says whether the console may show pictures at all.
    """

    def __init__(self, *, pictures: bool) -> None:
        self._cameras: OrderedDict[str, Camera] = OrderedDict()
        self._entries = 0
        self._size = 0
        self._alerts: deque[Alarm] = deque(maxlen=MAX_ALERTS)
        self._open_alerts: OrderedDict[str, Alarm] = OrderedDict()
        self._disagreements: deque[Pair] = deque()
        self._disagreement_bytes = 0
        self.agreements = Agreements()
        self.pictures = KeptPictures(allowed=pictures)
        self.number = 0
        """Of the last that was seen."""
        self._epoch = time.time() - time.monotonic()

    # --- fed by the flow ----------------------------------------------------------------------------

    def answered(self, answer: Answer) -> None:
        """A result was published; its picture has been held by `pictures` meanwhile."""
        entry, latest = self._put(answer.origin, answer.result.payload, failed=False)
        picture = self.pictures.keep(entry, latest=latest) if self.pictures.watched else b""
        if answer.verdict is not None and answer.comparison is not None:
            self.compare(answer.origin, answer.verdict, answer.comparison.payload, "dual", picture)

    def failed(self, origin: Origin, message: Publication) -> None:
        """An error message was published in place of a result."""
        self._put(origin, message.payload, failed=True)
        self.pictures.let_go(origin.result_id)

    def compare(self, origin: Origin, verdict: Verdict, payload: bytes, kind: Kind, picture: bytes = b"") -> None:
        """Two answers to a camera's snapshot, whose result may be published later or forgotten already.

        `origin` names the model.
        """
        model = origin.model_name or ""
        self.agreements.count(model, kind, verdict, origin.received_at)
        if len(payload) > LARGEST:
            return
        self.number += 1
        pair = Pair(self.number, origin.device_id, origin.result_id, model, origin.received_at, kind, payload)
        camera = self._cameras.get(origin.device_id)
        if verdict.match is False:
            self._keep_disagreement(pair)
            if picture and self.pictures.watched:
                self._keep_apart(camera, origin.result_id, picture)
        if camera is not None:
            self._grow(camera, len(payload) - (0 if camera.pair is None else len(camera.pair.payload)))
            camera.pair = pair
            self._keep_within(camera)

    def _keep_apart(self, camera: Camera | None, result_id: str, picture: bytes) -> None:
        history = () if camera is None else camera.history
        entry = next((each for each in reversed(history) if each.result_id == result_id), None)
        if entry is None:
            self.pictures.dispute(result_id)
        else:
            self.pictures.keep_apart(entry, picture)

    def _keep_disagreement(self, pair: Pair) -> None:
        kept = self._disagreements
        kept.append(pair)
        self._disagreement_bytes += len(pair.payload)
        while len(kept) > MAX_DISAGREEMENTS or self._disagreement_bytes > MAX_DISAGREEMENT_BYTES:
            self._disagreement_bytes -= len(kept.popleft().payload)

    def alerted(self, alert: Alert, message: Publication) -> None:
        """The start or the end of an alert was published."""
        self.number += 1
        alarm = Alarm(self.number, alert.origin.device_id, message.payload)
        self._alerts.append(alarm)
        if alert.event == "end":
            self._open_alerts.pop(alert.alert_id, None)
            return
        self._open_alerts[alert.alert_id] = alarm
        if len(self._open_alerts) > MAX_OPEN_ALERTS:
            self._open_alerts.popitem(last=False)

    def _put(self, origin: Origin, payload: bytes, *, failed: bool) -> tuple[Entry, bool]:
        """The entry that is made of it, and whether that is the latest of its camera."""
        camera = self._cameras.get(origin.device_id) or self._begin(origin.device_id)
        place = _place_in(camera.history, origin.received_at, failed=failed)
        latest = place == len(camera.history)
        if len(payload) > LARGEST:
            payload, failed = _TOO_LARGE, True
        self.number += 1
        entry = Entry(
            self.number, camera.name, origin.result_id, origin.model_name, origin.received_at, payload, failed
        )
        camera.history.insert(place, entry)
        camera.arrivals.append(origin.received_at)
        camera.model, camera.facility = origin.model_name or camera.model, origin.place.facility
        self._entries += 1
        self._grow(camera, len(payload))
        if latest:
            self._cameras.move_to_end(camera.name)
        if len(camera.history) > MAX_OF_CAMERA:
            self._drop_oldest(camera)
        self._keep_within(camera)
        return entry, latest

    def _begin(self, name: str) -> Camera:
        if len(self._cameras) >= MAX_CAMERAS:
            self._forget_one()
        camera = self._cameras[name] = Camera(name)
        return camera

    # --- bounds -------------------------------------------------------------------------------------

    def tidy(self, now: float) -> None:
        """Forget what is long ago and take the clock as it is; to be called now and then."""
        self._epoch = time.time() - time.monotonic()
        self.pictures.expire(now)
        while self._cameras:
            longest = next(iter(self._cameras.values()))
            if now - longest.history[-1].received_at <= FORGOTTEN_AFTER_S:
                return
            self._forget_one()

    def _is_full(self) -> bool:
        return self._size > MAX_BYTES or self._entries > MAX_ENTRIES

    def _grow(self, camera: Camera, size: int) -> None:
        camera.size += size
        self._size += size

    def _keep_within(self, camera: Camera) -> None:
        """Where all have too much together, those give something up that have more than their share; this one first."""
        if not self._is_full():
            return
        self._trim(camera)
        for each in self._cameras.values():
            if not self._is_full():
                return
            self._trim(each)
        while self._size > MAX_BYTES and len(self._cameras) > 1:
            self._forget_one()

    def _trim(self, camera: Camera) -> None:
        number = len(self._cameras)
        share, budget = MAX_ENTRIES // number, MAX_BYTES // number
        while self._is_full() and len(camera.history) > 1 and (len(camera.history) > share or camera.size > budget):
            self._drop_oldest(camera)

    def _drop_oldest(self, camera: Camera) -> None:
        self._entries -= 1
        self._grow(camera, -len(camera.history.popleft().payload))

    def _forget_one(self) -> None:
        """Give up the camera that has been silent for longest."""
        name, camera = self._cameras.popitem(last=False)
        self._entries -= len(camera.history)
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

    def changed(self, since: int) -> list[Entry]:
        """The latest entry of each camera that has one after number `since`, the oldest first."""
        found: list[Entry] = []
        for camera in reversed(self._cameras.values()):
            latest = camera.history[-1]
            if latest.number <= since:
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

    def latest_alerts(self, most: int, camera: str | None = None) -> list[Alarm]:
        """The last `most`, and all that are under way, oldest first; of one camera or of all."""
        under_way = (each for each in self._open_alerts.values() if camera is None or each.camera == camera)
        found = {each.number: each for each in (*under_way, *islice(self.alerts(camera=camera), most))}
        return [found[number] for number in sorted(found)]

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


def _place_in(history: deque[Entry], received_at: float, *, failed: bool) -> int:
    """Where an entry belongs: the last one, but a result before those that are newer.

    A result is with the broker a moment later than the next one where an alert goes with it. An error may be there
    long before the results of older snapshots, which shall be seen nevertheless.
    """
    place = len(history)
    while place and not failed and history[place - 1].received_at > received_at and not history[place - 1].failed:
        place -= 1
    return place
