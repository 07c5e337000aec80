"""What no rendering of the chart may do: root, privilege, no limits, `latest`, no probes; the standard *restricted*."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helm.chart import CASES, Document, containers, name_of, pod_specs, rendered, values_of

ALLOWED_VOLUMES = {"configMap", "secret", "projected", "emptyDir", "persistentVolumeClaim", "downwardAPI"}
"""Of those that *restricted* allows; hostPath is none of them."""
pytestmark = pytest.mark.parametrize("case", CASES, ids=name_of)


def specs(case: Path) -> list[Document]:
    found = [spec for _, spec in pod_specs(rendered(case))]
    assert found
    return found


def test_pods_pass_the_standard_restricted(case: Path) -> None:
    for spec in specs(case):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["runAsGroup"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & spec.keys()
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= ALLOWED_VOLUMES
        for each in containers(spec):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
            }
            assert not any("hostPort" in port for port in each.get("ports", []))


def test_pods_get_no_token_and_no_service_links_unasked(case: Path) -> None:
    for spec in specs(case):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
    accounts = [each for each in rendered(case) if each["kind"] == "ServiceAccount"]
    assert all(account["automountServiceAccountToken"] is False for account in accounts)


def test_only_the_gateway_may_ask_the_api_server(case: Path) -> None:
    for owner, spec in pod_specs(rendered(case)):
        for each in containers(spec):
            mounts = {mount["mountPath"] for mount in each["volumeMounts"]} if "volumeMounts" in each else set()
            if "/var/run/secrets/kubernetes.io/serviceaccount" in mounts:
                assert each["name"] in ("gateway", "doctor"), owner["metadata"]["name"]
    rules = [rule for each in rendered(case) if each["kind"] in ("Role", "ClusterRole") for rule in each["rules"]]
    assert all(rule["resources"] == ["leases"] for rule in rules)
    assert {verb for rule in rules for verb in rule["verbs"]} <= {"get", "create", "update"}
    assert not [each for each in rendered(case) if each["kind"].startswith("ClusterRole")]


def test_everything_has_limits(case: Path) -> None:
    for spec in specs(case):
        for each in containers(spec):
            assert each["resources"]["limits"].keys() >= {"cpu", "memory"}
        for volume in spec.get("volumes", []):
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""})


def test_gateway_and_triton_are_of_the_class_guaranteed(case: Path) -> None:
    for owner, spec in pod_specs(rendered(case)):
        if owner["kind"] not in ("Pod", "Job"):
            for each in containers(spec):
                assert each["resources"].get("requests", each["resources"]["limits"]) == each["resources"]["limits"]


def test_images_have_a_version(case: Path) -> None:
    for spec in specs(case):
        for each in containers(spec):
            name = each["image"].rpartition("/")[2]
            assert "@sha256:" in name or (":" in name and not name.endswith((":", ":latest")))


def test_images_come_from_the_registry_of_the_site(case: Path) -> None:
    registry = values_of(case).get("imageRegistry")
    for spec in specs(case) if registry else []:
        assert all(each["image"].startswith(f"{registry}/") for each in containers(spec))


def test_what_stays_has_probes(case: Path) -> None:
    paths = {
        "gateway": {"startupProbe": "/live", "livenessProbe": "/live", "readinessProbe": "/ready"},
        "triton": {
            "startupProbe": "/v2/health/live", "livenessProbe": "/v2/health/live", "readinessProbe": "/v2/health/ready",
        },
    }  # fmt: skip
    for owner, spec in pod_specs(rendered(case)):
        for each in spec["containers"] if owner["kind"] not in ("Pod", "Job") else []:
            assert {probe: each[probe]["httpGet"]["path"] for probe in paths[each["name"]]} == paths[each["name"]]
            ports = {port["name"] for port in each["ports"]}
            assert all(each[probe]["httpGet"]["port"] in ports for probe in paths[each["name"]])


def test_pods_have_time_to_drain(case: Path) -> None:
    for _, spec in pod_specs(rendered(case)):
        for each in spec["containers"]:
            if each["name"] == "gateway":
                drain = next(float(item["value"]) for item in each["env"] if item["name"] == "DRAIN_TIMEOUT_S")
                assert spec["terminationGracePeriodSeconds"] >= drain + 20


def test_every_mount_has_its_volume_and_every_volume_a_mount(case: Path) -> None:
    for owner, spec in pod_specs(rendered(case)):
        claims = {each["metadata"]["name"] for each in owner["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims
        mounted = [mount for each in containers(spec) for mount in each.get("volumeMounts", [])]
        assert {mount["name"] for mount in mounted} == volumes
        for each in containers(spec):
            paths = [mount["mountPath"] for mount in each.get("volumeMounts", [])]
            assert len(paths) == len(set(paths))


def test_what_selects_finds_its_pods(case: Path) -> None:
    found = rendered(case)
    labels = [
        o["spec"]["template"]["metadata"]["labels"] for o, _ in pod_specs(found) if o["kind"] not in ("Pod", "Job")
    ]

    def matches(selector: Document) -> int:
        return sum(selector.items() <= each.items() for each in labels)

    for each in found:
        if each["kind"] == "Service":
            assert matches(each["spec"]["selector"]) >= 1
        elif each["kind"] == "PodDisruptionBudget":
            assert matches(each["spec"]["selector"]["matchLabels"]) >= 1
        elif each["kind"] in ("StatefulSet", "Deployment", "DaemonSet"):
            assert matches(each["spec"]["selector"]["matchLabels"]) == 1
            for spread in each["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
                assert matches(spread["labelSelector"]["matchLabels"]) == 1
