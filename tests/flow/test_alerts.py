"""One start and one end for an event, whatever the frames do."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.alerts import LATE_S, Alert, AlertBook, alert_publication
from gateway.messages import Origin, Place, Prediction
from gateway.models.inference_spec import AlertsSpec

MODEL = "industrial-safety"
NO_HELMET = "person_without_helmet"
CLASSES = (NO_HELMET, "smoke")
TOPIC = "edge-ai/bu/plant/gw/ai/alerts"
NEVER = float("inf")
EPOCH = 1_697_385_600.0


def frame(at: float, device: str = "camera-01", **more: Any) -> Origin:
    given: dict[str, Any] = {
        "result_id": f"{round(at * 1000):032x}",
        "device_id": device,
        "timestamp": EPOCH + at,
        "topic": "edge-ai/bu/plant/gw/camera/snapshots",
        "payload_bytes": 3,
        "payload_sha256": "00",
        "received_at": at,
        "place": Place("bu", "plant", "gw"),
    }
    return Origin(**{**given, **more})


def seen(confidence: float = 0.9, name: str = NO_HELMET, **more: Any) -> Prediction:
    return Prediction(**{"class_name": name, "class_id": 1, "confidence": confidence, "bbox": (1, 2, 3, 4), **more})


class Site:
    """A book, and all that it has said; its wall clock is that of the frames."""

    def __init__(self, spec: AlertsSpec | None = None, *, said: bool = True, **bounds: int) -> None:
        self.spec = spec or AlertsSpec()
        self.publishes = said
        self.now = 0.0
        self.said: list[Alert] = []
        self.book = AlertBook(clock=lambda: EPOCH + self.now, **bounds)

    def see(self, origin: Origin, *predictions: Prediction, late: float = 0.0, model: str = MODEL) -> list[Alert]:
        self.now = max(self.now, origin.received_at + late)
        alerts = self.book.see(origin, model, TOPIC, self.spec, CLASSES, predictions, self.now)
        return self._publish(alerts)

    def expire(self, now: float) -> list[Alert]:
        return self._publish(self.book.expire(now))

    def _publish(self, alerts: list[Alert]) -> list[Alert]:
        self.said += alerts
        for alert in alerts if self.publishes else ():
            self.book.said(alert)
        return alerts

    @property
    def events(self) -> list[str]:
        return [alert.event for alert in self.said]


# --- the promise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_frames", [1, 3])
@pytest.mark.parametrize("order", ["in order", "a little out of order", "twice"])
def test_200_frames_of_a_worker_without_helmet_are_one_start_and_one_end(order: str, after_frames: int) -> None:
    site = Site(AlertsSpec(after_frames=after_frames))
    frames = [frame(number / 5) for number in range(200)]
    if order == "a little out of order":
        shuffled = random.Random(1)
        frames.sort(key=lambda item: item.received_at + shuffled.random())
    if order == "twice":
        frames = [item for item in frames for _ in range(2)]
    for item in frames:
        site.see(item, seen(), late=1.0)
        site.expire(site.now)
    assert site.events == ["start"]
    site.expire(site.now + 10)
    assert site.events == ["start"], "it may still be seen"
    site.expire(site.now + 10.001)
    start, end = site.said
    assert (end.event, end.reason, end.alert_id) == ("end", "gone", start.alert_id)
    before = sum(item.received_at < frames[0].received_at for item in frames)
    assert (start.frames, end.frames) == (after_frames, 200 - before)
    assert end.result_id == frame(199 / 5).result_id
    site.expire(NEVER)
    assert site.events == ["start", "end"]
    assert len(site.book) == 0


@dataclass(frozen=True)
class Event:
    first: float
    last: float
    frames: int
    highest: float


def slowly(sightings: list[tuple[float, float]], spec: AlertsSpec) -> list[Event]:
    """The events of one key, from all its sightings (time, confidence) in their order."""
    if not sightings:
        return []
    runs: list[list[tuple[float, float]]] = [[]]
    for at, confidence in sightings:
        run = runs[-1]
        if run and at - run[-1][0] > spec.hold_off_s:
            runs.append(run := [])
        if confidence >= spec.min_confidence or len(run) >= spec.after_frames:
            run.append((at, confidence))
    return [
        Event(run[0][0], run[-1][0], len(run), max(confidence for _, confidence in run))
        for run in runs
        if len(run) >= spec.after_frames
    ]


specs = st.builds(
    AlertsSpec,
    min_confidence=st.sampled_from([0.0, 0.6]),
    after_frames=st.integers(1, 4),
    hold_off_s=st.sampled_from([1.0, 3.0, 90.0]),
)
confidences = st.sampled_from([0.5, 0.6, 0.9])
gaps = st.one_of(st.integers(1, 5), st.sampled_from([1, 2, 90, 91, 200]))


@given(specs, st.lists(st.tuples(gaps, confidences, st.booleans(), st.integers(0, 200)), min_size=10, max_size=40))
def test_in_order_the_events_are_those_of_the_slow_model(
    spec: AlertsSpec, arriving: list[tuple[int, float, bool, int]]
) -> None:
    """Frames without the class, and the timer at any moment, change nothing."""
    site = Site(spec)
    sightings, at = [], 0.0
    for gap, confidence, shows, timer in arriving:
        if timer < gap:
            site.expire(at + timer)
        at += gap
        if shows:
            sightings.append((at, confidence))
            site.see(frame(at), seen(confidence), seen(0.1, "forklift"))
        else:
            site.see(frame(at), seen(confidence, "forklift"))
    site.expire(NEVER)
    starts, ends = site.said[::2], site.said[1::2]
    found = [
        Event(start.started_at - EPOCH, (end.ended_at or 0) - EPOCH, end.frames, end.confidence)
        for start, end in zip(starts, ends, strict=True)
    ]
    assert found == slowly(sightings, spec)
    assert all(end.reason == "gone" for end in ends)
    assert all(start.frames == spec.after_frames for start in starts)


frames_of_two = st.tuples(st.integers(0, 60), st.sampled_from("ab"), st.sampled_from(CLASSES), confidences)


@given(specs, st.lists(st.tuples(frames_of_two, st.integers(0, 12), st.booleans()), min_size=10, max_size=50))
def test_in_any_order_starts_and_ends_alternate(
    spec: AlertsSpec, arriving: list[tuple[tuple[int, str, str, float], int, bool]]
) -> None:
    """Frames take their time, overtake each other, and some come a second time as if they were new."""
    site = Site(spec)
    coming = []
    for (at, device, name, confidence), late, twice in arriving:
        coming.append((at + late, frame(at, device), seen(confidence, name)))
        if twice:
            again = at + late + 2
            coming.append((again, frame(at, device, received_at=again), seen(confidence, name)))
    coming.sort(key=lambda item: item[0])
    for now, origin, prediction in coming:
        site.expire(now)
        site.see(origin, prediction, late=now - origin.received_at)
    site.expire(NEVER)
    check(site.said, spec.hold_off_s)
    assert len(site.book) == 0


def check(said: list[Alert], hold_off_s: float) -> None:
    """Per key: start, end, start, end ...; ids apart; more than hold_off_s between an end and the next start."""
    by_key: dict[tuple[str, str, str], list[Alert]] = {}
    for alert in said:
        by_key.setdefault((alert.origin.device_id, alert.model_name, alert.class_name), []).append(alert)
    for alerts in by_key.values():
        assert [alert.event for alert in alerts] == ["start", "end"] * (len(alerts) // 2)
        pairs = list(zip(alerts[::2], alerts[1::2], strict=True))
        assert all(start.alert_id == end.alert_id for start, end in pairs)
        assert len({start.alert_id for start, _ in pairs}) == len(pairs)
        assert all(end.ended_at is not None and end.ended_at >= start.started_at for start, end in pairs)
        for (_, before), (after, _) in itertools.pairwise(pairs):
            assert before.ended_at is not None
            assert after.started_at - before.ended_at > hold_off_s


# --- single cases ------------------------------------------------------------------------------------


def test_an_unsure_sighting_starts_nothing_but_keeps_open_what_has_started() -> None:
    site = Site(AlertsSpec(min_confidence=0.8))
    assert site.see(frame(0), seen(0.79)) == []
    (start,) = site.see(frame(1), seen(0.8))
    assert start.confidence == 0.8
    for at in (9, 18, 27):
        assert site.see(frame(at), seen(0.3)) == []
    assert site.expire(37) == []
    (end,) = site.expire(37.1)
    assert (end.frames, end.confidence, end.ended_at) == (4, 0.8, EPOCH + 27)


def test_unsure_sightings_count_for_no_start() -> None:
    site = Site(AlertsSpec(min_confidence=0.8, after_frames=2))
    site.see(frame(0), seen(0.9))
    assert site.see(frame(5), seen(0.5)) == []
    assert site.see(frame(10.5), seen(0.9)) == [], "more than hold_off_s after the sure one before"
    assert len(site.see(frame(20.5), seen(0.9))) == 1, "exactly hold_off_s after it"


def test_a_frame_from_before_counts_for_nothing() -> None:
    site = Site(AlertsSpec(after_frames=2))
    site.see(frame(20), seen())
    assert site.see(frame(15), seen(), late=6) == [], "it comes first in the order of arrival, and would begin the run"
    (start,) = site.see(frame(21), seen())
    assert (start.started_at, start.frames) == (EPOCH + 20, 2)
    site.see(frame(19), seen(1.0), late=6)
    (end,) = site.expire(NEVER)
    assert (end.frames, end.confidence) == (2, 0.9)


def test_frames_that_overtake_each_other_end_with_the_newest() -> None:
    site = Site()
    for at in (0, 3, 1, 2):
        site.see(frame(at), seen())
    (end,) = site.expire(NEVER)
    assert (end.frames, end.ended_at, end.result_id) == (4, EPOCH + 3, frame(3).result_id)
    assert end.timestamp == EPOCH + 3


def test_the_alert_shows_the_surest_of_its_class_in_the_frame() -> None:
    site = Site()
    (start,) = site.see(frame(0), seen(0.6, bbox=(0, 0, 1, 1)), seen(0.9, bbox=(5, 5, 9, 9)), seen(0.7, bbox=None))
    assert (start.confidence, start.bbox) == (0.9, (5, 5, 9, 9))


def test_each_class_device_and_model_has_events_of_its_own() -> None:
    site = Site()
    both = site.see(frame(0), seen(), seen(name="smoke"))
    assert [alert.class_name for alert in both] == [NO_HELMET, "smoke"]
    assert len(site.see(frame(1, "camera-02"), seen())) == 1
    assert len(site.see(frame(2), seen(), model="other")) == 1
    assert len({alert.alert_id for alert in site.said}) == 4
    assert site.see(frame(3), seen(), seen(name="forklift")) == []


def test_the_same_start_has_the_same_id_in_another_gateway() -> None:
    first, second = Site(AlertsSpec(after_frames=2)), Site(AlertsSpec(after_frames=2))
    for site in (first, second):
        for at in (5, 6):
            site.see(frame(at), seen())
    assert first.said[0].alert_id == second.said[0].alert_id
    assert first.said[0].result_id == frame(6).result_id, "the frame that made it an event"
    later = Site(AlertsSpec(after_frames=2))
    for at in (6, 7):
        later.see(frame(at), seen())
    assert later.said[0].alert_id != first.said[0].alert_id


def test_a_sighting_after_a_long_gap_ends_and_starts_without_the_timer() -> None:
    site = Site()
    site.see(frame(0), seen())
    site.see(frame(10.5), seen())
    assert site.events == ["start", "end", "start"]
    assert site.said[1].ended_at == EPOCH


def test_a_late_frame_of_an_ended_event_starts_no_other() -> None:
    site = Site()
    site.see(frame(0), seen())
    site.expire(10.5)
    assert site.see(frame(-1), seen(), late=12) == [], "from before it began"
    assert site.see(frame(9), seen(), late=12) == [], "it belongs to what has ended"
    assert site.see(frame(0, received_at=30.0), seen()) == [], "delivered again, long after"
    assert len(site.see(frame(31), seen())) == 1


def test_frames_that_take_longer_than_hold_off_end_nothing() -> None:
    site = Site(AlertsSpec(hold_off_s=1))
    for number in range(50):
        site.see(frame(number / 5), seen(), late=8.0)
        site.expire(site.now)
    assert site.events == ["start"]


def test_raw_pictures_that_do_not_change_are_frames_all_the_same() -> None:
    """They share a result_id, but each has its time of arrival as timestamp."""
    site = Site(AlertsSpec(after_frames=3))
    for at in (0, 1, 2, 3):
        site.see(frame(at, result_id="same"), seen())
    site.expire(NEVER)
    assert [(alert.event, alert.frames) for alert in site.said] == [("start", 3), ("end", 4)]


def test_a_changed_hold_off_holds_from_the_next_sighting_on() -> None:
    site = Site(AlertsSpec(hold_off_s=100))
    site.see(frame(0), seen())
    site.spec = AlertsSpec(hold_off_s=2)
    site.see(frame(1), seen())
    assert site.expire(3) == []
    assert [alert.reason for alert in site.expire(3.5)] == ["gone"]


def test_everything_open_ends_at_once() -> None:
    site = Site(AlertsSpec(after_frames=2))
    for at in (0, 1):
        site.see(frame(at), seen())
        site.see(frame(at), seen(), model="other")
    site.see(frame(1), seen(name="smoke"))
    ends = site.book.end_all("gateway_stopped")
    assert [(alert.event, alert.model_name) for alert in ends] == [("end", MODEL), ("end", "other")]
    assert {alert.reason for alert in ends} == {"gateway_stopped"}
    assert len(site.book) == 0
    assert site.expire(NEVER) == []


def test_an_end_that_was_not_said_comes_once_more_at_the_end() -> None:
    """Its publishing was cancelled, whether the timer, a later frame or another camera had ended the event."""
    site = Site(AlertsSpec(), max_keys=2, said=False)
    site.see(frame(0), seen())
    site.see(frame(20), seen())
    site.see(frame(20, "camera-02"), seen())
    site.see(frame(20, "camera-03"), seen())
    site.expire(31)
    ends = [alert for alert in site.said if alert.event == "end"]
    assert [alert.reason for alert in ends] == ["gone", "too_many", "gone", "gone"]
    assert site.expire(32) == [], "one that is about to be published is not published twice"
    assert site.book.end_all("gateway_stopped") == ends[2:], "the oldest had to make room"
    for alert in (site.said[0], ends[2], ends[2]):
        site.book.said(alert)
    assert site.book.end_all("gateway_stopped") == [ends[3]]


def test_ends_that_are_not_said_are_bounded_by_their_texts() -> None:
    site = Site(max_text=10_000, said=False)
    place = Place("b" * 4_000, "plant", "gw")
    for number in range(5):
        site.see(frame(number, f"camera-{number}", place=place), seen())
        site.expire(NEVER)
    assert [alert.origin.device_id for alert in site.book.end_all("gateway_stopped")] == ["camera-3", "camera-4"]


# --- bounds ------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=10, max_size=60),
    st.integers(1, 5),
    st.integers(1, 2),
)
def test_never_more_than_the_bound_and_what_makes_room_is_ended(
    arriving: list[tuple[int, int]], max_keys: int, after_frames: int
) -> None:
    site = Site(AlertsSpec(after_frames=after_frames), max_keys=max_keys)
    for number, (device, gap) in enumerate(arriving):
        site.see(frame(number + gap * 0.1, f"camera-{device}"), seen())
        assert len(site.book) <= max_keys
    too_many = sum(alert.reason == "too_many" for alert in site.said)
    assert too_many <= site.book.forgotten
    assert too_many == site.book.forgotten or after_frames == 2
    site.said += site.book.end_all("gateway_stopped")
    assert site.events.count("start") == site.events.count("end")


def test_a_flood_of_devices_does_not_end_what_is_seen_all_the_time() -> None:
    site = Site(max_keys=10)
    for number in range(200):
        site.see(frame(number), seen())
        site.see(frame(number, f"invented-{number}"), seen())
    own = [alert for alert in site.said if alert.origin.device_id == "camera-01"]
    assert [alert.event for alert in own] == ["start"]
    assert site.book.forgotten == 191


def test_long_texts_of_senders_are_bounded_too() -> None:
    site = Site(max_text=10_000)
    place = Place("b" * 4_000, "plant", "gw")
    for number in range(5):
        site.see(frame(number, f"camera-{number}", place=place), seen())
    ends = [alert.origin.device_id for alert in site.said if alert.reason == "too_many"]
    assert ends == ["camera-0", "camera-1", "camera-2"]
    site.expire(40)
    for number in range(2):
        site.see(frame(number + 41, f"camera-{number}", place=place), seen())
    assert [alert.reason for alert in site.said[-2:]] == [None, None], "what has ended takes no room"


def test_a_text_counts_as_the_bytes_that_it_may_take() -> None:
    """One sign beyond the usual planes, and Python holds every character of its text in four bytes."""
    site = Site(max_text=10_000)
    place = Place("b" * 1_500 + "\N{FIRE}", "plant", "gw")
    for number in range(2):
        site.see(frame(number, f"camera-{number}", place=place), seen())
    assert [alert.reason for alert in site.said] == [None, None, "too_many"]


def test_an_ended_event_is_forgotten_in_the_end() -> None:
    site = Site()
    site.see(frame(0), seen())
    site.expire(LATE_S)
    assert len(site.book) == 1
    site.expire(LATE_S + 1)
    assert len(site.book) == 0


# --- the message -------------------------------------------------------------------------------------


def test_the_messages_are_flat_and_complete() -> None:
    site = Site(AlertsSpec(severity="critical"))
    trace = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
    site.see(frame(0, trace=trace, correlation_data=b"x"), seen(0.91234567, bbox=(120.126, 340, 280, 520)))
    site.see(frame(4.5), seen(0.97))
    site.see(frame(6), seen(0.95))
    site.expire(NEVER)
    start, end = (alert_publication(alert) for alert in site.said)
    body = json.loads(start.payload)
    shared = {
        "message_type": "ai_alert",
        "alert_id": site.said[0].alert_id,
        "device_id": "camera-01",
        "source": "camera-01",
        "model_name": MODEL,
        "label": NO_HELMET,
        "class_name": NO_HELMET,
        "severity": "critical",
        "started_at": "2023-10-15T16:00:00.000+00:00",
    }
    assert body == {
        **shared,
        "event": "start",
        "timestamp": EPOCH,
        "confidence": 0.912346,
        "bbox": [120.13, 340, 280, 520],
        "ended_at": None,
        "duration_s": None,
        "frames": 1,
        "reason": None,
        "result_id": frame(0).result_id,
    }
    assert json.loads(end.payload) == {
        **shared,
        "event": "end",
        "timestamp": EPOCH + 6,
        "confidence": 0.97,
        "bbox": None,
        "ended_at": "2023-10-15T16:00:06.000+00:00",
        "duration_s": 6.0,
        "frames": 3,
        "reason": "gone",
        "result_id": frame(6).result_id,
    }
    assert list(json.loads(end.payload)) == list(body)
    for publication, event in ((start, "start"), (end, "end")):
        assert (publication.topic, publication.qos, publication.retain) == (TOPIC, 1, False)
        assert publication.content_type == "application/json"
        assert publication.correlation_data is None, "it is no answer to a question"
        about = dict(publication.user_properties)
        assert about["type"] == "ai_alert"
        assert about["id"] == f"{body['alert_id']}-{event}-ai_alert"
        assert about["subject"] == "camera-01"
        assert about["traceparent"] == trace[0][1]


def test_a_class_of_the_whole_picture_has_no_box() -> None:
    site = Site()
    (start,) = site.see(frame(0), seen(bbox=None))
    assert json.loads(alert_publication(start).payload)["bbox"] is None
