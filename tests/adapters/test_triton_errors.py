"""What is left of the texts with which Triton refuses a model or a request."""

from __future__ import annotations

import pytest

from gateway.adapters.triton_errors import REASON_LENGTH, load_refusal, shorten

REFUSALS = [
    (
        (
            "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: ModelError: it is no ONNX model. "
            "Fix: export it again\n\nAt:\n  /cache/model.py(45): fail\n  /cache/model.py(203): initialize\n;\n"
        ),
        "version 1: it is no ONNX model",
        "export it again",
    ),
    (
        (
            "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: onnx runtime error 7: bad file;\n"
            "version 2 is at UNAVAILABLE state: Internal: something else;\n"
        ),
        "version 1: onnx runtime error 7: bad file",
        "See Triton's log for the details",
    ),
    (
        (
            "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: failed to load model 'm': "
            "PytorchStreamReader failed\nTraceback of TorchScript\n  File x;\n"
        ),
        "version 1: failed to load model 'm': PytorchStreamReader failed",
        "See Triton's log for the details",
    ),
    (
        "load failed for model 'm': no version\n",
        "load failed for model 'm': no version",
        "See Triton's log for the details",
    ),
    (None, "no reason given", "See Triton's log for the details"),
]


@pytest.mark.parametrize(("details", "reason", "fix"), REFUSALS)
def test_the_reason_for_a_refused_load(details: str | None, reason: str, fix: str) -> None:
    assert load_refusal(details) == (reason, fix)


def test_a_folder_that_cannot_be_read_names_the_fix() -> None:
    reason, fix = load_refusal("failed to load 'm', failed to poll from model repository")

    assert reason == "Triton cannot read the model's folder"
    assert "config.pbtxt" in fix


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ((9,), "version 9: not in the model's folder"),
        ((10, 9), "version 9, 10: not in the model's folder"),
        ((), "no version of it is in the model's folder"),
    ],
)
def test_a_version_without_a_folder_is_named(versions: tuple[int, ...], reason: str) -> None:
    said = "load failed for model 'm': at least one version must be available under the version policy of model 'm'\n"
    found, fix = load_refusal(said, versions)

    assert found == reason
    assert "folder" in fix


def test_reasons_are_one_short_line() -> None:
    assert shorten("[request id: abc] unexpected shape.\n  Expected [1] ") == "unexpected shape. Expected [1]"
    assert len(shorten("x" * 100_000)) == REASON_LENGTH
