"""The message, then model.yaml, then the environment decide who answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import ModelUnavailable
from gateway.flow.variants import choose
from gateway.messages import Selection, Snapshot
from gateway.models.catalog import ServedModel, State
from tests.flow.builders import origin, served, settings, spec


def chosen(
    model: ServedModel | None = None,
    preference: str | None = None,
    withheld: Callable[[str], str] | None = None,
    **environment: Any,
) -> Selection:
    snapshot = Snapshot(origin=origin(), image=b"x", metadata={}, backend_preference=preference)
    return choose(snapshot, model or served(), settings(**environment), withheld)


def test_the_default_backend_answers_and_the_other_stands_by() -> None:
    assert chosen() == Selection("single", "default", "onnx", fallback=("torch",))
    assert chosen(default_backend="torch").primary == "torch"


def test_dual_by_environment_model_or_message() -> None:
    assert chosen(enable_dual_backend=True) == Selection("dual", "ENABLE_DUAL_BACKEND", "onnx", compared=("torch",))
    assert chosen(served(spec(backend="dual")), default_backend="torch").primary == "torch"
    assert chosen(preference="dual").reason == "message"


def test_the_models_backend_comes_before_the_default_and_is_the_primary_in_dual_mode() -> None:
    model = served(spec(backend="torch"))
    assert chosen(model) == Selection("single", "model", "torch", fallback=("onnx",))
    assert chosen(model, enable_dual_backend=True) == Selection(
        "dual", "ENABLE_DUAL_BACKEND", "torch", compared=("onnx",)
    )


def test_the_message_comes_before_everything() -> None:
    model = served(spec(backend="dual"))
    assert chosen(model, "torch", enable_dual_backend=True) == Selection("single", "message", "torch", ("onnx",))


def test_a_variant_that_does_not_serve_is_passed_over_and_the_reason_says_so() -> None:
    selection = chosen(served(onnx=State.REFUSED))
    assert (selection.policy, selection.primary, selection.fallback) == ("fallback", "torch", ())
    assert "onnx does not serve" in selection.reason


def test_dual_with_one_variant_missing_still_compares_so_that_the_gap_shows() -> None:
    selection = chosen(served(onnx=State.LOADING), "dual")
    assert (selection.policy, selection.primary, selection.compared) == ("dual", "torch", ("onnx",))


def test_none_serving_is_an_error() -> None:
    with pytest.raises(ModelUnavailable, match="onnx is refused"):
        chosen(served(onnx=State.REFUSED, torch=State.LOADING))


def test_a_model_with_one_variant_ignores_dual_by_environment() -> None:
    assert chosen(served(spec(variants={"torch": "t"})), enable_dual_backend=True).policy == "single"
