"""Prometheus finds every gateway and Triton under the names that rules and dashboards ask for."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from tests.helm.chart import NAME, Document, ci, one, pod_specs
from tests.observability.expressions import unknown
from tests.observability.prometheus import RULES


def monitors(found: list[Document]) -> dict[str, Document]:
    """By the job that they give."""
    kinds = {"ServiceMonitor": "endpoints", "PodMonitor": "podMetricsEndpoints"}
    specs = [(each["spec"], each["spec"][kinds[each["kind"]]]) for each in found if each["kind"] in kinds]
    return {ends[0]["relabelings"][0]["replacement"]: {**spec, "end": ends[0]} for spec, ends in specs}


@pytest.mark.parametrize("case", ["monitoring", "monitoring-colocated", "keda"])
def test_the_jobs_have_the_names_that_rules_and_dashboards_ask_for(case: str) -> None:
    found = monitors(ci(case))
    assert set(found) == {"edge-gateway", "triton"}
    for spec in found.values():
        assert spec["end"]["relabelings"] == [
            {"targetLabel": "job", "replacement": spec["end"]["relabelings"][0]["replacement"]},
            {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "instance"},
        ]


@pytest.mark.parametrize("case", ["monitoring", "monitoring-colocated"])
def test_a_service_monitor_finds_each_pod_once(case: str) -> None:
    services = [each for each in ci(case) if each["kind"] == "Service"]
    for job, spec in monitors(ci(case)).items():
        matching = [s for s in services if spec["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()]
        assert len(matching) == 1, job
        assert spec["end"]["port"] in {port["name"] for port in matching[0]["spec"]["ports"]}


def test_a_pod_monitor_finds_pods_with_that_port() -> None:
    for spec in monitors(ci("keda")).values():
        selected = [
            pods for owner, pods in pod_specs(ci("keda"))
            if owner["kind"] == "StatefulSet"
            and spec["selector"]["matchLabels"].items() <= owner["spec"]["template"]["metadata"]["labels"].items()
        ]  # fmt: skip
        assert len(selected) == 1
        assert spec["end"]["port"] in {port["name"] for port in selected[0]["containers"][0]["ports"]}


def test_the_rules_are_those_of_compose_with_the_address_of_the_runbook() -> None:
    rule = one(ci("monitoring"), "PrometheusRule", NAME)
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    source = RULES.read_text().replace("docs/runbook.md", "https://wiki.example/runbook.md")
    assert rule["spec"] == yaml.safe_load(source)


def test_the_dashboards_are_those_of_compose() -> None:
    boards = [each for each in ci("monitoring") if each["metadata"]["labels"].get("grafana_dashboard") == "1"]
    sources = sorted((RULES.parents[1] / "grafana" / "dashboards").glob("*.json"))
    assert len(boards) == len(sources) == 4
    for board in boards:
        ((name, text),) = board["data"].items()
        assert board["metadata"]["annotations"] == {"grafana_folder": "Edge"}
        source = next(each for each in sources if each.name == name).read_text()
        assert json.loads(text) == json.loads(source.replace("docs/runbook.md", "https://wiki.example/runbook.md"))
    assert sum(len(json.dumps(each)) for each in boards) < 900_000  # a release may have 1 MiB, compressed


@pytest.mark.parametrize(("case", "kind", "threshold"), [("keda", "AverageValue", "8"), ("keda-lag", "Value", "0.25")])
def test_keda_asks_for_series_that_there_are(case: str, kind: str, threshold: str) -> None:
    scaled = one(ci(case), "ScaledObject", NAME)["spec"]
    assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": NAME}
    (trigger,) = scaled["triggers"]
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == (kind, threshold)
    query = trigger["metadata"]["query"]
    selected = re.findall(r"\{(.*?)\}", query)
    assert all('namespace="vision"' in each for each in selected)  # another namespace may have the same names
    assert not list(unknown(query.replace('namespace="vision",', "")))  # the operator's monitors give that label
    assert ("0 * sum(rate(" in query) == (case == "keda-lag")  # without an answer there is no lag, nor NaN


def test_the_autoscaler_looks_at_the_queue_or_at_how_late_answers_are() -> None:
    def metric(case: str) -> tuple[str, str]:
        (each,) = one(ci(case), "HorizontalPodAutoscaler", NAME)["spec"]["metrics"]
        return each["pods"]["metric"]["name"], each["pods"]["target"]["averageValue"]

    assert metric("hpa") == ("edge_gateway_queue_messages", "16")
    assert metric("hpa-lag") == ("edge_gateway_snapshot_p99_seconds", "500m")
