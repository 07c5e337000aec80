"""Which tensors play which roles: what fits is found, what does not is explained, and nothing is guessed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway import layouts
from gateway.errors import BackendInvalidResponse
from gateway.layouts import Head, Layout, named
from gateway.layouts.base import Dim, parts_of
from gateway.layouts.binding import BoundOutput, bind, classes_of, explain, fitting_layouts, read
from gateway.messages import TensorSpec

FP32 = "FP32"
LAYOUTS = st.sampled_from(layouts.names()).map(named)


def out(name: str, *shape: int, datatype: str = FP32) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def size_of(dim: Dim, sizes: dict[str, int]) -> int:
    name, constant = parts_of(dim)
    return constant + (sizes[name.removesuffix("?")] if name else 0)


def tensors_of(layout: Layout, sizes: dict[str, int], batch: int | None) -> list[TensorSpec]:
    """Outputs as a model of this layout announces them, called by their roles."""
    start = () if batch is None else (batch,)
    return [
        out(role, *start, *(size_of(dim, sizes) for dim in shape), datatype="INT64" if role == "labels" else FP32)
        for role, shape in layout.outputs.items()
    ]


def names_in(layout: Layout) -> list[str]:
    found = {parts_of(dim)[0].removesuffix("?") for shape in layout.outputs.values() for dim in shape}
    return sorted(found - {""})


@st.composite
def models(draw: st.DrawFn) -> tuple[Layout, dict[str, int], list[TensorSpec], bool]:
    """A layout, what its names stand for, and outputs of it in any order among others that fit nothing."""
    layout = draw(LAYOUTS)
    sizes = {name: draw(st.integers(1, 9000), label=name) for name in names_in(layout)}
    batch = draw(st.sampled_from([None, 1, -1]))
    strangers = [out(f"raw{index}", 1, 3, 80, 80, 85, 7) for index in range(draw(st.integers(0, 20)))]
    return layout, sizes, draw(st.permutations(tensors_of(layout, sizes, batch) + strangers)), batch is not None


@settings(deadline=None, max_examples=200)
@given(model=models())
def test_a_model_of_a_layout_is_bound_by_its_shapes(
    model: tuple[Layout, dict[str, int], list[TensorSpec], bool],
) -> None:
    layout, sizes, tensors, batched = model

    bound = bind(layout, tensors, sizes.get("C", 0), {})

    assert bound == {role: BoundOutput(role, batched) for role in layout.outputs}
    assert classes_of(layout, tensors, bound) == sizes.get("C", 0)
    assert layout.name in fitting_layouts(map(named, layouts.names()), tensors, sizes.get("C", 0))


@settings(deadline=None, max_examples=100)
@given(model=models())
def test_free_dimensions_fit_everything(model: tuple[Layout, dict[str, int], list[TensorSpec], bool]) -> None:
    layout, sizes, tensors, batched = model
    # Without a batch axis only a number of objects may come first, or the axis would rather be the batch.
    assume(batched or all(str(shape[0]) in ("N", "N?", "H") for shape in layout.outputs.values()))
    free = [TensorSpec(tensor.name, tensor.datatype, (-1,) * len(tensor.shape)) for tensor in tensors]

    bound = bind(layout, free, sizes.get("C", 0), {})

    assert bound is not None
    assert classes_of(layout, free, bound) == 0


@settings(deadline=None, max_examples=100)
@given(model=models(), more=st.integers(1, 50))
def test_another_number_of_classes_does_not_fit(
    model: tuple[Layout, dict[str, int], list[TensorSpec], bool], more: int
) -> None:
    layout, sizes, tensors, _ = model
    if "C" in sizes:
        wrong = sizes["C"] + more
        same_axes = [shape for shape in layout.outputs.values() if any(parts_of(dim)[0] == "C" for dim in shape)]
        assert same_axes
        if bind(layout, tensors, wrong, {}) is None:
            assert f"expected {layout.name}:" in explain(layout, tensors, wrong)
        else:  # only where another axis happens to have that size
            assert wrong in {size - part for t in tensors for size in t.shape for part in (0, 1, 4, 5, 36)}


SHAPES = st.lists(st.sampled_from([-1, 1, 2, 3, 4, 5, 6, 8]), min_size=1, max_size=4).map(tuple)
TENSORS = st.lists(
    st.builds(
        TensorSpec,
        st.sampled_from(["boxes", "scores", "labels", "logits", "a", "b", "c", "pred_boxes", "output"]),
        st.sampled_from(["FP32", "FP16", "INT64", "BF16", "BYTES"]),
        SHAPES,
    ),
    max_size=5,
    unique_by=lambda tensor: tensor.name,
)


def plainly_fits(layout: Layout, chosen: Sequence[TensorSpec], classes: int) -> bool:
    """Whether these tensors in the order of the roles fit, by trying every size that the names could stand for."""
    names = names_in(layout)
    values = {name: [classes] if name == "C" and classes else range(9) for name in names}
    for combination in itertools.product(*values.values()):
        sizes = dict(zip(names, combination, strict=True))
        if all(
            _fits(tensor.shape, shape, sizes) for tensor, shape in zip(chosen, layout.outputs.values(), strict=True)
        ):
            return True
    return False


def _fits(shape: tuple[int, ...], pattern: tuple[Dim, ...], sizes: dict[str, int]) -> bool:
    if any(not sizes[n] and n + "?" not in pattern for n in (parts_of(dim)[0] for dim in pattern) if n in sizes):
        return False
    wanted = tuple(size_of(dim, sizes) for dim in pattern)
    starts: list[tuple[int, ...]] = [(1,)]
    if shape[:1] != (-1,) or pattern[0] in ("N", "N?"):
        starts.append(())
    return any(
        len(shape) == len(start + wanted)
        and all(size in (-1, other) for size, other in zip(shape, start + wanted, strict=True))
        for start in starts
    )


@settings(deadline=None, max_examples=300)
@given(
    layout=st.sampled_from(["yolov8", "yolov5", "end2end", "boxes", "detr", "rt-detr", "ssd"]).map(named),
    tensors=TENSORS,
    classes=st.integers(0, 5),
)
def test_the_search_agrees_with_trying_everything(layout: Layout, tensors: list[TensorSpec], classes: int) -> None:
    readable = [tensor for tensor in tensors if tensor.datatype not in ("BF16", "BYTES")]
    ways = [
        chosen
        for chosen in itertools.permutations(readable, len(layout.outputs))
        if plainly_fits(layout, chosen, classes)
    ]

    bound = bind(layout, tensors, classes, {})

    if bound is not None:
        assert tuple(bound[role].tensor for role in layout.outputs) in [tuple(t.name for t in way) for way in ways]
    elif len(ways) == 1:
        raise AssertionError(f"{ways} was not found")
    else:
        assert explain(layout, tensors, classes).count("\n") == 0
    if not ways:
        assert bound is None


def roles(layout: str, tensors: list[TensorSpec], classes: int = 0, **given: str) -> dict[str, str] | None:
    bound = bind(named(layout), tensors, classes, given)
    return None if bound is None else {role: output.tensor for role, output in bound.items()}


def test_types_tell_labels_from_scores() -> None:
    tensors = [out("1848", -1, 4), out("1849", -1, datatype="INT64"), out("1850", -1)]

    assert roles("torchvision", tensors) == {"boxes": "1848", "scores": "1850", "labels": "1849"}


def test_names_tell_what_shapes_leave_open() -> None:
    rf_detr = [out("labels", 1, 300, 4), out("dets", 1, 300, 4)]
    assert roles("rt-detr", rf_detr, 4) == {"boxes": "dets", "logits": "labels"}
    tensorflow = [out("detection_classes", 1, 10), out("detection_scores", 1, 10), out("detection_boxes", 1, 10, 4)]
    assert roles("boxes", tensorflow)["labels"] == "detection_classes"  # type: ignore[index]


def test_what_stays_open_is_not_guessed_but_can_be_given() -> None:
    tensors = [out("a", 1, 300, 4), out("b", 1, 300, 4)]

    assert roles("rt-detr", tensors, 4) is None
    assert "several outputs fit boxes or logits: inference.outputs has to name them" in explain(
        named("rt-detr"), tensors, 4
    )
    assert roles("rt-detr", tensors, 4, boxes="b") == {"boxes": "b", "logits": "a"}
    assert roles("rt-detr", tensors, 4, logits="b") == {"boxes": "a", "logits": "b"}


def test_one_tensor_plays_one_role() -> None:
    assert roles("boxes", [out("boxes", -1, 4), out("scores", -1)]) is None
    assert roles("rt-detr", [out("a", 1, 9, 4), out("b", 1, 9, 4)], 4, boxes="a", logits="a") is None


def test_the_same_name_is_the_same_size_in_all_tensors() -> None:
    assert roles("rt-detr", [out("boxes", 1, 300, 4), out("logits", 1, 100, 7)]) is None
    aux = [out("boxes", 1, 300, 4), out("logits", 1, 300, 7), out("aux_logits", 1, 100, 7)]
    assert roles("rt-detr", aux, 7) == {"boxes": "boxes", "logits": "logits"}


def test_given_names_that_do_not_fit_are_explained() -> None:
    tensors = [out("output", 1, 7, 30), out("raw", 1, 3, 8, 8)]

    assert roles("yolov8", tensors, 3, output="raw") is None
    text = explain(named("yolov8"), tensors, 3, {"output": "raw"})
    assert text.endswith("it would fit without output: raw in inference.outputs")


@pytest.mark.parametrize(
    ("layout", "tensors", "classes", "expected"),
    [
        (
            "yolov8",
            [out("output0", 1, 84, 8400)],
            3,
            "expected yolov8: output [4+C, N] = [7, N] for 3 labels; it would fit yolov8 with 80 labels",
        ),
        ("yolov8", [out("o", -1, 25200, 85)], 80, "it would fit yolov5 or yolox"),
        ("yolov8", [out("o", 1, 300, 6)], 80, "it would fit end2end or rtdetr-end2end"),
        ("end2end", [out("o", 1, 300, 84)], 80, "it would fit rtdetr-ultralytics"),
        ("yolov5", [out("o", 1, 84, 8400)], 80, "it would fit yolov8"),
        ("rt-detr", [out("a", -1, 100, 4), out("b", -1, 100, 92)], 91, "it would fit detr or ssd"),
        ("yolov8", [out("o", -1, 1000)], 1000, "it would fit classification with model_type image-classification"),
        ("yolov8", [out("o", 1, 7, 30, datatype="BF16")], 3, "BF16 is not read; no known layout fits"),
        ("yolov8", [], 3, "no outputs, expected yolov8: output [4+C, N] = [7, N] for 3 labels; no known layout fits"),
        ("detr", [out("a", 1, 9, 4, 4)], 1, "[N, C+1] = boxes [N, 4], logits [N, 2] for 1 label; no known layout fits"),
    ],
)
def test_what_does_not_fit_is_explained(layout: str, tensors: list[TensorSpec], classes: int, expected: str) -> None:
    assert explain(named(layout), tensors, classes).endswith(expected)


@settings(deadline=None, max_examples=200)
@given(layout=LAYOUTS, tensors=TENSORS, classes=st.integers(0, 90))
def test_an_explanation_is_one_line(layout: Layout, tensors: list[TensorSpec], classes: int) -> None:
    text = explain(layout, tensors, classes)

    assert "\n" not in text
    assert layout.name in text


def test_the_search_is_bounded() -> None:
    many = [out(f"x{index}", -1, -1) for index in range(2_000)]
    vectors = [out(f"v{index}", -1) for index in range(2_000)]
    started = time.monotonic()

    assert roles("boxes", many + vectors) is None
    text = explain(named("boxes"), many + vectors, 0)

    assert time.monotonic() - started < 5
    assert len(text) < 1_000
    assert roles("boxes", many + vectors, boxes="x7", scores="v3", labels="v1999") is not None


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("yolov8", {"output": (8, 30)}),
        ("yolov8", {"output": (7, 0)}),
        ("end2end", {"output": (3, 7)}),
        ("boxes", {"boxes": (3, 4), "scores": (2,), "labels": (3,)}),
        ("rt-detr", {"boxes": (3, 4), "logits": (2, 3)}),
        ("detr", {"boxes": (3, 4), "logits": (3, 3)}),
    ],
)
def test_an_answer_of_another_shape_is_refused(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    outputs = {role: np.zeros(shape, np.float32) for role, shape in shapes.items()}

    with pytest.raises(BackendInvalidResponse, match=f"expected {name}"):
        read(named(name), outputs, Head(classes=3, height=64, width=64))


def test_an_answer_without_objects_is_read() -> None:
    outputs = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}

    found = read(named("torchvision"), outputs, Head(classes=3, height=64, width=64))

    assert isinstance(found, layouts.Detections)
    assert found.boxes.shape == (0, 4)
