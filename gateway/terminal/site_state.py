"""What the messages of the gateways add up to: cameras, gateways, models and the last events."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from gateway.messages import Message
from gateway.terminal.lines import parse_message, readable_line, seen_in_words
from gateway.terminal.printable import one_cell_each

MAX_CAMERAS = 2000
MAX_GATEWAYS = 50
MAX_MODELS = 200
MAX_EVENTS = 50
MAX_ALERTS = 16
"""Of one camera at a time. Anybody can publish any name, so everything that grows by names has an end."""
REMEMBERED = 64
"""Arrivals and latencies of a camera: enough for a rate and for a sparkline."""
RATE_WINDOW_S = 10.0
MAX_NUMBER = 1e9
ALERT_ENDED, NOTE = "alert ended", "note"
MAX_NAME, MAX_LINE = 100, 400
"""Characters that are kept of a name, and of a line; a message may have megabytes of them."""


class _Timings(msgspec.Struct):
    total: float


class _Metadata(msgspec.Struct):
    timings_ms: _Timings


class _Result(msgspec.Struct):
    device_id: str
    model_name: str
    model_version: str
    backend_used: str
    metadata: _Metadata


class _Error(msgspec.Struct):
    device_id: str


class _Alert(msgspec.Struct):
    device_id: str
    model_name: str
    class_name: str
    event: str


class _Delta(msgspec.Struct):
    predictions_match: bool | None


class _Comparison(msgspec.Struct):
    device_id: str
    performance_delta: _Delta


class _Status(msgspec.Struct):
    gateway_id: str
    status: str
    reasons: list[str] = []
    degraded: list[str] = []
    reason: str = ""


class _Summary(msgspec.Struct):
    gateway_id: str
    timestamp: float
    snapshots_received: int
    snapshots: dict[str, int]
    queue_messages: int
    spool_messages: int = 0


class _Rollout(msgspec.Struct):
    version: int
    step: str
    ending: str
    percent: int
    progress: str


class _Model(msgspec.Struct):
    model_name: str
    status: str
    version: int | None = None
    rollout: _Rollout | None = None


@dataclass(slots=True)
class Camera:
    """What is known of one camera or sensor; times are of the monotonic clock, latencies in milliseconds."""

    name: str
    last_at: float = 0.0
    model: str = ""
    version: str = ""
    variant: str = ""
    seen: str = ""
    """The last detections in words."""
    errors: int = 0
    differing: int = 0
    """Comparisons whose variants disagreed."""
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    alerts: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)
    """Model and class of the alerts that have begun and not ended."""

    def rate(self, now: float) -> float:
        """Answers a second, of the last ten seconds."""
        recent = [at for at in self.arrivals if now - at <= RATE_WINDOW_S]
        # A camera that has just begun is not slow, and of a fast one the memory does not reach back ten seconds.
        return len(recent) / max(1.0, now - recent[0]) if recent else 0.0


@dataclass(slots=True)
class Gateway:
    """One gateway as its status and its summary say; `rate` in results a second, None before the second summary."""

    name: str
    status: str = "unknown"
    reasons: tuple[str, ...] = ()
    received: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    queue: int = 0
    spool: int = 0
    rate: float | None = None
    summary_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the last events; `kind` is the message_type, ALERT_ENDED, or NOTE: what this command itself says."""

    kind: str
    line: str


