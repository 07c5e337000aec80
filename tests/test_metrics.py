"""Counters are there before their first event, and every label value that the code uses is declared."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from gateway.admin.answers import REFUSED
from gateway.metrics import CATALOGUE, PREFIX
from gateway.rollout.steps import Ending
from tests.command_line import ROOT
from tests.harness import site

DECLARED = {item.name: set(item.values) for item in CATALOGUE if item.values}


def calls(pattern: str) -> Iterator[ast.Call]:
    """All calls of methods in some files of the gateway."""
    for path in (ROOT / "gateway").glob(pattern):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield node


def texts(node: ast.AST) -> set[str]:
    """The strings that are written out in an expression."""
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def test_every_label_value_that_is_written_out_is_declared() -> None:
    checked = set()
    for call in calls("**/*.py"):
        assert isinstance(call.func, ast.Attribute)
        counter = call.func.value
        if call.func.attr == "labels" and isinstance(counter, ast.Attribute) and call.args:
            name = f"{counter.attr}_total"
            if name in DECLARED and texts(call.args[-1]):
                checked.add(name)
                assert texts(call.args[-1]) <= DECLARED[name], f"{name}, line {call.lineno}"
    assert checked >= {"ignored_messages_total", "dead_letters_total", "spool_events_total", "model_repairs_total"}


def test_the_names_of_what_happens_to_the_session_are_declared() -> None:
    named = set[str]()
    for call in calls("adapters/mqtt*.py"):
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr in ("_event", "_end", "begin_anew") and call.args:
            named |= texts(call.args[0])
    assert named == DECLARED["broker_events_total"]


def test_reasons_and_endings_are_declared() -> None:
    assert DECLARED["http_refusals_total"] == {*REFUSED.values(), "crowded"}
    assert DECLARED["rollouts_total"] == set(Ending) - {Ending.UNDER_WAY}


async def test_their_samples_are_there_before_the_first_event(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        for item in CATALOGUE:
            model = {"model": "detector"} if "model" in item.labels else {}
            for value in item.values:
                labels = {**model, item.labels[-1]: value}
                assert place.metrics.registry.get_sample_value(PREFIX + item.name, labels) is not None, (
                    item.name,
                    value,
                )
        assert place.metrics.value("rollouts_total", model="detector", ending="refused") == 0


async def test_each_series_is_in_the_catalogue_and_none_only_says_when_another_began(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        series = {sample.name for metric in place.metrics.registry.collect() for sample in metric.samples}
    known = {PREFIX + item.name + suffix for item in CATALOGUE for suffix in ("", "_bucket", "_sum", "_count")}
    assert {name for name in series if not name.startswith(("process_", "python_"))} <= known
