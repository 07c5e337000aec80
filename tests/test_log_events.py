"""The events of the log: each a literal sentence with stable keys, and each warning and error with what to do."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.command_line import ROOT


def script(name: str) -> ModuleType:
    """A module beside docs/generate.py, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


log_events = script("log_events")
REMEDIES: dict[str, str] = script("log_remedies").REMEDIES


def test_each_event_is_a_literal_sentence_with_stable_keys() -> None:
    found, wrong = log_events.calls(ROOT / "gateway")
    assert not wrong
    assert len(found) > 100


def test_the_page_says_what_to_do_about_each_warning_and_error() -> None:
    found, _ = log_events.calls(ROOT / "gateway")
    assert not list(log_events.complaints(log_events.events(found), REMEDIES))


def test_one_sentence_has_one_level() -> None:
    found, _ = log_events.calls(ROOT / "gateway")
    assert not [event.sentence for event in log_events.events(found) if len(event.levels) > 1]


def test_the_documentation_quotes_lines_that_there_are() -> None:
    sentences = {event.sentence for event in log_events.events(log_events.calls(ROOT / "gateway")[0])}
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")]:
        text = " ".join(page.read_text().split())
        quoted = re.findall(r'\b(?:log lines?|log has|in the log:) "([^"]+)"', text)
        assert set(quoted) <= sentences, page.name


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ('log.info(f"Model {name} serves")', "no literal"),
        ('log.info("A model " + name)', "no literal"),
        ("log.info(said, model=name)", "no literal"),
        ('log.info("%s serves", name)', "not alone"),
        ('self._log.warning("A model serves", **more)', "not written out"),
        ('log.info("a model serves")', "like a sentence"),
        ('log.info("A model serves.")', "full stop"),
        ('log.error("A model serves", modelName=1)', "snake case"),
        ('log.info("A model serves", seconds=1)', "its unit"),
        ('log.info("A model serves", for_s=1)', "something else"),
        ("say = log.warning", "passed on"),
        ('(log.warning if grave else log.info)("A model serves")', "passed on"),
    ],
)
def test_what_breaks_the_rules_is_found(tmp_path: Path, code: str, complaint: str) -> None:
    (tmp_path / "module.py").write_text(f"{code}\n")
    _, wrong = log_events.calls(tmp_path)
    assert wrong
    assert all(each.startswith("module.py:1: ") and complaint in each for each in wrong)


def test_what_keeps_them_is_listed_with_its_keys(tmp_path: Path) -> None:
    code = 'log.exception("Odd", model="a", took_s=1)\nif log.isEnabledFor(1): other.warning("x")\n'
    (tmp_path / "module.py").write_text(code + 'log.error("Odd", model="b", exc_info=error)\n')
    found, wrong = log_events.calls(tmp_path)
    (event,) = log_events.events(found)
    assert not wrong
    assert (event.sentence, event.levels, event.keys) == ("Odd", ("error",), ("model", "took_s", "exception"))
    assert list(log_events.complaints([event], {"Even": "Nothing."})) == [
        "docs/log_remedies.py does not say what to do about 'Odd'",
        "docs/log_events.py has no area for module.py",
        "docs/log_remedies.py has 'Even', which nobody writes",
    ]
