"""A model is taken as it is, or refused at load time, saying what came and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.layouts.binding import BoundOutput
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.catalog import ServedVariant, State
from gateway.models.input_plan import ExtraInput, InputPlan, WindowPlan
from gateway.models.repository import LogicalModel
from gateway.models.signature import fit
from tests.flow.builders import LABELS, sensor_spec, signature, spec

VARIANT = ServedVariant("onnx", "detector-onnx")


def detector(**preprocessing: Any) -> LogicalModel:
    given: dict[str, Any] = {"preprocessing": preprocessing} if preprocessing else {}
    return LogicalModel(spec(**given), LABELS, Path("models/detector/model.yaml"))


def open_size(**preprocessing: Any) -> LogicalModel:
    """A detector whose model.yaml leaves the size to the model."""
    return detector(**{"mode": "letterbox", **preprocessing})


CLASSIFIER = LogicalModel(
    spec(model_type="image-classification", inference={"output": "classification"}), LABELS, Path("models/gate")
)
THERMOMETER = LogicalModel(sensor_spec(), ("normal", "anomaly"), Path("models/thermometer"))


def taking(*inputs: tuple[str, str, tuple[int, ...]], max_batch_size: int = 0) -> ModelSignature:
    """A model with these inputs and a detector's output."""
    return ModelSignature(
        "m", "2", tuple(TensorSpec(*each) for each in inputs), (TensorSpec("y", "FP32", (-1, 7, 10)),), max_batch_size
    )


def planned(given: ModelSignature, model: LogicalModel) -> InputPlan:
    plan = fit(given, model, VARIANT).plan
    assert isinstance(plan, InputPlan)
    return plan


def test_a_fitting_model_serves_under_its_own_tensor_names() -> None:
    variant = fit(signature("detector-onnx"), detector(), VARIANT)
    assert variant.state is State.READY
    assert variant.plan == InputPlan("images", 64, 64)
    assert (variant.outputs, variant.version) == ({"output": BoundOutput("output0", batch_axis=True)}, "1")
    assert (variant.max_batch, variant.classes) == (8, 3)


def test_free_dimensions_fit() -> None:
    resized = detector(resize=[64, 64])
    assert fit(signature("m", (-1, 3, -1, -1), (-1, -1, -1)), resized, VARIANT).state is State.READY
    assert fit(signature("m", outputs=(-1, 3)), CLASSIFIER, VARIANT).state is State.READY


@pytest.mark.parametrize(
    ("shape", "max_batch_size", "max_batch"),
    [((3, 64, 64), 0, 0), ((1, 3, 64, 64), 0, 1), ((-1, 3, 64, 64), 0, 64), ((-1, 3, 64, 64), 4, 4)],
)
def test_how_many_pictures_a_request_may_hold(shape: tuple[int, ...], max_batch_size: int, max_batch: int) -> None:
    given = taking(("x", "FP32", shape), max_batch_size=max_batch_size)
    assert fit(given, detector(), VARIANT).max_batch == max_batch


def test_answers_without_a_batch_axis_come_one_by_one() -> None:
    given = ModelSignature(
        "m", "1", (TensorSpec("x", "FP32", (-1, 3, 64, 64)),), (TensorSpec("y", "FP32", (7, 10)),), max_batch_size=0
    )
    assert fit(given, detector(), VARIANT).max_batch == 1


@pytest.mark.parametrize(
    ("shape", "datatype", "expected"),
    [
        ((-1, 3, 32, 64), "FP32", InputPlan("x", 32, 64)),
        ((-1, 1, 32, 64), "FP16", InputPlan("x", 32, 64, channels=1, datatype="FP16")),
        ((-1, 32, 64, 3), "UINT8", InputPlan("x", 32, 64, channels_last=True, datatype="UINT8")),
        ((-1, 32, 64, 1), "INT8", InputPlan("x", 32, 64, channels=1, channels_last=True, datatype="INT8")),
    ],
)
def test_what_model_yaml_leaves_out_the_model_says(shape: tuple[int, ...], datatype: str, expected: InputPlan) -> None:
    assert planned(taking(("x", datatype, shape), max_batch_size=8), open_size()) == expected


def test_what_the_model_leaves_open_model_yaml_says() -> None:
    given = taking(("x", "FP32", (-1, -1, -1, -1)), max_batch_size=8)
    model = detector(resize=[32, 64], layout="NHWC", color="GRAY")
    assert planned(given, model) == InputPlan("x", 32, 64, channels=1, channels_last=True)


