"""What the console shows is bounded, whatever comes, and holds no picture while nobody looks."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.flow import gallery as gallery_module
from gateway.flow import kept_pictures
from gateway.flow.agreements import MAX_VARIANTS, Agreements, Verdict
from gateway.flow.alerts import Alert
from gateway.flow.gallery import (
    FORGOTTEN_AFTER_S,
    LARGEST,
    MAX_BYTES,
    MAX_CAMERAS,
    MAX_ENTRIES,
    MAX_OF_CAMERA,
    Gallery,
)
from gateway.flow.kept_pictures import LOOK_S
from gateway.messages import Origin, Publication
from tests.flow.builders import answer_to, origin


def about(device_id: str, result_id: str = "r") -> Origin:
    """A snapshot of a camera."""
    return origin(device_id=device_id, result_id=result_id, model_name="detector", received_at=time.monotonic())


def compared(match: bool | None, *variants: str) -> Verdict:
    """Two variants that agree, or do not, or of which one failed."""
    return Verdict(match, tuple((name, 2.0) for name in variants or ("onnx", "torch")))


def see(gallery: Gallery, snapshot: Origin, payload: bytes, picture: bytes = b"") -> None:
    """A result on its way and then published, as the flow tells of it."""
    gallery.pictures.hold(snapshot.result_id, picture)
    gallery.answered(answer_to(snapshot, payload))


def alert(device_id: str) -> Alert:
    """The start of an alert."""
    place = origin(device_id=device_id)
    return Alert("a", "start", "alerts", place, "detector", "person", "high", 0, place.result_id, 0.9, None, 1, 0.0)


def totals(gallery: Gallery) -> tuple[int, int]:
    """Entries and bytes, counted anew."""
    cameras = gallery.cameras.values()
    size = sum(len(entry.payload) for camera in cameras for entry in camera.history)
    size += sum(len(camera.pair.payload) for camera in cameras if camera.pair)
    return sum(len(camera.history) for camera in cameras), size


def test_ten_thousand_invented_cameras_take_no_more_room_than_there_is() -> None:
    gallery = Gallery(pictures=True)
    gallery.pictures.look()
    for number in range(10_000):
        see(gallery, about(f"invented-{number}"), bytes(100), bytes(50_000))
    assert len(gallery.cameras) == MAX_CAMERAS
    assert list(gallery.cameras)[-1] == "invented-9999"
    assert gallery.pictures.size <= kept_pictures.MAX_BYTES
    assert totals(gallery)[1] == gallery.size


def test_of_few_cameras_each_has_its_whole_history_and_of_many_an_equal_share() -> None:
    gallery = Gallery(pictures=False)
    for _ in range(MAX_OF_CAMERA + 5):
        see(gallery, about("fast"), b"{}")
    assert len(gallery.cameras["fast"].history) == MAX_OF_CAMERA
    for _ in range(MAX_OF_CAMERA):
        for number in range(199):
            see(gallery, about(f"cam-{number}"), b"{}")
    entries = totals(gallery)[0]
    assert entries <= MAX_ENTRIES
    assert {len(camera.history) for camera in gallery.cameras.values()} == {MAX_ENTRIES // 200}


def test_a_camera_with_huge_results_takes_from_itself_alone() -> None:
    gallery = Gallery(pictures=False)
    for number in range(20):
        see(gallery, about(f"small-{number}"), bytes(500))
    for _ in range(100):
        see(gallery, about("huge"), bytes(LARGEST))
    assert len(gallery.cameras) == 21
    assert gallery.size <= MAX_BYTES
    see(gallery, about("huge"), bytes(LARGEST + 1))
    latest = gallery.cameras["huge"].history[-1]
    assert latest.failed
    assert b"RESULT_TOO_LARGE" in latest.payload


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["see", "fail", "compare", "alert"]),
            st.integers(0, 30),
            st.sampled_from([0, 10, 3000, LARGEST, LARGEST + 1]),
            st.sampled_from([True, False, None]),
        ),
        max_size=60,
    )
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_its_books_are_right_whatever_comes(events: list[tuple[str, int, int, bool | None]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MAX_CAMERAS", 9), ("MAX_ENTRIES", 40), ("MAX_BYTES", 2 * LARGEST)):
            patch.setattr(gallery_module, name, value)
        gallery = Gallery(pictures=True)
        gallery.pictures.look()
        for number, (what, camera, size, match) in enumerate(events):
            snapshot = about(f"cam-{camera}", f"result-{number}")
            if what == "see":
                see(gallery, snapshot, bytes(size), bytes(10))
            elif what == "fail":
                gallery.failed(snapshot, Publication("error", bytes(size)))
            elif what == "compare":
                gallery.pictures.hold(snapshot.result_id, bytes(10))
                gallery.answered(answer_to(snapshot, b"{}", compared(match), bytes(size)))
            else:
                gallery.alerted(alert(f"cam-{camera}"), Publication("alert", bytes(size)))
            entries, held = totals(gallery)
            assert held == gallery.size
            assert entries <= max(40, len(gallery.cameras))
            assert len(gallery.cameras) <= 9
            assert gallery.size <= 2 * LARGEST or len(gallery.cameras) == 1
            assert all(camera.history for camera in gallery.cameras.values())


def test_the_latest_of_each_camera_that_has_changed() -> None:
    gallery = Gallery(pictures=False)
    for name in ("a", "b", "a", "c"):
        see(gallery, about(name), b"{}")
    since = gallery.number
    see(gallery, about("b"), b"{}")
    see(gallery, about("b"), b"{}")
    assert [entry.camera for entry in gallery.changed(-1)] == ["a", "c", "b"]
    assert [(entry.camera, entry.number) for entry in gallery.changed(since)] == [("b", since + 2)]


def test_a_result_that_is_published_late_does_not_take_the_place_of_a_newer_one() -> None:
    gallery = Gallery(pictures=True)
    gallery.pictures.look()
    first, second, third, fourth = (about("a", f"r-{number}") for number in range(4))
    for snapshot in (first, second, third):
        gallery.pictures.hold(snapshot.result_id, snapshot.result_id.encode())
    for snapshot in (first, third, second):
        gallery.answered(answer_to(snapshot, b"{}"))
    history = gallery.cameras["a"].history
    assert [entry.result_id for entry in history] == ["r-0", "r-1", "r-2"]
    assert [entry.result_id for entry in gallery.changed(-1)] == ["r-2"]
    assert gallery.pictures.of_result("a", "r-2") is not None
    last = about("a", "r-4")
    gallery.failed(last, Publication("error", b"{}"))
    gallery.answered(answer_to(fourth, b"{}"))
    assert history[-1].result_id == "r-3", "while the newest are refused, results are still seen"


def test_no_picture_is_kept_while_nobody_looks_nor_where_there_shall_be_none() -> None:
    gallery, without = Gallery(pictures=True), Gallery(pictures=False)
    see(gallery, about("a"), b"{}", b"picture")
    without.pictures.look()
    see(without, about("a"), b"{}", b"picture")
    assert gallery.pictures.of_camera("a") is None
    assert without.pictures.of_camera("a") is None
    gallery.pictures.look()
    see(gallery, about("a", "r-1"), b"{}", b"picture")
    kept = gallery.pictures.of_camera("a")
    assert kept is not None
    assert (kept[0].result_id, kept[1]) == ("r-1", b"picture")
    gallery.tidy(time.monotonic() + LOOK_S - 5)
    assert gallery.pictures.of_camera("a") is kept
    gallery.tidy(time.monotonic() + LOOK_S + 5)
    assert gallery.pictures.of_camera("a") is None
    assert (gallery.pictures.size, gallery.pictures.watched) == (0, False)


def test_pictures_that_somebody_asks_for_stay_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_pictures, "MAX_BYTES", 1000)
    gallery = Gallery(pictures=True)
    pictures = gallery.pictures
    see(gallery, about("wanted"), b"{}")
    pictures.look("wanted")
    see(gallery, about("wanted"), b"{}", bytes(400))
    for number in range(5):
        see(gallery, about(f"other-{number}"), b"{}", bytes(400))
    assert pictures.of_camera("wanted") is not None
    assert pictures.of_camera("other-4") is not None
    assert pictures.of_camera("other-3") is None
    see(gallery, about("wanted"), b"{}", bytes(1001))
    kept = pictures.of_camera("wanted")
    assert kept is not None
    assert len(kept[1]) == 400, "the last one that there is room for, with its own result"
    assert pictures.size <= 1000


@pytest.mark.parametrize("asked", [(), ("real-0", "real-1", "real-2"), ("large-0", "large-1", "real-0", "real-1")])
def test_a_camera_with_large_pictures_takes_from_itself_alone(asked: tuple[str, ...]) -> None:
    gallery = Gallery(pictures=True)
    pictures = gallery.pictures
    pictures.look()
    for name in asked:
        pictures.look(name)
    for number in range(20):
        see(gallery, about(f"real-{number}"), b"{}", bytes(100_000))
    for round_ in range(3):
        for number in range(2):
            see(gallery, about(f"large-{number}", f"r-{round_}"), b"{}", bytes(8 * 2**20))
            assert pictures.size <= kept_pictures.MAX_BYTES
    here = {f"real-{number}" for number in range(20) if pictures.of_camera(f"real-{number}")}
    assert here >= {name for name in asked if name.startswith("real")}
    if "large-0" not in asked:
        assert len(here) == 20


def test_large_pictures_on_which_variants_disagree_push_no_camera_out() -> None:
    gallery = Gallery(pictures=True)
    pictures = gallery.pictures
    pictures.look()
    for number in range(20):
        see(gallery, about(f"real-{number}"), b"{}", bytes(100_000))
    for number in range(6):
        snapshot = about(f"large-{number % 2}", f"r-{number}")
        pictures.hold(snapshot.result_id, bytes(6 * 2**20))
        gallery.answered(answer_to(snapshot, b"{}", compared(False)))
        assert pictures.size <= kept_pictures.MAX_BYTES
    assert all(pictures.of_camera(f"real-{number}") for number in range(20))


def test_a_large_picture_that_waits_for_the_broker_blinds_nobody() -> None:
    gallery = Gallery(pictures=True)
    pictures = gallery.pictures
    for number in range(100):
        pictures.look(f"cam-{number}")
        see(gallery, about(f"cam-{number}"), b"{}", bytes(120_000))
    pictures.hold("waits", bytes(8 * 2**20))
    assert pictures.size <= kept_pictures.MAX_BYTES
    assert all(pictures.of_camera(f"cam-{number}") for number in range(100))


def test_a_disagreement_keeps_its_picture_when_the_camera_has_a_newer_one() -> None:
    gallery = Gallery(pictures=True)
    gallery.pictures.look()
    for number, match in enumerate((False, True, None)):
        snapshot = about("a", f"r-{number}")
        gallery.pictures.hold(snapshot.result_id, b"picture %d" % number)
        gallery.answered(answer_to(snapshot, b"{}", compared(match)))
    kept = gallery.pictures.find("r-0")
    assert kept is not None
    assert kept[1] == b"picture 0"
    assert gallery.pictures.find("r-1") is None
    assert [pair.result_id for pair in gallery.disagreements()] == ["r-0"]
    ((_, agreement),) = gallery.agreements
    assert agreement.totals == [1, 1, 1]
    assert sum(agreement.latency["torch"].counts) == 3


def test_every_comparison_counts_however_late_or_early_it_comes() -> None:
    gallery = Gallery(pictures=True)
    gallery.pictures.look()
    late = [about(f"cam-{number}", f"late-{number}") for number in range(MAX_CAMERAS)]
    for _ in range(5):  # more than the share of a camera
        for snapshot in late:
            see(gallery, about(snapshot.device_id), b"{}")
    for snapshot in late:
        gallery.compare(snapshot, compared(False), b"{}", "shadow", b"picture")
    early = about("new", "early")
    gallery.pictures.hold("early", b"seen early")
    gallery.compare(early, compared(False), b"{}", "shadow", b"seen early")
    assert gallery.pictures.find("early") is None, "there is no result to show with it"
    gallery.answered(answer_to(early, b"{}"))
    see(gallery, about("new"), b"{}", b"another")
    ((key, agreement),) = gallery.agreements
    assert (key, agreement.totals) == (("detector", "shadow"), [0, MAX_CAMERAS + 1, 0])
    kept = gallery.pictures.find("early")
    assert kept is not None
    assert kept[1] == b"seen early"


def test_pictures_of_results_that_wait_for_the_broker_take_no_more_than_their_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_pictures, "MAX_BYTES", 4000)
    gallery = Gallery(pictures=True)
    pictures = gallery.pictures
    pictures.look()
    for number in range(20):
        see(gallery, about(f"cam-{number}"), b"{}", bytes(300))
    waiting = [about("away", f"waits-{number}") for number in range(50)]
    for snapshot in waiting:
        pictures.hold(snapshot.result_id, bytes(300))
        assert pictures.size <= 4000
    assert pictures.of_camera("cam-19") is not None
    for snapshot in waiting:
        gallery.answered(answer_to(snapshot, b"{}"))
    assert pictures.find("waits-49") is not None
    assert pictures.find("waits-48") is None, "a newer one has come"
    pictures.hold("fails", bytes(300))
    before = pictures.size
    gallery.failed(about("away", "fails"), Publication("error", b"{}"))
    assert pictures.size == before - 300


def test_after_invented_cameras_a_real_one_has_its_whole_history() -> None:
    gallery = Gallery(pictures=False)
    for number in range(600):
        see(gallery, about(f"invented-{number}"), b"{}")
    for _ in range(100):
        see(gallery, about("cam"), b"{}")
    assert len(gallery.cameras["cam"].history) == MAX_OF_CAMERA


def test_a_camera_that_is_silent_for_a_day_is_not_listed_any_more() -> None:
    gallery = Gallery(pictures=True)
    gallery.pictures.look()
    see(gallery, about("dead"), b"{}", b"picture")
    snapshot = replace(about("alive"), received_at=time.monotonic() + FORGOTTEN_AFTER_S)
    see(gallery, snapshot, b"{}")
    gallery.tidy(time.monotonic() + FORGOTTEN_AFTER_S - 60)
    assert list(gallery.cameras) == ["dead", "alive"]
    gallery.tidy(time.monotonic() + FORGOTTEN_AFTER_S + 60)
    assert list(gallery.cameras) == ["alive"]
    assert totals(gallery)[1] == gallery.size
    assert gallery.pictures.of_camera("dead") is None


def test_a_rate_does_not_hang_on_how_many_results_are_kept() -> None:
    gallery = Gallery(pictures=False)
    for number in range(100):
        see(gallery, about(f"cam-{number}"), bytes(LARGEST))
    now = 1000.0
    for _ in range(50):
        now += 0.2
        see(gallery, replace(about("fast"), received_at=now), bytes(LARGEST))
    camera = gallery.cameras["fast"]
    assert len(camera.history) == 1, "there is no room for more"
    assert camera.rate_per_s(now) == pytest.approx(5.0)
    assert camera.rate_per_s(now + 3600) == 0.0


def test_the_times_of_versions_of_old_rollouts_make_room() -> None:
    agreements = Agreements()
    for version in range(1, 100):
        agreements.count("m", "shadow", compared(True, f"onnx v{version}", f"onnx v{version + 1}"), float(version))
    ((_, agreement),) = agreements
    assert list(agreement.latency)[-2:] == ["onnx v99", "onnx v100"]
    assert len(agreement.latency) == MAX_VARIANTS
    assert sum(agreement.latency["onnx v99"].counts) == 2


def test_disagreements_have_a_limit_of_bytes_too() -> None:
    gallery = Gallery(pictures=False)
    for number in range(60):
        snapshot = about("a", f"r-{number}")
        gallery.answered(answer_to(snapshot, b"{}", compared(False), bytes(LARGEST // 2)))
    kept = list(gallery.disagreements())
    assert kept[0].result_id == "r-59"
    assert sum(len(pair.payload) for pair in kept) <= gallery_module.MAX_DISAGREEMENT_BYTES
