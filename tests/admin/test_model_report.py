"""One shape for how a model stands, whoever asks, and its lines for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.model_report import MAX_TEXT, failure_in_words, model_report, report_lines
from gateway.models.catalog import ServedModel, State
from gateway.rollout.state import ModelState, RefusalRecord
from gateway.rollout.steps import Ending, Step
from tests.admin.commanded import refused, release, rollout
from tests.flow.builders import served

STABLE = ModelState("detector", release(3), release(2), roller="gw-1")
BOTH_ASLEEP = served(onnx=State.ASLEEP, torch=State.ASLEEP)
BOTH_UNLOADED = served(onnx=State.UNLOADED, torch=State.UNLOADED)


def with_rollout(**more: Any) -> ModelState:
    return msgspec.structs.replace(STABLE, rollout=rollout(**more))


@pytest.mark.parametrize(
    ("state", "model", "status"),
    [
        (STABLE, served(), "serving"),
        (STABLE, served(torch=State.ABSENT), "serving"),
        (None, served(), "serving"),
        (STABLE, None, "serving"),
        (STABLE, served(onnx=State.LOADING, torch=State.LOADING), "not_serving"),
        (ModelState("detector"), None, "not_serving"),
        (STABLE, BOTH_ASLEEP, "asleep"),
        (STABLE, BOTH_UNLOADED, "unloaded"),
        (msgspec.structs.replace(STABLE, unloaded=True), None, "unloaded"),
        (with_rollout(), served(), "rolling_out"),
        (with_rollout(ending=Ending.PROMOTED), served(), "serving"),
        (msgspec.structs.replace(STABLE, rollout=refused()), served(), "serving"),
        (None, None, "removed"),
    ],
)
def test_the_status_is_one_word(state: ModelState | None, model: ServedModel | None, status: str) -> None:
    assert model_report("detector", state, model)["status"] == status


def test_all_of_it() -> None:
    refusal = RefusalRecord(5, Step.VERIFIED, "labels.txt has 2 lines", "Add one", 1_700_000_050.0)
    model = served()
    for name in model.variants:
        model = model.with_variant(replace(model.variants[name], version="1", fix=""))
    report = model_report("detector", msgspec.structs.replace(with_rollout(), refused=(refusal,)), model)
    variant = {
        "triton_model": "detector-onnx",
        "state": "ready",
        "reason": "",
        "fix": "",
        "version": "1",
        "breaker": "closed",
    }
    assert report == {
        "model_name": "detector",
        "status": "rolling_out",
        "version": 3,
        "previous_version": 2,
        "variants": {"onnx": variant, "torch": {**variant, "triton_model": "detector-torch"}},
        "rollout": {
            "version": 4,
            "step": "canary",
            "ending": "under_way",
            "percent": 25,
            "progress": "120 of 200 answers",
            "reason": "",
            "fix": "",
            "started_at": 1_700_000_100.0,
            "ended_at": None,
            "steps": [
                {"step": "stable_on_disk", "seconds": 3.0, "note": ""},
                {"step": "verified", "seconds": 0.2, "note": "unsigned"},
            ],
        },
        "refused": [
            {
                "version": 5,
                "step": "verified",
                "reason": "labels.txt has 2 lines",
                "fix": "Add one",
                "at": 1_700_000_050.0,
            }
        ],
        "roller": "gw-1",
    }


def test_what_is_remembered_alone_names_the_variants_too() -> None:
    variants = model_report("detector", STABLE, None)["variants"]
    assert variants["onnx"] == {
        "triton_model": "detector-onnx",
        "state": None,
        "reason": "",
        "fix": "",
        "version": "3",
        "breaker": None,
    }


def test_the_lines_say_where_a_rollout_stands() -> None:
    assert [*report_lines(model_report("detector", with_rollout(), None))] == [
        "  version  3 is the stable one, 2 the one before",
        "  rollout  version 4 is at canary (25 %): 120 of 200 answers",
        "           stable_on_disk 3.0 s, verified 0.2 s (unsigned)",
    ]


def test_the_lines_say_why_versions_are_refused_once() -> None:
    records = tuple(RefusalRecord(version, Step.GOLDEN, "wrong", "Train it", 0.0) for version in (4, 3))
    state = msgspec.structs.replace(STABLE, rollout=refused(), refused=records, unloaded=True)
    lines = [*report_lines(model_report("detector", state, None))]
    assert lines[0] == "  version  3 is the stable one, 2 the one before; unloaded"
    assert lines[1] == "  rollout  version 4 was refused at golden: person.jpg: class 2, expected 0. Train it"
    assert lines[3:] == ["  refused  version 3 at golden: wrong. Train it"]


def test_nothing_yet_and_nothing_any_more_have_lines_too() -> None:
    assert [*report_lines(model_report("x", None, None))] == ["  version  none has been promoted yet"]


def test_a_failure_is_told_until_it_is_mended() -> None:
    state = msgspec.structs.replace(STABLE, rollout=refused(4))
    assert failure_in_words(state).startswith("version 4 was refused at golden: person.jpg")
    assert failure_in_words(msgspec.structs.replace(state, stable=release(4))) == ""
    assert failure_in_words(with_rollout()) == failure_in_words(STABLE) == failure_in_words(None) == ""


@given(text=st.text(st.characters(codec=None, exclude_categories=())))
def test_no_text_of_a_drop_breaks_json_or_steers_a_terminal(text: str) -> None:
    """Names of files are any bytes, which Python keeps as lone surrogates."""
    state = with_rollout(reason=text, fix=text, progress=text)
    report = model_report("detector", msgspec.structs.replace(state, roller=text), served())
    assert msgspec.json.decode(msgspec.json.encode(report)) == report
    assert all(line.isprintable() for line in report_lines(report))


def test_a_traceback_for_a_reason_is_cut_off() -> None:
    report = model_report("detector", with_rollout(reason="x" * 100_000), served())
    assert len(report["rollout"]["reason"]) == MAX_TEXT + 3