@pytest.mark.parametrize(
    ("extra", "meaning"),
    [
        (("orig_target_sizes", "INT64", (-1, 2)), "input_width_height"),
        (("orig_target_sizes__1", "INT64", (-1, 2)), "input_width_height"),
        (("im_shape", "FP32", (-1, 2)), "input_height_width"),
        (("scale_factor", "FP32", (-1, 2)), "scale_height_width"),
        (("pixel_mask", "INT64", (-1, 64, 64)), "mask"),
    ],
)
def test_the_usual_second_inputs_are_known(extra: tuple[str, str, tuple[int, ...]], meaning: Any) -> None:
    plan = planned(taking(("images", "FP32", (-1, 3, 64, 64)), extra), detector())
    assert plan.extras == (ExtraInput(extra[0], meaning, extra[1]),)


def test_other_second_inputs_are_named_in_model_yaml() -> None:
    given = taking(("size", "INT32", (-1, 2)), ("picture", "FP32", (-1, 3, 64, 64)))
    plan = planned(given, open_size(inputs={"size": "input_height_width"}))
    assert (plan.name, plan.extras[0].name) == ("picture", "size")


@pytest.mark.parametrize(("shape", "max_batch"), [((-1, 4, 1), 8), ((-1, 1, 4), 8), ((-1, 4), 8)])
def test_windows_of_readings_either_way_round(shape: tuple[int, ...], max_batch: int) -> None:
    given = ModelSignature("m", "1", (TensorSpec("w", "FP32", shape),), (TensorSpec("r", "FP32", shape),), max_batch)
    assert fit(given, THERMOMETER, VARIANT).plan == WindowPlan("w", shape[1:])


def test_a_window_of_another_length_is_refused() -> None:
    given = ModelSignature("m", "1", (TensorSpec("w", "FP32", (-1, 5)),), (TensorSpec("r", "FP32", (-1, 5)),), 8)
    with pytest.raises(ConfigError, match=r"'w' is FP32 \[-1, 5\]; 4 readings of 1 values are"):
        fit(given, THERMOMETER, VARIANT)


