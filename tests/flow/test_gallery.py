"""What the console shows is bounded, whatever comes, and holds no picture while nobody looks."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.errors import Outcome
from gateway.flow import gallery as gallery_module
from gateway.flow import kept_pictures
from gateway.flow.gallery import LARGEST, MAX_BYTES, MAX_CAMERAS, MAX_ENTRIES, MAX_OF_CAMERA, Gallery
from gateway.flow.kept_pictures import LOOK_S
from gateway.messages import Agreement, Comparison, Origin, VariantResult
from tests.flow.builders import origin


def about(device_id: str, result_id: str = "r") -> Origin:
    """A snapshot of a camera."""
    return origin(device_id=device_id, result_id=result_id, model_name="detector", received_at=time.monotonic())


def compared(match: bool | None) -> Comparison:
    """Two variants that agree, or do not, or of which one failed."""
    results = VariantResult("onnx", "1", 2.0), VariantResult("torch", "1", 30.0)
    agreement = None if match is None else Agreement(1, 0 if match else 1, 0, 0, None, None)
    return Comparison(*results, agreement)


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
        gallery.see(about(f"invented-{number}"), bytes(100), bytes(50_000))
    assert len(gallery.cameras) == MAX_CAMERAS
    assert list(gallery.cameras)[-1] == "invented-9999"
    assert gallery.pictures.size <= kept_pictures.MAX_BYTES
    assert totals(gallery)[1] == gallery.size


def test_of_few_cameras_each_has_its_whole_history_and_of_many_an_equal_share() -> None:
    gallery = Gallery(pictures=False)
    for _ in range(MAX_OF_CAMERA + 5):
        gallery.see(about("fast"), b"{}")
    assert len(gallery.cameras["fast"].history) == MAX_OF_CAMERA
    for _ in range(MAX_OF_CAMERA):
        for number in range(199):
            gallery.see(about(f"cam-{number}"), b"{}")
    entries = totals(gallery)[0]
    assert entries <= MAX_ENTRIES
    assert {len(camera.history) for camera in gallery.cameras.values()} == {MAX_ENTRIES // 200}


def test_a_camera_with_huge_results_takes_from_itself_alone() -> None:
    gallery = Gallery(pictures=False)
    for number in range(20):
        gallery.see(about(f"small-{number}"), bytes(500))
    for _ in range(100):
        gallery.see(about("huge"), bytes(LARGEST))
    assert len(gallery.cameras) == 21
    assert gallery.size <= MAX_BYTES
    gallery.see(about("huge"), bytes(LARGEST + 1))
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
                gallery.see(snapshot, bytes(size), bytes(10))
            elif what == "fail":
                gallery.fail(snapshot, bytes(size), Outcome.FAILED)
            elif what == "compare":
                gallery.see(snapshot, b"{}", bytes(10))
                gallery.compare(snapshot, compared(match), bytes(size), "dual", bytes(10))
            else:
                gallery.alert(f"cam-{camera}", bytes(size))
            entries, held = totals(gallery)
            assert held == gallery.size
            assert entries <= max(40, len(gallery.cameras))
            assert len(gallery.cameras) <= 9
            assert gallery.size <= 2 * LARGEST or len(gallery.cameras) == 1
            assert all(camera.history for camera in gallery.cameras.values())


def test_the_latest_of_each_camera_that_has_changed() -> None:
    gallery = Gallery(pictures=False)
    for name in ("a", "b", "a", "c"):
        gallery.see(about(name), b"{}")
    since = gallery.number
    gallery.see(about("b"), b"{}")
    gallery.see(about("b"), b"{}")
    assert [entry.camera for entry in gallery.changed(-1, 10)] == ["a", "c", "b"]
    assert [(entry.camera, entry.number) for entry in gallery.changed(since, 10)] == [("b", since + 2)]
    assert [entry.camera for entry in gallery.changed(-1, 2)] == ["c", "b"]


def test_no_picture_is_kept_while_nobody_looks_nor_where_there_shall_be_none() -> None:
    gallery, without = Gallery(pictures=True), Gallery(pictures=False)
    gallery.see(about("a"), b"{}", b"picture")
    without.pictures.look()
    without.see(about("a"), b"{}", b"picture")
    assert gallery.pictures.of_camera("a") is None
    assert without.pictures.of_camera("a") is None
    gallery.pictures.look()
    gallery.see(about("a", "r-1"), b"{}", b"picture")
    kept = gallery.pictures.of_camera("a")
    assert kept is not None
    assert (kept[0].result_id, kept[1]) == ("r-1", b"picture")
    gallery.pictures.expire(time.monotonic() + LOOK_S - 5)
    assert gallery.pictures.of_camera("a") is kept
    gallery.pictures.expire(time.monotonic() + LOOK_S + 5)
    assert gallery.pictures.of_camera("a") is None
    assert (gallery.pictures.size, gallery.pictures.watched) == (0, False)


def test_pictures_that_somebody_asks_for_stay_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_pictures, "MAX_BYTES", 1000)
    gallery = Gallery(pictures=True)
    pictures = gallery.pictures
    gallery.see(about("wanted"), b"{}")
    pictures.look("wanted")
    gallery.see(about("wanted"), b"{}", bytes(400))
    for number in range(5):
        gallery.see(about(f"other-{number}"), b"{}", bytes(400))
    assert pictures.of_camera("wanted") is not None
    assert pictures.of_camera("other-4") is not None
    assert pictures.of_camera("other-3") is None
    gallery.see(about("wanted"), b"{}", bytes(1001))
    assert pictures.of_camera("wanted") is None
    assert pictures.size <= 1000


def test_a_disagreement_keeps_its_picture_when_the_camera_has_a_newer_one() -> None:
    gallery = Gallery(pictures=True)
    gallery.pictures.look()
    for number, match in enumerate((False, True, None)):
        snapshot = about("a", f"r-{number}")
        gallery.see(snapshot, b"{}", b"picture %d" % number)
        gallery.compare(snapshot, compared(match), b'{"pair": %d}' % number, "dual", b"picture %d" % number)
    kept = gallery.pictures.find("r-0")
    assert kept is not None
    assert kept[1] == b"picture 0"
    assert gallery.pictures.find("r-1") is None
    assert [pair.result_id for pair in gallery.disagreements()] == ["r-0"]
    ((_, agreement),) = gallery.agreements
    assert agreement.totals == [1, 1, 1]
    assert sum(agreement.latency["torch"].counts) == 3


def test_a_comparison_of_a_result_that_it_has_not_seen_is_nobodys() -> None:
    gallery = Gallery(pictures=True)
    gallery.see(about("a", "r-1"), b"{}")
    gallery.compare(about("a", "asked-directly"), compared(False), b"{}", "shadow", b"picture")
    assert list(gallery.disagreements()) == []
    assert gallery.cameras["a"].pair is None


def test_disagreements_have_a_limit_of_bytes_too() -> None:
    gallery = Gallery(pictures=False)
    for number in range(60):
        snapshot = about("a", f"r-{number}")
        gallery.see(snapshot, b"{}")
        gallery.compare(snapshot, compared(False), bytes(LARGEST // 2), "dual")
    kept = list(gallery.disagreements())
    assert kept[0].result_id == "r-59"
    assert sum(len(pair.payload) for pair in kept) <= gallery_module.MAX_DISAGREEMENT_BYTES
