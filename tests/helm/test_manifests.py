"""Every manifest of every case is what Kubernetes 1.28 to 1.34 takes, and what an operator expects of a chart."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from tests.command_line import ROOT
from tests.helm.chart import CASES, CHART, Document, chart, name_of, rendered, texts, values_of

VERSIONS = [f"1.{minor}" for minor in range(28, 35)]
RECOMMENDED = {
    f"app.kubernetes.io/{name}" for name in ("name", "instance", "version", "component", "part-of", "managed-by")
}
CUSTOM = {
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "Certificate": "cert-manager.io/v1",
    "BrokerAuthentication": "mqttbroker.iotoperations.azure.com/v1",
    "BrokerAuthorization": "mqttbroker.iotoperations.azure.com/v1",
}
"""Kinds that Kubernetes itself does not know; their content is looked at in other tests."""
SCHEMAS = files("kubernetes_validate") / "kubernetes-json-schema"


@functools.cache
def schema_folder(version: str) -> Any:
    (folder,) = [
        each for each in SCHEMAS.iterdir() if each.name.startswith(f"v{version}.") and each.name.endswith("-strict")
    ]
    return folder


@functools.cache
def registry(version: str) -> Any:
    definitions = json.loads((schema_folder(version) / "_definitions.json").read_text())
    return Registry().with_resource("_definitions.json", Resource.from_contents(definitions))


@functools.cache
def validator(version: str, kind: str, api: str) -> jsonschema.Draft202012Validator:
    group, _, number = api.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.split(".")[0], number)))
    schema = json.loads((schema_folder(version) / f"{name}.json").read_text())
    return jsonschema.Draft202012Validator(schema, registry=registry(version))


def different() -> dict[str, Document]:
    """Each different object of all cases, with the case in which it is first."""
    found: dict[str, Document] = {}
    for case in CASES:
        for each in rendered(case):
            found.setdefault(json.dumps(each, sort_keys=True), {"case": name_of(case), "object": each})
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version: str) -> None:
    wrong = []
    for found in different().values():
        each = found["object"]
        if each["kind"] in CUSTOM:
            assert each["apiVersion"] == CUSTOM[each["kind"]]
            continue
        wrong += [
            f"{found['case']}: {each['kind']} {each['metadata']['name']}: {error.json_path}: {error.message}"
            for error in validator(version, each["kind"], each["apiVersion"]).iter_errors(each)
        ]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_manifest_is_seen() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}
    assert not validator(VERSIONS[0], "Service", "v1").is_valid(wrong)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_chart_lints_strictly(case: Path) -> None:
    report = helm_python.lint(str(CHART), dict(values_of(case)), strict=True, namespace="vision", quiet=False)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_it_gives_the_same_each_time(case: Path) -> None:
    values = values_of(case)
    assert texts(values) == texts(values)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_objects_have_the_recommended_labels_and_names_that_fit(case: Path) -> None:
    seen = set()
    for each in rendered(case):
        labels = each["metadata"]["labels"]
        assert labels.keys() >= RECOMMENDED
        assert all(len(value) <= 63 for value in labels.values())
        key = each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]
        assert key not in seen
        seen.add(key)
        assert len(each["metadata"]["name"]) <= (52 if each["kind"] in ("StatefulSet", "DaemonSet", "Job") else 63)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_notes_tell_the_next_step(case: Path) -> None:
    (notes,) = [text for name, text in texts(values_of(case)).items() if name.endswith("NOTES.txt")]
    assert "rollout status" in notes
    assert "port-forward" in notes
    assert all(len(line) <= 200 for line in notes.splitlines())


def test_what_comes_from_elsewhere_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "helm" / "write_chart.py"), "--check"],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_readme_leads_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)", (CHART / "README.md").read_text())
    assert len(links) > 15
    assert not [link for link in links if not link.startswith("http") and not (CHART / link).exists()]


def test_chart_and_gateway_have_one_version() -> None:
    from gateway import __version__

    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata["appVersion"] == __version__
    assert chart().metadata["name"] == "triton-edge-gateway"


@pytest.mark.parametrize("example", sorted((CHART / "examples").glob("*.yaml")), ids=name_of)
def test_an_example_has_fifteen_lines_at_most(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 15
