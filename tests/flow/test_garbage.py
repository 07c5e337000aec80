"""Whatever a variant answers, a layout either reads it or says that it cannot: with BackendInvalidResponse alone."""

from __future__ import annotations

import warnings
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse
from gateway.layouts import AnomalyMap, Classes, Detections, Head, Layout, Seen, Values, named, names
from gateway.layouts.base import parts_of
from gateway.layouts.binding import read

CLASSES = 3
SIZES = {"C": CLASSES, "N": 84, "N?": 84, "window": 4, "channels": 1, "values": 4}
"""84 is how many cells the grids of yolox have on 64 by 64 pixels."""
SIDE = 8
"""Of maps and masks."""
HEAD = Head(
    classes=CLASSES, height=64, width=64, anomaly_threshold=1.0, question=np.ones((4, 1), np.float32), top_k=CLASSES
)
BUILT_IN = [layout for name in names() if not (layout := named(name)).custom]
LAYOUTS = pytest.mark.parametrize("layout", BUILT_IN, ids=lambda layout: layout.name)
DTYPES = (np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_)


def shape_of(layout: Layout, role: str) -> tuple[int, ...]:
    sides = []
    for dim in layout.outputs[role]:
        name, rest = parts_of(dim)
        sides.append(rest + (SIZES.get(name, SIDE) if name else 0))
    return tuple(sides)


def good(layout: Layout) -> dict[str, NDArray[Any]]:
    """Ones, which every layout can read: every row counts, of class 1, with a confidence of 1."""
    outputs = {role: np.ones(shape_of(layout, role), np.float32) for role in layout.outputs}
    if layout.name == "yolov7-end2end":
        outputs["output"][:, 0] = 0  # the number of the picture
    return outputs


def numbers_in(seen: Seen) -> list[NDArray[Any]]:
    match seen:
        case Detections(boxes, scores, class_ids, masks):
            cells = [] if masks is None else [masks.of(index).cells for index in range(min(3, len(boxes)))]
            return [boxes, scores, class_ids, *cells]
        case Classes(class_ids, scores):
            return [class_ids, scores]
        case AnomalyMap(score, heat):
            return [np.array(score)] + ([] if heat is None else [heat])
        case Values(values):
            return [values]


@LAYOUTS
def test_what_is_good_is_read(layout: Layout) -> None:
    assert all(np.isfinite(each).all() for each in numbers_in(read(layout, good(layout), HEAD)))


@LAYOUTS
@settings(max_examples=20, deadline=None)
@given(data=st.data(), value=st.sampled_from([np.nan, np.inf, -np.inf]), dtype=st.sampled_from(DTYPES[:3]))
def test_one_number_that_is_none_is_garbage(layout: Layout, data: st.DataObject, value: float, dtype: Any) -> None:
    outputs = {role: array.astype(dtype) for role, array in good(layout).items()}
    role = data.draw(st.sampled_from(sorted(outputs)))
    outputs[role].flat[data.draw(st.integers(0, outputs[role].size - 1))] = value
    with pytest.raises(BackendInvalidResponse):
        read(layout, outputs, HEAD)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of nearly that shape, or of quite another one, of some type, full of some numbers."""
    sides = st.integers(0, 9)
    other = st.one_of(
        st.just(shape),
        st.just(shape),
        st.tuples(*(st.sampled_from([side, side, side + 1, max(0, side - 1), 0, 1]) for side in shape)),
        st.lists(sides, max_size=4).map(tuple),
    )
    seed = draw(st.integers(0, 2**16))
    scale = draw(st.sampled_from([0.0, 0.4, 1.0, 100.0, 6e4, 3e38, 1e300]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers that a type cannot hold are as good as any
        numbers = np.random.default_rng(seed).uniform(-scale, scale, draw(other))
        if draw(st.booleans()):
            numbers = np.round(abs(numbers))
        made: NDArray[Any] = numbers.astype(draw(st.sampled_from(DTYPES)))
        return made


@LAYOUTS
@settings(max_examples=25, deadline=None)
@given(data=st.data(), box_format=st.sampled_from([None, "xyxy", "cxcywh", "yxyx"]))
def test_any_tensors_are_read_or_refused(layout: Layout, data: st.DataObject, box_format: Any) -> None:
    outputs = {role: data.draw(arrays(shape_of(layout, role))) for role in layout.outputs}
    head = Head(
        classes=data.draw(st.sampled_from([CLASSES, 0])), height=64, width=64, anomaly_threshold=1.0,
        question=HEAD.question, box_format=box_format, activation=data.draw(st.sampled_from([None, "sigmoid"])),
    )  # fmt: skip
    try:
        seen = read(layout, outputs, head)
    except BackendInvalidResponse:
        return
    assert all(np.isfinite(each).all() for each in numbers_in(seen))
