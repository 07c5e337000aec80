"""The network policies let through what is needed and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helm.chart import CASES, NAME, Document, ci, container, environment, name_of, one, pod_specs, rendered


def policies(found: list[Document]) -> list[Document]:
    return [each["spec"] for each in found if each["kind"] == "NetworkPolicy"]


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """As Kubernetes does, for the operators that the chart uses."""
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def ports(rules: list[Document]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


def labels_of(found: list[Document], component: str) -> dict[str, str]:
    """Of the pods of a component."""
    for owner, _ in pod_specs(found):
        labels = (owner["metadata"] if owner["kind"] == "Pod" else owner["spec"]["template"]["metadata"])["labels"]
        if labels["app.kubernetes.io/component"] == component:
            return dict(labels)
    raise AssertionError(component)


@pytest.mark.parametrize("case", [each for each in CASES if name_of(each) != "network-open"], ids=name_of)
def test_each_pod_has_one_policy_for_both_directions(case: Path) -> None:
    found = rendered(case)
    for owner, _ in pod_specs(found):
        labels = (owner["metadata"] if owner["kind"] == "Pod" else owner["spec"]["template"]["metadata"])["labels"]
        (policy,) = [each for each in policies(found) if selects(each["podSelector"], labels)]
        assert policy["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize("case", [each for each in CASES if name_of(each) != "network-open"], ids=name_of)
def test_a_port_that_is_let_through_is_one_on_which_somebody_listens(case: Path) -> None:
    found = rendered(case)
    for policy in policies(found):
        listening = {
            port["containerPort"]
            for owner, spec in pod_specs(found)
            if owner["kind"] not in ("Pod", "Job")
            and selects(policy["podSelector"], owner["spec"]["template"]["metadata"]["labels"])
            for each in spec["containers"]
            for port in each["ports"]
        }
        assert ports(policy["ingress"]) <= listening


def test_nothing_where_nothing_is_wanted() -> None:
    assert policies(ci("network-open")) == []


def gateway_policy(found: list[Document]) -> Document:
    (policy,) = [each for each in policies(found) if selects(each["podSelector"], labels_of(found, "gateway"))]
    return policy


def test_the_gateway_reaches_dns_the_broker_and_triton() -> None:
    needed = {53, 1883, 8001, 8002, 8080}  # the last for `helm test`
    assert ports(gateway_policy(ci("host-path"))["egress"]) == needed
    assert ports(gateway_policy(ci("minimal"))["egress"]) == needed | {443, 6443}  # and the Lease
    assert ports(gateway_policy(ci("azure-iot-operations"))["egress"]) >= {18883}


def test_the_api_server_is_reached_for_the_lease_alone() -> None:
    lease = gateway_policy(ci("replicas"))["egress"]
    (rule,) = [each for each in lease if 6443 in {port["port"] for port in each["ports"]}]
    assert rule["to"] == [{"ipBlock": {"cidr": "192.168.10.0/24"}}]  # nodes: policies see what is behind a Service
    assert ports([rule]) == {6443}


def test_external_tritons_are_reached_on_their_ports() -> None:
    assert ports(gateway_policy(ci("external-triton"))["egress"]) >= {8001, 9001, 443, 9002}


def test_only_gateways_and_prometheus_reach_triton_and_it_reaches_nobody() -> None:
    found = ci("minimal")
    policy = one(found, "NetworkPolicy", f"{NAME}-triton")["spec"]
    assert policy["egress"] == []
    gateways, prometheus = policy["ingress"]
    assert selects(gateways["from"][0]["podSelector"], labels_of(found, "gateway"))
    assert selects(gateways["from"][0]["podSelector"], labels_of(found, "test"))
    assert not selects(gateways["from"][0]["podSelector"], labels_of(found, "triton"))
    assert ports([gateways]) == {8001, 8002}
    assert ports([prometheus]) == {8002}


def test_a_rule_without_a_source_is_never_written() -> None:
    """Without `from` a rule would let in everybody."""
    found: list[Any] = [rule for case in CASES for policy in policies(rendered(case)) for rule in policy["ingress"]]
    assert found
    assert all(rule.get("from") for rule in found)


def test_an_operator_decides_who_else_comes_in() -> None:
    sources = gateway_policy(ci("network-strict"))["ingress"][0]["from"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}} in sources
    egress = ports(gateway_policy(ci("network-strict"))["egress"])
    assert {9000, 4318} <= egress  # the receiver of traces is known by its setting
    triton = one(ci("network-strict"), "NetworkPolicy", f"{NAME}-triton")["spec"]
    assert ports(triton["egress"]) == {5432}


def test_who_downloads_reaches_the_server_alone() -> None:
    policy = one(ci("download-job"), "NetworkPolicy", f"{NAME}-download")["spec"]
    assert policy["ingress"] == []
    assert ports(policy["egress"]) == {53, 443}
    in_pod = gateway_policy(ci("download-in-pod"))["egress"]
    assert {"ports": [{"port": 443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]} in in_pod


def test_the_port_of_the_broker_is_that_of_the_gateway() -> None:
    for case in CASES:
        if name_of(case) != "network-open":
            port = int(environment(container(rendered(case), "gateway"))["AIO_BROKER_TCP_PORT"])
            assert port in ports(gateway_policy(rendered(case))["egress"])
