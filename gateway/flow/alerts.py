"""One alert for an event, with a start and an end, however many frames show it."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import msgspec

from gateway.flow.publish import user_properties
from gateway.messages import JSON_TYPE, Origin, Prediction, Publication, Timestamp
from gateway.models.inference_spec import AlertsSpec

MAX_KEYS = 10_000
"""Cameras, each counted once a model and class, that are kept in mind."""
MAX_TEXT = 16 * 2**20
"""Bytes of topics and attributes of all open events together, and again of the ends that are not said: they come from
senders."""
LATE_S = 60.0
"""How long an ended event is kept in mind at least, so that a late frame of it does not start another."""
SNAPSHOTS_KNOWN = 8
"""The last snapshots of a run, by which a repeated one is known."""

Key = tuple[str, str, str]
"""Device, model and class as published."""
Reason = Literal["gone", "gateway_stopped", "too_many", "model_removed"]


@dataclass(frozen=True, slots=True, eq=False)
class Alert:
    """The start or the end of one event; `started_at` and `ended_at` are epoch seconds by the gateway's clock.

    At the start `timestamp`, `result_id`, `confidence` and `bbox` are those of the frame that made it an event. At the
    end the first two are those of the last sighting, and `confidence` is the highest. `origin` is that of the start
    in both, without what only its answers need.
    """

    alert_id: str
    event: Literal["start", "end"]
    topic: str
    origin: Origin
    model_name: str
    class_name: str
    severity: str
    timestamp: Timestamp
    result_id: str
    confidence: float
    bbox: tuple[float, float, float, float] | None
    frames: int
    started_at: float
    ended_at: float | None = None
    reason: Reason | None = None

    @property
    def text_size(self) -> int:
        """Bytes, at most, of the texts that senders had a say in; the same for a start and its end."""
        place, pairs = self.origin.place, (*self.origin.trace, *self.origin.attributes)
        texts = (
            self.topic,
            place.business_unit,
            place.facility,
            place.gateway_id,
            *(part for pair in pairs for part in pair),
        )
        return sum(len(text) if text.isascii() else 4 * len(text) for text in texts)


def alert_publication(alert: Alert) -> Publication:
    """The message of an alert; flat, as those read it who take alerts from many sources."""
    duration_s = None if alert.ended_at is None else round(alert.ended_at - alert.started_at, 3)
    body = {
        "message_type": "ai_alert",
        "alert_id": alert.alert_id,
        "event": alert.event,
        "timestamp": alert.timestamp,
        "device_id": alert.origin.device_id,
        "source": alert.origin.device_id,
        "model_name": alert.model_name,
        "label": alert.class_name,
        "class_name": alert.class_name,
        "confidence": round(alert.confidence, 6),
        "severity": alert.severity,
        "bbox": None if alert.bbox is None else [round(value, 2) for value in alert.bbox],
        "started_at": _rfc3339(alert.started_at),
        "ended_at": None if alert.ended_at is None else _rfc3339(alert.ended_at),
        "duration_s": duration_s,
        "frames": alert.frames,
        "reason": alert.reason,
        "result_id": alert.result_id,
    }
    return Publication(
        topic=alert.topic,
        payload=msgspec.json.encode(body),
        content_type=JSON_TYPE,
        user_properties=user_properties("ai_alert", alert.origin, f"{alert.alert_id}-{alert.event}"),
    )


@dataclass(slots=True, eq=False)
class _Run:
    """Sightings that belong together: first on their way to an event, then the event, then the memory of it.

    Its times are those at which frames arrived. `heard_at` is when the last was told of: under load a frame may be
    older than `hold_off_s` by then, and its camera is not silent for that.
    """

    hold_off_s: float
    first_at: float
    last_at: float
    heard_at: float
    first_id: str
    known: tuple[tuple[str, Timestamp], ...]
    frames: int = 0
    confidence: float = 0.0
    timestamp: Timestamp = 0
    result_id: str = ""
    event: Alert | None = None
    """The start, while the event is open."""
    over: bool = False
    """The event has ended; what still comes of it changes nothing."""

    def add(self, origin: Origin, confidence: float, hold_off_s: float, now: float) -> None:
        self.hold_off_s, self.heard_at = hold_off_s, now
        self.known = (*self.known, (origin.result_id, origin.timestamp))[-SNAPSHOTS_KNOWN:]
        self.frames += 1
        self.confidence = max(self.confidence, confidence)
        if origin.received_at >= self.last_at:
            self.last_at, self.timestamp, self.result_id = origin.received_at, origin.timestamp, origin.result_id


class AlertBook:
    """Which events are open, by device, model and class.

    An event starts with `after_frames` confident sightings, each within `hold_off_s` of the one before, and ends when
    its class has not been seen for `hold_off_s`; between two events of a key lies more than that. Once it has started
    any sighting keeps it open, however unsure. Frames count in the order of their arrival (`received_at`), in whatever
    order they come here: one from before a run began changes nothing, and neither does a snapshot that comes twice,
    known by its `result_id` and capture time. (A raw picture has no capture time of its own, so each is a new frame.)

    Beyond the bounds the event that has not been seen for the longest ends with the reason "too_many".

    Each end is kept until `said` tells that it is published, and comes once more with `end_all`: one whose publishing
    was cancelled would leave an event open for ever with those who read alerts. Within the same bounds, the oldest
    end goes first.
    """

    def __init__(
        self, max_keys: int = MAX_KEYS, max_text: int = MAX_TEXT, clock: Callable[[], float] = time.time
    ) -> None:
        self._max_keys = max_keys
        self._max_text = max_text
        self._clock = clock
        self._runs: OrderedDict[Key, _Run] = OrderedDict()
        self._text = 0
        self._unsaid: OrderedDict[str, Alert] = OrderedDict()
        self._unsaid_text = 0
        self.forgotten = 0
        """Events, and sightings that might have become one, that had to make room since the start."""

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def pending(self) -> int:
        """Events whose end is still to be said."""
        return len(self._unsaid) + sum(run.event is not None and not run.over for run in self._runs.values())

    def see(
        self,
        origin: Origin,
        model_name: str,
        topic: str,
        alerts: AlertsSpec,
        alert_classes: Collection[str],
        predictions: tuple[Prediction, ...],
        now: float,
    ) -> list[Alert]:
        """What starts, and what has ended before it, now that these predictions are published.

        `now` is of `time.monotonic()`, as `origin.received_at` is; `topic` is where the event's alerts go.
        """
        best: dict[str, Prediction] = {}
        for item in predictions:
            name = item.class_name
            if name in alert_classes and (name not in best or item.confidence > best[name].confidence):
                best[name] = item
        said: list[Alert] = []
        for name, item in best.items():
            key = (origin.device_id, model_name, name)
            run = self._run_of(key, origin, alerts, item.confidence, now, said)
            if run is None:
                continue
            run.add(origin, item.confidence, alerts.hold_off_s, now)
            self._runs.move_to_end(key)
            if run.event is None and run.frames >= alerts.after_frames:
                run.event = self._start(key, run, origin, topic, alerts, item, now)
                self._text += run.event.text_size
                said.append(run.event)
            self._make_room(said)
        return said

    def expire(self, now: float) -> list[Alert]:
        """The events whose class has not been seen for `hold_off_s`, whether or not their cameras still send."""
        said = []
        for key, run in list(self._runs.items()):
            silent_s = now - run.heard_at
            if run.event is not None and silent_s > run.hold_off_s:
                said.append(self._end(run, run.event, "gone"))
            if run.event is None and silent_s > max(run.hold_off_s, LATE_S):
                del self._runs[key]
        return said

    def end_all(self, reason: Reason) -> list[Alert]:
        """End every event, and forget what might have become one; gives the earlier ends that are not said, too."""
        unsaid = list(self._unsaid.values())
        runs = list(self._runs.values())
        self._runs.clear()
        return unsaid + [self._end(run, run.event, reason) for run in runs if run.event is not None]

    def end_model(self, model_name: str) -> list[Alert]:
        """End every event of a model that is no longer there, and forget what might have become one."""
        keys = [key for key in self._runs if key[1] == model_name]
        runs = [self._runs.pop(key) for key in keys]
        return [self._end(run, run.event, "model_removed") for run in runs if run.event is not None]

    def said(self, alert: Alert) -> None:
        """It is published, or never will be; a start changes nothing."""
        if alert.event == "end" and self._unsaid.pop(alert.alert_id, None) is not None:
            self._unsaid_text -= alert.text_size

    def _run_of(
        self, key: Key, origin: Origin, alerts: AlertsSpec, confidence: float, now: float, said: list[Alert]
    ) -> _Run | None:
        """The run that a sighting belongs to, which may begin with it; None when it changes nothing."""
        run, at = self._runs.get(key), origin.received_at
        confident = confidence >= alerts.min_confidence
        known: tuple[tuple[str, Timestamp], ...] = ()
        if run is not None:
            known = run.known
            if at < run.first_at or (origin.result_id, origin.timestamp) in known:
                return None
            if at <= run.last_at + alerts.hold_off_s:
                return run if run.event is not None or (confident and not run.over) else None
            if run.event is not None:
                said.append(self._end(run, run.event, "gone"))
        if not confident:
            return None
        self._runs[key] = _Run(alerts.hold_off_s, at, at, now, origin.result_id, known)
        return self._runs[key]

    def _start(
        self, key: Key, run: _Run, origin: Origin, topic: str, alerts: AlertsSpec, item: Prediction, now: float
    ) -> Alert:
        identity = hashlib.sha256()
        for part in (*key, run.first_id):
            identity.update(len(part.encode()).to_bytes(4, "big") + part.encode())
        return Alert(
            alert_id=identity.hexdigest()[:32],
            event="start",
            topic=topic,
            origin=replace(origin, topic="", correlation_data=None, response_topic=None, span=None),
            model_name=key[1],
            class_name=key[2],
            severity=alerts.severity,
            timestamp=origin.timestamp,
            result_id=origin.result_id,
            confidence=item.confidence,
            bbox=item.bbox,
            frames=run.frames,
            started_at=self._clock() - (now - run.first_at),
        )

    def _end(self, run: _Run, start: Alert, reason: Reason) -> Alert:
        run.event, run.over = None, True
        self._text -= start.text_size
        end = replace(
            start,
            event="end",
            timestamp=run.timestamp,
            result_id=run.result_id,
            confidence=run.confidence,
            bbox=None,
            frames=run.frames,
            ended_at=start.started_at + (run.last_at - run.first_at),
            reason=reason,
        )
        self._keep_until_said(end)
        return end

    def _keep_until_said(self, end: Alert) -> None:
        self._unsaid[end.alert_id] = end
        self._unsaid_text += end.text_size
        while len(self._unsaid) > self._max_keys or self._unsaid_text > self._max_text:
            self.said(next(iter(self._unsaid.values())))

    def _make_room(self, said: list[Alert]) -> None:
        """Forget those not seen for the longest; the newest stays even where it alone is too much."""
        while len(self._runs) > 1 and (len(self._runs) > self._max_keys or self._text > self._max_text):
            _, run = self._runs.popitem(last=False)
            self.forgotten += not run.over
            if run.event is not None:
                said.append(self._end(run, run.event, "too_many"))


def _rfc3339(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds")
