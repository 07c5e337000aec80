"""Which predictions count: classes, thresholds, sizes, zones, names, and how many."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.flow.filters import camera_of, keep
from gateway.messages import Outline, Prediction
from gateway.models.inference_spec import CameraSpec, InferenceSpec

WIDTH, HEIGHT = 1920, 1080
PICTURE = (WIDTH, HEIGHT)
Corner = tuple[int, int]
LEFT_HALF = ((0, 0), (0.5, 0), (0.5, 1), (0, 1))
BOW_TIE = ((0.25, 0.25), (0.75, 0.75), (0.75, 0.25), (0.25, 0.75))
PENTAGRAM = ((0.5, 0.1), (0.74, 0.84), (0.12, 0.38), (0.88, 0.38), (0.26, 0.84))


def at(x: float, y: float, **more: Any) -> Prediction:
    """A box of 20 by 40 pixels around a point."""
    given: dict[str, Any] = {"class_name": "person", "class_id": 0, "confidence": 0.9}
    return Prediction(**{**given, "bbox": (x - 10, y - 20, x + 10, y + 20), **more})


def sure(confidence: float, name: str = "person", **more: Any) -> Prediction:
    return at(500, 500, class_name=name, confidence=confidence, **more)


def counts(prediction: Prediction, **camera: Any) -> bool:
    spec = CameraSpec.model_validate(camera)
    return bool(keep((prediction,), InferenceSpec(), spec, PICTURE))


def test_without_a_word_in_the_spec_all_stay_as_they_are() -> None:
    given = (sure(0.9), sure(0.8, "forklift"), Prediction("scrap", 3, 0.2))
    assert keep(given, InferenceSpec(), None, PICTURE) == given
    assert keep((), InferenceSpec(), CameraSpec(regions=(LEFT_HALF,)), PICTURE) == ()


def test_only_the_classes_that_are_asked_for() -> None:
    given = (sure(0.9), sure(0.8, "forklift"), sure(0.7, "person", bbox=None))
    assert keep(given, InferenceSpec(classes=("person",)), None, None) == (given[0], given[2])


def test_a_class_has_the_threshold_of_its_own() -> None:
    given = (sure(0.8), sure(0.79, "forklift"), sure(0.75), sure(0.1, "other"))
    spec = InferenceSpec(class_thresholds={"forklift": 0.79, "person": 0.74})  # a prediction has to be above it
    assert keep(given, spec, None, None) == (given[0], given[2], given[3])


def test_what_is_too_narrow_or_too_low_is_left_out() -> None:
    boxes = [(0, 0, 20, 30), (0, 0, 19.9, 30), (0, 0, 20, 29.9), None]
    given = tuple(sure(0.9, bbox=box) for box in boxes)
    assert keep(given, InferenceSpec(min_size=(20, 30)), None, PICTURE) == (given[0], given[3])


def test_a_class_is_renamed_last_and_keeps_its_id_and_shape() -> None:
    shape = Outline((((0, 0), (1, 0), (1, 1)),))
    given = (sure(0.9, "helmet", class_id=4, mask=shape), sure(0.8, "hat", class_id=5), sure(0.7, "cap"))
    spec = InferenceSpec(
        classes=("helmet", "hat"), class_thresholds={"hat": 0.5}, rename={"helmet": "head", "hat": "head"}
    )
    first, second = keep(given, spec, None, None)
    assert (first.class_name, first.class_id, first.mask, first.bbox) == ("head", 4, shape, given[0].bbox)
    assert (second.class_name, second.class_id) == ("head", 5)


def test_the_most_confident_stay_after_everything_else() -> None:
    outside = at(1500, 500, confidence=0.99)
    inside = tuple(at(100 + n, 500, confidence=n / 10) for n in range(1, 8))
    spec = InferenceSpec(max_detections=3)
    kept = keep((outside, *inside), spec, CameraSpec(regions=(LEFT_HALF,)), PICTURE)
    assert [item.confidence for item in kept] == [0.7, 0.6, 0.5]


def test_what_is_equally_confident_keeps_its_order() -> None:
    given = tuple(sure(0.5, name) for name in "abcd")
    assert keep(given, InferenceSpec(max_detections=3), None, None) == given[:3]


# --- zones -------------------------------------------------------------------------------------------


def test_inside_a_region_and_in_no_ignored_part() -> None:
    door = ((0.1, 0.4), (0.2, 0.4), (0.2, 0.6), (0.1, 0.6))
    assert counts(at(400, 300), regions=[LEFT_HALF], ignore=[door])
    assert not counts(at(300, 540), regions=[LEFT_HALF], ignore=[door])
    assert not counts(at(1500, 540), regions=[LEFT_HALF], ignore=[door])
    assert not counts(at(300, 540), ignore=[door])
    assert counts(at(1500, 540), ignore=[door])
    far = ((0.9, 0), (1, 0), (1, 0.1), (0.9, 0.1))
    assert counts(at(1860, 50), regions=[far, LEFT_HALF])
    assert counts(at(100, 50), regions=[far, LEFT_HALF])


def test_the_anchor_is_the_centre_or_where_a_person_stands() -> None:
    floor = ((0, 0.5), (1, 0.5), (1, 1), (0, 1))
    person = sure(0.9, bbox=(100, 100, 160, 600))
    assert not counts(person, regions=[floor])
    assert counts(person, regions=[floor], anchor="bottom")
    cut_off = sure(0.9, bbox=(100, 700, 160, HEIGHT))
    assert counts(cut_off, regions=[floor], anchor="bottom")


def test_what_has_no_box_is_in_no_zone_and_of_no_size() -> None:
    whole = sure(0.6, bbox=None)
    boxes = (at(1500, 500, confidence=0.9), at(100, 500, confidence=0.5), at(50, 500, confidence=0.8))
    spec = InferenceSpec(min_size=(5, 5))
    kept = keep((whole, *boxes), spec, CameraSpec(regions=(LEFT_HALF,)), PICTURE)
    assert kept == (boxes[2], whole, boxes[1])
    assert keep((whole,), spec, CameraSpec(regions=(LEFT_HALF,)), PICTURE) == (whole,)


def test_without_a_picture_there_are_no_zones() -> None:
    assert keep((at(1500, 500),), InferenceSpec(), CameraSpec(regions=(LEFT_HALF,)), None)


@pytest.mark.parametrize("point", [(960, 540), (960, 0), (0, 0), (0, 1080), (960, 1080), (480, 1080)])
def test_sides_and_corners_belong_to_a_polygon(point: Corner) -> None:
    assert counts(at(*point), regions=[LEFT_HALF])
    assert not counts(at(*point), ignore=[LEFT_HALF])


def test_where_a_polygon_crosses_itself_odd_is_inside() -> None:
    centre = (0.5 * WIDTH, 0.5 * HEIGHT)
    assert not counts(at(*centre), regions=[PENTAGRAM])
    assert counts(at(0.5 * WIDTH, 0.2 * HEIGHT), regions=[PENTAGRAM])
    assert counts(at(*centre), regions=[BOW_TIE])
    assert counts(at(0.3 * WIDTH, 0.5 * HEIGHT), regions=[BOW_TIE])
    assert counts(at(0.7 * WIDTH, 0.5 * HEIGHT), regions=[BOW_TIE])
    assert not counts(at(0.5 * WIDTH, 0.45 * HEIGHT), regions=[BOW_TIE])
    assert not counts(at(0.5 * WIDTH, 0.55 * HEIGHT), regions=[BOW_TIE])


def exactly_inside(corners: list[Corner], point: Corner) -> bool:
    """Even-odd with whole numbers: slow, and without a rounding anywhere."""
    (px, py), odd = point, False
    for (x1, y1), (x2, y2) in itertools.pairwise([*corners, corners[0]]):
        area = (x2 - x1) * (py - y1) - (px - x1) * (y2 - y1)
        if area == 0 and min(x1, x2) <= px <= max(x1, x2) and min(y1, y2) <= py <= max(y1, y2):
            return True
        if (y1 > py) != (y2 > py) and px < x1 + Fraction((py - y1) * (x2 - x1), y2 - y1):
            odd = not odd
    return odd


whole_pixels = st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT))
# A coarse grid, so that sides are often level, meet in points, lie upon each other and pass through what is looked at.
coarse = st.tuples(st.integers(0, 5).map(lambda n: n * 384), st.integers(0, 5).map(lambda n: n * 216))
on_grid = st.tuples(st.lists(coarse, min_size=3, max_size=9), st.lists(coarse, min_size=1, max_size=20))
anywhere = st.tuples(st.lists(whole_pixels, min_size=3, max_size=9), st.lists(whole_pixels, min_size=1, max_size=20))


@st.composite
def on_a_side(draw: st.DrawFn) -> tuple[list[Corner], list[Corner]]:
    """A polygon with a point in the exact middle of a side, slanted as it may be."""
    even = st.tuples(st.integers(0, WIDTH // 2).map(lambda n: 2 * n), st.integers(0, HEIGHT // 2).map(lambda n: 2 * n))
    corners = draw(st.lists(even, min_size=3, max_size=9))
    (x1, y1), (x2, y2) = corners[0], corners[1]
    return corners, [((x1 + x2) // 2, (y1 + y2) // 2)]


@given(st.one_of(on_grid, anywhere, on_a_side()))
@example(([(0, 0), (1920, 1), (0, 2)], [(960, 1), (1919, 1), (1920, 1), (0, 1), (1, 0)]))
def test_zones_are_exact_for_whole_pixels(case: tuple[list[Corner], list[Corner]]) -> None:
    corners, points = case
    polygon = tuple((x / WIDTH, y / HEIGHT) for x, y in corners)
    given = tuple(sure(0.5, class_id=n, bbox=(x, y, x, y)) for n, (x, y) in enumerate(points))
    inside = {n for n, point in enumerate(points) if exactly_inside(corners, point)}
    region = keep(given, InferenceSpec(), CameraSpec(regions=(polygon,)), PICTURE)
    assert {item.class_id for item in region} == inside
    ignored = keep(given, InferenceSpec(), CameraSpec(ignore=(polygon,)), PICTURE)
    assert {item.class_id for item in ignored} == set(range(len(points))) - inside


def test_many_large_polygons_are_looked_at_in_parts() -> None:
    comb = tuple((n / 255, (n % 2) * 0.5) for n in range(256))
    camera = CameraSpec(regions=(comb,) * 64, ignore=(comb,) * 64)
    given = tuple(at(n * 6, 500, confidence=1 - n / 1000) for n in range(300))
    assert keep(given, InferenceSpec(), camera, PICTURE) == ()
    below = CameraSpec(regions=(((0, 0.4), (1, 0.4), (1, 1), (0, 1)),) + (comb,) * 63)
    assert keep(given, InferenceSpec(), below, PICTURE) == given


def test_the_sides_made_for_a_camera_are_no_part_of_what_it_says() -> None:
    one, other = (CameraSpec.model_validate({"regions": [LEFT_HALF]}) for _ in range(2))
    assert len(one.sides.x) == 4
    assert one == other
    assert one.model_dump() == other.model_dump() == CameraSpec(regions=(LEFT_HALF,)).model_dump()


# --- cameras -----------------------------------------------------------------------------------------


def cameras(*names: str) -> dict[str, CameraSpec]:
    return {name: CameraSpec(regions=(LEFT_HALF,)) for name in names}


@pytest.mark.parametrize(
    ("name", "device", "fits"),
    [
        ("camera-01", "camera-01", True),
        ("camera-01", "camera-012", False),
        ("camera-01", "Camera-01", False),
        ("line-*", "line-", True),
        ("line-*", "line-3/left", True),
        ("line-*", "a line-3", False),
        ("cam?", "cam7", True),
        ("cam?", "cam", False),
        ("*", "", True),
        ("*\n*", "a\nb", True),
        ("line[12]", "line1", False),
        ("line[12]", "line[12]", True),
        ("[!a]*", "b", False),
        ("a.b+(c)|$", "a.b+(c)|$", True),
        ("cam1", "cam1\n", False),
    ],
)
def test_only_asterisk_and_question_mark_are_special(name: str, device: str, fits: bool) -> None:
    given = cameras(name)
    assert camera_of(given, device) is (given[name] if fits else None)


def slowly_fits(name: str, device: str) -> bool:
    if not name:
        return not device
    if name[0] == "*":
        return slowly_fits(name[1:], device) or (bool(device) and slowly_fits(name, device[1:]))
    return bool(device) and name[0] in ("?", device[0]) and slowly_fits(name[1:], device[1:])


@given(st.lists(st.text("ab*?[]", max_size=6), max_size=5, unique=True), st.text("ab[]*", max_size=6))
def test_the_first_entry_that_fits_holds(names: list[str], device: str) -> None:
    given = cameras(*names)
    expected = next((given[name] for name in names if slowly_fits(name, device)), None)
    assert camera_of(given, device) is expected


@pytest.mark.timeout(60)  # with backtracking it would not end at all
def test_no_device_id_makes_a_name_expensive() -> None:
    assert camera_of(cameras("*a" * 60 + "b"), "a" * 256) is None