class SiteState:
    """Fed with messages, never raises for one, and bounded in all that names from outside make grow."""

    def __init__(self) -> None:
        self.cameras: OrderedDict[str, Camera] = OrderedDict()
        """The one heard of last comes last."""
        self.gateways: OrderedDict[str, Gateway] = OrderedDict()
        self.models: OrderedDict[str, str] = OrderedDict()
        """Each model in words: which version serves, and where a rollout stands."""
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.results = self.errors = self.alerts = self.malformed = 0

    def see(self, message: Message, now: float) -> str | None:
        """Take in a message that came at `now`; its message_type, None when it is none of the gateway's."""
        kind = kind_of(message.payload)
        try:
            match kind:
                case "ai_inference_result":
                    self._result(message, now)
                case "ai_inference_error":
                    self._error(msgspec.json.decode(message.payload, type=_Error), message, now)
                case "ai_alert":
                    self._alert(msgspec.json.decode(message.payload, type=_Alert), message, now)
                case "dual_backend_comparison":
                    self._comparison(msgspec.json.decode(message.payload, type=_Comparison), message)
                case "ai_status":
                    self._status(msgspec.json.decode(message.payload, type=_Status), message)
                case "ai_metrics":
                    self._summary(msgspec.json.decode(message.payload, type=_Summary))
                case "ai_model":
                    self._model(msgspec.json.decode(message.payload, type=_Model))
                case _:
                    return None
        except (msgspec.DecodeError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
            self.malformed += 1
        return kind

    def note(self, line: str) -> None:
        """Something that this command itself has to say."""
        self.events.append(Event(NOTE, one_cell_each(line, MAX_LINE)))

    def rate(self, now: float) -> float:
        """Answers a second of all cameras."""
        return sum(camera.rate(now) for camera in self.cameras.values() if now - camera.last_at <= RATE_WINDOW_S)

    def _camera(self, device_id: str, now: float) -> Camera:
        name = _name(device_id)
        camera = self.cameras.get(name) or Camera(name)
        self.cameras[name] = camera
        self.cameras.move_to_end(name)
        camera.last_at = now
        _keep(self.cameras, MAX_CAMERAS)
        return camera

    def _result(self, message: Message, now: float) -> None:
        result = msgspec.json.decode(message.payload, type=_Result)
        body = parse_message(message.payload) or {}
        seen = one_cell_each(seen_in_words(body), MAX_LINE)
        total = _bounded(result.metadata.timings_ms.total)
        camera = self._camera(result.device_id, now)
        camera.model, camera.version = _name(result.model_name), _name(result.model_version)
        camera.variant = _name(result.backend_used)
        camera.seen = seen
        camera.arrivals.append(now)
        camera.latencies_ms.append(total)
        self.results += 1

    def _error(self, error: _Error, message: Message, now: float) -> None:
        camera = self._camera(error.device_id, now)
        camera.arrivals.append(now)
        camera.errors += 1
        self.errors += 1
        self._event("ai_inference_error", message)

    def _alert(self, alert: _Alert, message: Message, now: float) -> None:
        camera = self.cameras.get(_name(alert.device_id)) or self._camera(alert.device_id, now)
        key = (_name(alert.model_name), _name(alert.class_name))
        if alert.event == "start":
            camera.alerts[key] = None
            _keep(camera.alerts, MAX_ALERTS)
            self.alerts += 1
        else:
            camera.alerts.pop(key, None)
        self._event("ai_alert" if alert.event == "start" else ALERT_ENDED, message)

    def _comparison(self, comparison: _Comparison, message: Message) -> None:
        if comparison.performance_delta.predictions_match is not False:
            return
        camera = self.cameras.get(_name(comparison.device_id))
        if camera is not None:
            camera.differing += 1
        self._event("dual_backend_comparison", message)

    def _status(self, status: _Status, message: Message) -> None:
        gateway = self._gateway(status.gateway_id)
        reasons = tuple(filter(None, (*status.reasons[:4], *status.degraded[:4], status.reason)))
        if gateway.status not in ("unknown", status.status):
            self._event("ai_status", message)
        gateway.status, gateway.reasons = _name(status.status), tuple(map(_name, reasons))

    def _summary(self, summary: _Summary) -> None:
        gateway = self._gateway(summary.gateway_id)
        published = summary.snapshots.get("published", 0)
        seconds, before = summary.timestamp - gateway.summary_at, gateway.outcomes.get("published", 0)
        if gateway.summary_at and 1 < seconds < 600 and published >= before:
            gateway.rate = (published - before) / seconds
        gateway.summary_at, gateway.received = summary.timestamp, summary.snapshots_received
        gateway.outcomes = {_name(outcome): count for outcome, count in islice(summary.snapshots.items(), 16)}
        gateway.queue, gateway.spool = summary.queue_messages, summary.spool_messages

    def _gateway(self, gateway_id: str) -> Gateway:
        name = _name(gateway_id)
        gateway = self.gateways.setdefault(name, Gateway(name))
        self.gateways.move_to_end(name)
        _keep(self.gateways, MAX_GATEWAYS)
        return gateway

    def _model(self, model: _Model) -> None:
        name = _name(model.model_name)
        if model.status == "removed":
            self.models.pop(name, None)
            return
        words = name if model.version is None else f"{name} {model.version}"
        if model.status not in ("serving", "rolling_out"):
            words += f" {model.status.replace('_', ' ')}"
        rollout = model.rollout
        if rollout is not None and rollout.ending == "under_way":
            words += f" (to {rollout.version}: {rollout.step.replace('_', ' ')} {rollout.progress})"
        elif rollout is not None and rollout.ending in ("refused", "rolled_back"):
            words += f" ({rollout.version} {rollout.ending.replace('_', ' ')})"
        self.models[name] = one_cell_each(words, MAX_LINE)
        self.models.move_to_end(name)
        _keep(self.models, MAX_MODELS)

    def _event(self, kind: str, message: Message) -> None:
        line = readable_line(message.topic, message.payload)
        if line is not None:
            self.events.append(Event(kind, one_cell_each(line, MAX_LINE)))


class _Kind(msgspec.Struct):
    message_type: str


def kind_of(payload: bytes) -> str | None:
    """The message_type of a message, or None where it has none."""
    try:
        return msgspec.json.decode(payload, type=_Kind).message_type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _bounded(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("is no number to show")
    return min(max(number, 0.0), MAX_NUMBER)


def _name(text: str) -> str:
    return one_cell_each(text, MAX_NAME)


def _keep(names: OrderedDict[Any, Any], most: int) -> None:
    while len(names) > most:
        names.popitem(last=False)
