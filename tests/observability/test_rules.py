"""The rules are right: checked by promtool, each alert shown to fire and not to fire, and the runbook says the same."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from tests.command_line import ROOT
from tests.observability.expressions import alerts, recorded, rules, unknown
from tests.observability.prometheus import CONFIGURATION, RULES, RULES_TEST, program

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
DURATIONS = {"0m": "At once", "30s": "After 30 seconds", "1m": "After 1 minute", "1h": "After 1 hour"}
SECTIONS = dict(
    re.findall(
        r"^### (\w+)\n(.*?)(?=^##)", RUNBOOK.partition("## Without an alert")[0] + "##", re.DOTALL | re.MULTILINE
    )
)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    for arguments in (("check", "config", CONFIGURATION), ("check", "rules", RULES)):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_jobs_have_the_names_that_rules_and_dashboards_ask_for() -> None:
    jobs = yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["edge-gateway", "triton"]


def test_each_case_of_the_rules_comes_out_as_written() -> None:
    done = promtool("test", "rules", RULES_TEST)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_is_changed_breaks_a_case(tmp_path: Path) -> None:
    (tmp_path / RULES.name).write_text(RULES.read_text().replace("> 2\n", "> 20\n"))
    cases = yaml.safe_load(RULES_TEST.read_text())
    cases["tests"] = [case for case in cases["tests"] if case["name"].startswith("WorkerRestarts")]
    (tmp_path / RULES_TEST.name).write_text(yaml.safe_dump(cases))
    done = promtool("test", "rules", tmp_path / RULES_TEST.name)
    assert done.returncode != 0
    assert "WorkerRestarts" in done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires = defaultdict[str, set[bool]](set)
    for case in yaml.safe_load(RULES_TEST.read_text())["tests"]:
        for check in case["alert_rule_test"]:
            assert case["input_series"], "nothing fires where there is nothing"
            fires[check["alertname"]].add(bool(check["exp_alerts"]))
    assert fires == {name: {True, False} for name in alerts()}


def test_every_series_that_a_rule_asks_for_is_exported_by_somebody() -> None:
    assert not [(rule, problem) for rule in rules() for problem in unknown(rule["expr"])]


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_urgent_it_is_and_what_to_do(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"


@pytest.mark.parametrize("name", alerts())
def test_the_runbook_says_of_an_alert_what_the_rule_says(name: str) -> None:
    rule, section = alerts()[name], SECTIONS[name]
    block, after = re.findall(r"```promql\n(.*?)```\n\n(.*)", section, re.DOTALL)[0]
    assert block.strip() == rule["expr"].strip()
    duration = DURATIONS.get(rule["for"]) or f"After {rule['for'].removesuffix('m')} minutes"
    assert after.startswith(f"{duration}; {rule['labels']['severity']}.")
    assert all(f"*{part}*" in section.replace("*See* and\n*do*", "*See* *Do*") for part in ("Means", "See", "Do"))


def test_the_runbook_has_no_alert_without_a_rule() -> None:
    assert SECTIONS.keys() == alerts().keys()


def test_what_is_recorded_is_named_as_prometheus_recommends() -> None:
    for name in recorded():
        assert re.fullmatch(r"(instance|model):edge_gateway_[a-z_]+:[a-z0-9_]+", name)
