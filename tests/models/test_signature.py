"""A model that does not fit its model.yaml is refused at load time, saying what came and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.catalog import ServedVariant, State
from gateway.models.repository import LogicalModel
from gateway.models.signature import fit
from tests.flow.builders import LABELS, signature, spec

DETECTOR = LogicalModel(spec(), LABELS, Path("models/detector"))
CLASSIFIER = LogicalModel(
    spec(model_type="image-classification", inference={"output": "classification"}), LABELS, Path("models/gate")
)
VARIANT = ServedVariant("onnx", "detector-onnx")


def test_a_fitting_model_serves_under_its_own_tensor_names() -> None:
    variant = fit(signature("detector-onnx"), DETECTOR, VARIANT)
    assert variant.state is State.READY
    assert (variant.input_name, variant.output_names, variant.version) == ("images", ("output0",), "1")
    assert variant.batched


def test_free_dimensions_fit() -> None:
    assert fit(signature("m", (-1, 3, -1, -1), (-1, -1, -1)), DETECTOR, VARIANT).state is State.READY
    assert fit(signature("m", outputs=(-1, 3)), CLASSIFIER, VARIANT).state is State.READY


def test_a_model_without_a_batch_axis_is_asked_without_one() -> None:
    plain = ModelSignature(
        "m", "2", (TensorSpec("x", "FP32", (3, 64, 64)),), (TensorSpec("y", "FP32", (7, 10)),), max_batch_size=0
    )
    assert not fit(plain, DETECTOR, VARIANT).batched
    fixed = ModelSignature("m", "2", (TensorSpec("x", "FP32", (1, 3, 64, 64)),), (TensorSpec("y", "FP32", (1, 7, 10)),))
    assert fit(fixed, DETECTOR, VARIANT).batched


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (signature("m", (-1, 3, 32, 64)), r"FP32 \[3, 32, 64\], preprocessing gives FP32 \[3, 64, 64\]"),
        (signature("m", (-1, 64, 64, 3)), r"\[64, 64, 3\]"),
        (signature("m", outputs=(-1, 84, 10)), r"\[84, 10\], expected FP32 \[7, N\] for 3 labels"),
        (signature("m", outputs=(-1, 7)), r"\[7\], expected FP32 \[7, N\]"),
        (ModelSignature("m", "1", (), ()), "0 inputs"),
        (ModelSignature("m", "1", (TensorSpec("x", "UINT8", (-1, 3, 64, 64)),), (), 8), "UINT8"),
        (ModelSignature("m", "1", signature("m").inputs, (), 8), "no outputs"),
        (
            ModelSignature("m", "1", signature("m").inputs * 2, signature("m").outputs, 8),
            r"2 inputs \(images, images\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(given: ModelSignature, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        fit(given, DETECTOR, VARIANT)
    assert caught.value.fix
    assert "'m'" in caught.value.where


def test_a_classifier_needs_one_number_a_label() -> None:
    with pytest.raises(ConfigError, match=r"\[1000\], expected FP32 \[3\] for 3 labels"):
        fit(signature("m", outputs=(-1, 1000)), CLASSIFIER, VARIANT)
