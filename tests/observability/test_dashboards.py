"""The dashboards are current, whole and readable; that each panel has data is tested on real parts."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics import CATALOGUE
from tests.command_line import ROOT, environment
from tests.observability.dashboards import FOLDER, models, panels, queries, variables
from tests.observability.expressions import alerts, metrics_in, unknown

CORE_PANELS = {"timeseries", "stat", "bargauge", "table", "heatmap", "state-timeline"}
"""What every Grafana from 10 to 12 brings."""
FILLED = dict.fromkeys(("instance", "model", "device", "triton", "triton_model"), "x")
MAKE = 'make dashboards DASHBOARDS="--console URL'
MONITORING = (ROOT / "docs" / "monitoring.md").read_text()


def test_the_dashboards_are_current() -> None:
    command = [sys.executable, "compose/grafana/write_dashboards.py", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_command_writes_the_addresses_of_a_site_into_dashboards_and_alerts(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "compose", tmp_path / "compose")
    console, runbook = "https://gateway.example/", "https://wiki.example/run\\1book?page=2"
    command = [sys.executable, str(tmp_path / "compose" / "grafana" / "write_dashboards.py")]
    subprocess.run(
        [*command, "--console", console, "--runbook", runbook], cwd=tmp_path, check=True, capture_output=True
    )
    for path in (tmp_path / "compose" / "grafana" / "dashboards").glob("*.json"):
        places = {each["name"]: each["query"] for each in json.loads(path.read_text())["templating"]["list"]}
        assert (places["console"], places["runbook"]) == (console, runbook)
    for name in ("rules.yml", "rules_test.yml"):
        before = (ROOT / "compose" / "prometheus" / name).read_text()
        changed = before.replace(": docs/runbook.md#", f": {runbook}#")
        assert (tmp_path / "compose" / "prometheus" / name).read_text() == changed != before
    assert f"{MAKE} --runbook" in MONITORING.replace(console, "URL")


def test_every_series_that_a_panel_asks_for_is_exported_by_somebody() -> None:
    asked = [(query, problem) for query in queries() for problem in unknown(query.filled(FILLED))]
    assert asked == []


def test_every_metric_is_shown_or_alerts() -> None:
    expressions = [query.filled(FILLED) for query in queries()] + [rule["expr"] for rule in alerts().values()]
    assert set[str]().union(*map(metrics_in, expressions)) == {item.name for item in CATALOGUE}


@pytest.mark.parametrize("name", models())
def test_each_panel_says_what_it_shows_and_what_to_do(name: str) -> None:
    found = panels(models()[name])
    assert len({panel["title"] for panel in found}) == len(found)
    for panel in found:
        assert panel["type"] in CORE_PANELS
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == [*"ABCDE"[: len(panel["targets"])]]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None


@pytest.mark.parametrize("name", models())
def test_the_runbook_has_the_alerts_that_a_panel_names(name: str) -> None:
    for panel in panels(models()[name]):
        for named in re.findall(r"(?:runbook, |Runbook, |- )([A-Z][a-z]+[A-Z]\w+)", panel["description"]):
            assert named in alerts(), panel["title"]


@pytest.mark.parametrize("name", models())
def test_no_panel_lies_over_another_and_none_has_the_number_of_another(name: str) -> None:
    def taken(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        return set(itertools.product(columns, rows))

    found = models()[name]["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    for one, other in itertools.combinations(found, 2):
        assert not taken(one) & taken(other), (one["title"], other["title"])


@pytest.mark.parametrize("name", models())
def test_a_dashboard_uses_what_it_asks_for_and_leads_to_the_others(name: str) -> None:
    model = models()[name]
    text = str(model["panels"]) + str(model["templating"])
    asked = variables(model)
    for variable in asked:
        assert text.count(f"${variable}") > 0, variable
    used = {
        found for query in queries() if query.dashboard == name for found in re.findall(r"\$(\w+)", query.expression)
    }
    assert used - {"__rate_interval"} <= asked.keys()
    assert [link["type"] for link in model["links"]] == ["dashboards", "link", "link"]
    assert set(model["links"][0]["tags"]) <= set(model["tags"])
    assert 38 <= model["schemaVersion"] <= 41


def test_the_dashboards_are_told_apart() -> None:
    found = models().values()
    assert len({model["uid"] for model in found}) == len({model["title"] for model in found}) == 4


def test_grafana_is_told_where_all_of_it_lies() -> None:
    sources = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    assert [each["type"] for each in sources["datasources"]] == ["prometheus"]
    providers = yaml.safe_load((FOLDER / "provisioning" / "dashboards" / "edge-gateway.yaml").read_text())
    (provider,) = providers["providers"]
    assert provider["type"] == "file"
    assert f"compose/grafana/dashboards:{provider['options']['path']}" in MONITORING