@pytest.mark.parametrize(
    ("given", "model", "says"),
    [
        (signature("m", (-1, 3, 32, 64)), detector(resize=[64, 64]), r"32 high and 64 wide; .*resize says \[64, 64\]"),
        (signature("m", (-1, 3, -1, 64)), open_size(), "leaves height and width open"),
        (signature("m", (-1, 5, 64, 64)), detector(), "has 5 channels"),
        (signature("m", (4, 3, 64, 64)), detector(), r"\[4, 3, 64, 64\], a picture has \[batch, 3, height, width\]"),
        (signature("m", (-1, 64)), detector(), r"\[-1, 64\], a picture has"),
        (signature("m", outputs=(-1, 84, 10)), detector(), r"\[-1, 84, 10\], expected yolov8: .*\[7, N\] for 3 labels"),
        (signature("m", outputs=(-1, 84, 100)), detector(), "it would fit yolov8 with 80 labels"),
        (signature("m", outputs=(-1, 7)), detector(), r"\[-1, 7\], expected yolov8"),
        (ModelSignature("m", "1", (), ()), detector(), r"inputs \(none\) exactly one must be the picture"),
        (taking(("x", "INT32", (-1, 3, 64, 64))), detector(), "is INT32; a picture is FP32, FP16, UINT8, INT8"),
        (ModelSignature("m", "1", signature("m").inputs, (), 8), detector(), "no outputs"),
        (
            taking(("a", "FP32", (-1, 3, 64, 64)), ("b", "FP32", (-1, 2))),
            detector(),
            r"of the inputs \('a', 'b'\) exactly one",
        ),
        (
            taking(("a", "FP32", (-1, 3, 64, 64)), ("im_shape", "FP32", (-1, 3))),
            detector(),
            r"input_height_width has \[batch, 2\]",
        ),
        (signature("m"), open_size(inputs={"size": "mask"}), "names 'size', which the model does not have"),
        (
            signature("m", outputs=(-1, 1000)),
            CLASSIFIER,
            r"\[-1, 1000\], expected classification: .*\[3\] for 3 labels",
        ),
    ],
)
def test_what_does_not_fit_is_named(given: ModelSignature, model: LogicalModel, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        fit(given, model, VARIANT)
    assert caught.value.fix
    assert "'m'" in caught.value.where


def test_an_output_that_is_not_there_is_named() -> None:
    model = LogicalModel(spec(inference={"outputs": {"output": "nope"}}), LABELS, Path("models/detector/model.yaml"))
    with pytest.raises(ConfigError, match="names 'nope', which the model does not have") as caught:
        fit(signature("m"), model, VARIANT)
    assert "'output0'" in caught.value.fix


def test_labels_that_nobody_wrote_down_are_counted() -> None:
    model = LogicalModel(spec(inference={"output": "yolov8"}), (), Path("models/detector/model.yaml"))
    assert fit(signature("m", outputs=(-1, 7, 84)), model, VARIANT).classes == 3


def test_a_class_that_model_yaml_names_needs_labels() -> None:
    model = LogicalModel(spec(), (), Path("models/detector/model.yaml"))
    with pytest.raises(ConfigError, match="alert_classes names 'person_without_helmet', and the model has no labels"):
        fit(signature("m", outputs=(-1, 7, 84)), model, VARIANT)


@pytest.mark.parametrize(
    ("output", "shape", "hint"),
    [
        ("yolov5", (-1, 84, 8400), "yolov8"),
        ("rtdetr-ultralytics", (-1, 84, 8400), "yolov8"),
        ("yolox", (-1, 84, 8400), "yolov8"),
        ("yolov8", (-1, 25200, 85), "yolov5"),
        ("yolov8", (-1, 300, 6), "end2end"),
        ("yolov8", (-1, 300, 84), "rtdetr-ultralytics"),
        ("yolov5", (-1, 300, 7), "yolov7-end2end"),
    ],
)
def test_without_labels_a_wrong_layout_is_refused_all_the_same(output: str, shape: tuple[int, ...], hint: str) -> None:
    model = LogicalModel(
        spec(preprocessing={"mode": "letterbox"}, inference={"output": output}), (), Path("m/model.yaml")
    )
    with pytest.raises(ConfigError, match=f"is hardly {output}: .*it would fit .*{hint}"):
        fit(signature("m", (-1, 3, 640, 640), shape), model, VARIANT)


@pytest.mark.parametrize(
    ("output", "shape"),
    [("yolov8", (-1, 84, 8400)), ("yolov5", (-1, 25200, 85)), ("yolov5", (-1, 8400, 85)), ("yolox", (-1, 8400, 85)),
     ("end2end", (-1, 300, 6)), ("rtdetr-ultralytics", (-1, 300, 84)), ("yolov8", (-1, -1, -1))],
)  # fmt: skip
def test_without_labels_a_right_layout_is_taken(output: str, shape: tuple[int, ...]) -> None:
    model = LogicalModel(
        spec(preprocessing={"mode": "letterbox"}, inference={"output": output}), (), Path("m/model.yaml")
    )
    assert fit(signature("m", (-1, 3, 640, 640), shape), model, VARIANT).state is State.READY


def test_a_map_without_labels_has_the_proportions_of_the_input() -> None:
    given = spec(
        preprocessing={"mode": "letterbox"}, model_type="anomaly-detection", inference={"output": "anomaly-map-2d"}
    )
    model = LogicalModel(given, (), Path("m/model.yaml"))
    with pytest.raises(ConfigError, match="84x8400 has not the proportions of the input, 640x640"):
        fit(signature("m", (-1, 3, 640, 640), (-1, 84, 8400)), model, VARIANT)


def test_names_in_model_yaml_may_leave_out_what_libtorch_adds() -> None:
    """One model.yaml serves an ONNX and a TorchScript export of the same model."""
    model = LogicalModel(
        spec(
            model_type="object-detection",
            preprocessing={"inputs": {"size": "input_height_width"}},
            inference={"outputs": {"output": "heads"}},
        ),
        LABELS,
        Path("m/model.yaml"),
    )
    for end in ("", "__1"):
        given = ModelSignature(
            "m",
            "1",
            (TensorSpec("images", "FP32", (-1, 3, 64, 64)), TensorSpec(f"size{end}", "FP32", (-1, 2))),
            (TensorSpec("other", "FP32", (-1, 7, 10)), TensorSpec(f"heads{end}", "FP32", (-1, 7, 10))),
        )
        variant = fit(given, model, VARIANT)
        assert isinstance(variant.plan, InputPlan)
        assert [extra.name for extra in variant.plan.extras] == [f"size{end}"]
        assert variant.outputs["output"].tensor == f"heads{end}"
