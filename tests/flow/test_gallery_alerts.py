"""Alerts that are under way are told of, however long ago they began."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.flow import gallery as bounds
from gateway.flow.alerts import Alert
from gateway.flow.gallery import Gallery
from gateway.messages import Publication
from tests.flow.test_gallery import alert


def begin(gallery: Gallery, name: str, device: str = "cam") -> Alert:
    """An alert of this name begins."""
    begun = replace(alert(device), alert_id=name)
    gallery.alerted(begun, Publication("alert", name.encode()))
    return begun


def end(gallery: Gallery, begun: Alert) -> None:
    """It ends."""
    gallery.alerted(replace(begun, event="end"), Publication("alert", f"end of {begun.alert_id}".encode()))


def told(gallery: Gallery, most: int, camera: str | None = None) -> list[str]:
    """The messages of the latest alerts."""
    return [alarm.payload.decode() for alarm in gallery.latest_alerts(most, camera)]


def test_what_is_under_way_comes_before_the_last_messages() -> None:
    gallery = Gallery(pictures=False)
    first = begin(gallery, "long")
    begin(gallery, "other", device="elsewhere")
    for number in range(bounds.MAX_ALERTS):
        end(gallery, begin(gallery, f"short-{number}"))
    last = f"short-{bounds.MAX_ALERTS - 1}"
    assert told(gallery, 2) == ["long", "other", last, f"end of {last}"]
    assert told(gallery, 1, "elsewhere") == ["other"]
    end(gallery, first)
    assert told(gallery, 1) == ["other", "end of long"]


def test_there_are_so_many_under_way_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_OPEN_ALERTS", 3)
    gallery = Gallery(pictures=False)
    for number in range(5):
        begin(gallery, str(number))
    assert told(gallery, 1) == ["2", "3", "4"]
