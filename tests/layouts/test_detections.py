"""The layouts of detectors held against the same arithmetic in plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway import layouts
from gateway.errors import BackendInvalidResponse
from gateway.layouts import Head, named
from gateway.layouts.binding import read
from tests.layouts.plain import (
    Found,
    assert_same,
    decoded,
    from_centre,
    nms,
    rounding_decides,
    sigmoid,
    softmax,
    thresholded,
)

SEEDS = st.integers(0, 2**32 - 1)
WIDTH, HEIGHT = 160, 96
THRESHOLDS = np.array([0.3, 0.6, 0.45], np.float32)
HEAD = Head(classes=3, height=HEIGHT, width=WIDTH, thresholds=0.4, iou_threshold=0.5)
PER_CLASS = Head(classes=3, height=HEIGHT, width=WIDTH, thresholds=THRESHOLDS, iou_threshold=0.5)
HEADS = st.sampled_from([HEAD, PER_CLASS])


def least(head: Head) -> Any:
    return lambda class_id: float(head.thresholds if isinstance(head.thresholds, float) else head.thresholds[class_id])


def above(found: list[Found], head: Head) -> list[Found]:
    """Those above the threshold of their class; another example where rounding alone decides about one."""
    assume(not any(abs(score - least(head)(class_id)) < 1e-6 for score, class_id, _ in found))
    chosen = thresholded(found, least(head))
    assume(not rounding_decides(chosen))
    return chosen


def suppressed(found: list[Found], head: Head) -> list[Found]:
    chosen = above(found, head)
    assume(not rounding_decides(chosen, head.iou_threshold))
    return nms(chosen, head.iou_threshold)


def centred(rng: np.random.Generator, count: int, size: float = 1.0) -> NDArray[np.float32]:
    """Boxes (N, 4) of centre, width and height in clusters, in fractions of `size`."""
    boxes = np.concatenate((rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.1, 0.4, (count, 2))), axis=1)
    found: NDArray[np.float32] = (boxes * size).astype(np.float32)
    return found


def cornered(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.array([from_centre(*box) for box in boxes.tolist()], np.float32)


def scaled(box: tuple[float, ...]) -> tuple[float, float, float, float]:
    return (box[0] * WIDTH, box[1] * HEIGHT, box[2] * WIDTH, box[3] * HEIGHT)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, count=st.integers(1, 60), head=HEADS)
def test_yolov5(seed: int, count: int, head: Head) -> None:
    rng = np.random.default_rng(seed)
    rows = np.concatenate((centred(rng, count, 90), rng.uniform(0, 1, (count, 4)) ** 0.4), axis=1).astype(np.float32)

    every: list[Found] = []
    for cx, cy, w, h, objectness, *classes in rows.tolist():
        class_id = classes.index(max(classes))
        every.append((objectness * classes[class_id], class_id, from_centre(cx, cy, w, h)))

    assert_same(decoded("yolov5", head, output=rows), suppressed(every, head))


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, strides=st.sampled_from([(8, 16, 32), (8, 16, 32, 64)]), head=HEADS)
def test_yolox(seed: int, strides: tuple[int, ...], head: Head) -> None:
    rng = np.random.default_rng(seed)
    cells = [(x, y, s) for s in strides for y in range(HEIGHT // s) for x in range(WIDTH // s)]
    rows = np.concatenate(
        (rng.normal(0, 1, (len(cells), 4)), rng.uniform(0, 1, (len(cells), 4)) ** 0.5), axis=1
    ).astype(np.float32)

    every: list[Found] = []
    for (x, y, stride), (dx, dy, w, h, objectness, *classes) in zip(cells, rows.tolist(), strict=True):
        class_id = classes.index(max(classes))
        box = from_centre((x + dx) * stride, (y + dy) * stride, float(np.exp(w)) * stride, float(np.exp(h)) * stride)
        every.append((objectness * classes[class_id], class_id, box))

    assert_same(decoded("yolox", head, output=rows), suppressed(every, head))


def test_yolox_says_how_many_rows_an_input_has() -> None:
    head = Head(classes=80, height=416, width=640)

    with pytest.raises(BackendInvalidResponse, match="5460 rows, or 5520 with stride 64, this one has 8400"):
        decoded("yolox", head, output=np.zeros((8400, 85), np.float32))


def test_yolox_refuses_sizes_beyond_all_measure_without_a_warning() -> None:
    rows = np.zeros((8 * 8 + 4 * 4 + 2 * 2, 6), np.float32)
    rows[3] = [0, 0, 1000, 0, 1, 1]

    with pytest.raises(BackendInvalidResponse, match="not finite"):
        decoded("yolox", Head(classes=1, height=64, width=64), output=rows)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, count=st.integers(0, 40), head=HEADS)
def test_decided_rows(seed: int, count: int, head: Head) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = centred(rng, count), rng.uniform(0, 1, (count, 1))
    classes = rng.integers(0, 3, (count, 1))
    corners = cornered(boxes).reshape(-1, 4) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    expected = above(
        [(s, c, b) for (s,), (c,), b in zip(scores.tolist(), classes.tolist(), corners.tolist(), strict=True)], head
    )

    def rows(*columns: NDArray[Any]) -> NDArray[np.float32]:
        joined: NDArray[np.float32] = np.concatenate(columns, axis=1).astype(np.float32)
        return joined

    assert_same(decoded("end2end", head, output=rows(corners, scores, classes)), expected)
    assert_same(decoded("rtdetr-end2end", head, output=rows(boxes, scores, classes)), expected)
    batched = rows(np.zeros((count, 1)), corners, classes, scores)
    assert_same(decoded("yolov7-end2end", head, output=batched), expected)


@settings(deadline=None, max_examples=30)
@given(
    seed=SEEDS,
    count=st.integers(0, 40),
    head=HEADS,
    labels=st.sampled_from([np.int64, np.int32, np.uint8, np.float32]),
)
def test_decided_tensors(seed: int, count: int, head: Head, labels: Any) -> None:
    rng = np.random.default_rng(seed)
    boxes = cornered(centred(rng, count, 90)).reshape(-1, 4)
    scores, classes = rng.uniform(0, 1, count).astype(np.float32), rng.integers(0, 3, count)
    expected = above(list(zip(scores.tolist(), classes.tolist(), boxes.tolist(), strict=True)), head)

    assert_same(decoded("boxes", head, boxes=boxes, scores=scores, labels=classes.astype(labels)), expected)
    with_background = (classes + 1).astype(labels)
    assert_same(decoded("torchvision", head, boxes=boxes, scores=scores, labels=with_background), expected)


def test_what_has_decided_is_not_suppressed_again() -> None:
    rows = np.array([[10, 10, 50, 50, 0.9, 1]] * 3, np.float32)

    assert len(decoded("end2end", HEAD, output=rows).boxes) == 3


def test_rows_that_fill_up_may_be_anything_with_a_low_score() -> None:
    rows = np.array([[10, 10, 50, 50, 0.9, 1], [np.nan, np.inf, 0, 0, 0, -1], [0, 0, 0, 0, -1, 7.5]], np.float32)

    assert decoded("end2end", HEAD, output=rows).class_ids.tolist() == [1]


@pytest.mark.parametrize(
    "row",
    [
        [10, np.nan, 50, 50, 0.9, 1],
        [10, 10, 50, 50, np.nan, 1],
        [10, 10, 50, 50, 0.9, np.nan],
        [10, 10, 50, 50, 0.9, -1],
        [10, 10, 50, 50, 0.9, 3],
        [10, 10, 50, 50, 0.9, 0.5],
        [10, 10, 50, 50, 0.9, 1e30],
        [10, 10, 50, 50, 9.0, 1],
    ],
)
def test_rows_that_make_no_sense_are_refused(row: list[float]) -> None:
    with pytest.raises(BackendInvalidResponse):
        decoded("end2end", HEAD, output=np.array([row], np.float32))


def test_labels_are_checked_in_the_models_own_counting() -> None:
    some = {"boxes": np.array([[1, 1, 5, 5]], np.float32), "scores": np.array([0.9], np.float32)}

    for label in (0, 4, -1):
        with pytest.raises(BackendInvalidResponse, match=f"class {label} is not one of the whole numbers 1 to 3"):
            decoded("torchvision", HEAD, labels=np.array([label]), **some)
    with pytest.raises(BackendInvalidResponse, match="from 0 on"):
        decoded("boxes", Head(), labels=np.array([-1]), **some)


def test_another_picture_of_the_batch_is_refused() -> None:
    with pytest.raises(BackendInvalidResponse, match="batch number 1"):
        decoded("yolov7-end2end", HEAD, output=np.array([[1, 10, 10, 50, 50, 2, 0.9]], np.float32))


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, count=st.integers(1, 40), head=HEADS)
def test_detr(seed: int, count: int, head: Head) -> None:
    rng = np.random.default_rng(seed)
    boxes, logits = centred(rng, count), rng.normal(0, 3, (count, 4)).astype(np.float32)
    every: list[Found] = []
    for box, row in zip(boxes.tolist(), logits.tolist(), strict=True):
        shares = softmax(row)[:-1]
        every.append((max(shares), shares.index(max(shares)), scaled(from_centre(*box))))

    assert_same(decoded("detr", head, boxes=boxes, logits=logits), above(every, head))


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, count=st.integers(1, 40), head=HEADS, limit=st.integers(1, 50))
def test_rt_detr(seed: int, count: int, head: Head, limit: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, logits = centred(rng, count), rng.normal(0, 2, (count, 3)).astype(np.float32)
    every = [
        (sigmoid(logit), class_id, scaled(from_centre(*box)))
        for box, row in zip(boxes.tolist(), logits.tolist(), strict=True)
        for class_id, logit in enumerate(row)
    ]
    best = sorted(above(every, head), key=lambda each: -each[0])[: min(limit, count)]
    head = Head(3, HEIGHT, WIDTH, head.thresholds, max_detections=limit)

    assert_same(decoded("rt-detr", head, boxes=boxes, logits=logits), best)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, count=st.integers(1, 40), head=HEADS)
def test_rtdetr_ultralytics(seed: int, count: int, head: Head) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = centred(rng, count), rng.uniform(0, 1, (count, 3)).astype(np.float32)
    every = [
        (max(row), row.index(max(row)), scaled(from_centre(*box)))
        for box, row in zip(boxes.tolist(), scores.tolist(), strict=True)
    ]

    found = decoded("rtdetr-ultralytics", head, output=np.concatenate((boxes, scores), axis=1))
    assert_same(found, above(every, head))


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, count=st.integers(1, 40), head=HEADS)
def test_every_class_of_a_box_counts(seed: int, count: int, head: Head) -> None:
    rng = np.random.default_rng(seed)
    boxes, logits = cornered(centred(rng, count)), rng.normal(0, 1.5, (count, 4)).astype(np.float32)
    with_background = np.array([softmax(row) for row in logits.tolist()], np.float32)
    every = [
        (score, class_id, scaled(tuple(box)))
        for box, row in zip(boxes.tolist(), with_background[:, 1:].tolist(), strict=True)
        for class_id, score in enumerate(row)
    ]
    expected = suppressed(every, head)

    assert_same(decoded("ssd", head, boxes=boxes, scores=with_background), expected)
    pixels = (boxes * [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32)
    assert_same(decoded("yolo-nas", head, boxes=pixels, scores=with_background[:, 1:].copy()), expected)


def with_setting(head: Head, **changed: Any) -> Head:
    return Head(head.classes, head.height, head.width, head.thresholds, head.iou_threshold, **changed)


def test_what_the_model_leaves_open_can_be_said() -> None:
    box = np.array([[0.1, 0.2, 0.5, 0.6]], np.float32)
    scores = np.array([[0.1, 0.8, 0.05, 0.05]], np.float32)
    usual = decoded("ssd", HEAD, boxes=box, scores=scores)
    np.testing.assert_allclose(usual.boxes, [[16, 19.2, 80, 57.6]], atol=1e-4)
    assert usual.class_ids.tolist() == [0]

    tensorflow = with_setting(HEAD, box_format="yxyx")
    np.testing.assert_allclose(decoded("ssd", tensorflow, boxes=box, scores=scores).boxes, [[32, 9.6, 96, 48]])
    last = with_setting(HEAD, background="last", box_units="pixels", box_format="cxcywh")
    found = decoded("ssd", last, boxes=box * 100, scores=scores)
    np.testing.assert_allclose(found.boxes, [[-15, -10, 35, 50]], atol=1e-4)
    assert found.class_ids.tolist() == [1]
    raw = with_setting(HEAD, activation="softmax")
    np.testing.assert_allclose(decoded("ssd", raw, boxes=box, scores=np.log(scores)).scores, [0.8], atol=1e-5)


DETECTORS = [name for name in layouts.names() if named(name).task == "object-detection"]


def example(name: str, seed: int = 0, count: int = 315) -> dict[str, NDArray[np.float32]]:
    """Outputs of a layout that make sense."""
    rng = np.random.default_rng(seed)
    boxes, scores = cornered(centred(rng, count)), rng.uniform(0, 0.9, (count, 4)).astype(np.float32)
    classes = rng.integers(1, 3, (count, 1)).astype(np.float32)
    zeros = np.zeros((count, 1), np.float32)
    outputs: dict[str, dict[str, NDArray[np.float32]]] = {
        "yolov8": {"output": np.concatenate((boxes, scores[:, 1:]), axis=1).T},
        "yolov5": {"output": np.concatenate((boxes, scores), axis=1)},
        "yolox": {"output": np.concatenate((boxes, scores), axis=1)},
        "end2end": {"output": np.concatenate((boxes, scores[:, :1], classes), axis=1)},
        "rtdetr-end2end": {"output": np.concatenate((boxes, scores[:, :1], classes), axis=1)},
        "yolov7-end2end": {"output": np.concatenate((zeros, boxes, classes, scores[:, :1]), axis=1)},
        "boxes": {"boxes": boxes, "scores": scores[:, 0], "labels": classes[:, 0]},
        "torchvision": {"boxes": boxes, "scores": scores[:, 0], "labels": classes[:, 0]},
        "detr": {"boxes": boxes, "logits": scores * 4},
        "rt-detr": {"boxes": boxes, "logits": scores[:, 1:]},
        "rtdetr-ultralytics": {"output": np.concatenate((boxes, scores[:, 1:]), axis=1)},
        "ssd": {"boxes": boxes, "scores": scores},
        "yolo-nas": {"boxes": boxes, "scores": scores[:, 1:]},
    }
    return outputs[name]


YOLOX_ROWS = 20 * 12 + 10 * 6 + 5 * 3


@pytest.mark.parametrize("name", DETECTORS)
def test_the_usual_settings_are_those_that_are_announced(name: str) -> None:
    outputs = example(name, count=YOLOX_ROWS)
    usual = decoded(name, HEAD, **outputs)
    assert len(usual.boxes)
    changed: dict[str, Any] = {key: values[0] for key, values in named(name).settings.items()}

    said = decoded(name, with_setting(HEAD, **changed), **outputs)

    np.testing.assert_array_equal(said.boxes, usual.boxes)
    np.testing.assert_array_equal(said.scores, usual.scores)
    np.testing.assert_array_equal(said.class_ids, usual.class_ids)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_score_is_read_that_is_not_finite(name: str, value: float) -> None:
    outputs = {role: array.copy() for role, array in example(name, count=YOLOX_ROWS).items()}
    place: dict[str, tuple[str, Any]] = {
        "yolov8": ("output", (5, 3)),
        "yolov7-end2end": ("output", (3, 6)),
        "boxes": ("scores", 3),
        "torchvision": ("scores", 3),
        "detr": ("logits", (3, 0)),
        "rt-detr": ("logits", (3, 0)),
        "ssd": ("scores", (3, 1)),
        "yolo-nas": ("scores", (3, 1)),
    }
    role, where = place.get(name, ("output", (3, 4)))
    outputs[role][where] = value

    with pytest.raises(BackendInvalidResponse, match="not finite"):
        decoded(name, HEAD, **outputs)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_are_read(name: str, dtype: Any) -> None:
    outputs = {role: array.astype(dtype) for role, array in example(name, count=YOLOX_ROWS).items()}
    single = {role: array.astype(np.float32) for role, array in outputs.items()}

    found, expected = decoded(name, HEAD, **outputs), decoded(name, HEAD, **single)

    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_limit_keeps_the_best(name: str) -> None:
    outputs = example(name, count=YOLOX_ROWS)
    everything, few = decoded(name, HEAD, **outputs), decoded(name, with_setting(HEAD, max_detections=2), **outputs)

    np.testing.assert_array_equal(few.scores, everything.scores[:2])
    np.testing.assert_array_equal(few.boxes, everything.boxes[:2])


@pytest.mark.parametrize("name", DETECTORS)
def test_nothing_found_has_the_shapes_of_nothing(name: str) -> None:
    head = Head(classes=3, height=HEIGHT, width=WIDTH, thresholds=1.0)

    found = read(named(name), example(name, count=YOLOX_ROWS), head)

    assert isinstance(found, layouts.Detections)
    assert (found.boxes.shape, found.scores.shape, found.class_ids.shape) == ((0, 4), (0,), (0,))


def test_a_setting_that_does_not_belong_to_the_layout() -> None:
    assert named("detr").objection("background", "first") == ""
    assert named("detr").objection("background", "none") == "background of the layout 'detr' is last or first, not none"
    assert named("yolov8").objection("box_format", "xyxy") == "the layout 'yolov8' does not read box_format"


@pytest.mark.parametrize("name", layouts.names())
def test_every_layout_says_what_it_is(name: str) -> None:
    assert named(name).summary.endswith(".")
    assert named(name).expects
