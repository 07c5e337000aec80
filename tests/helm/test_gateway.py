"""What the chart tells the gateway is a configuration that it takes, and how many gateways share the work fits."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.config_warnings import settings_warnings
from tests.helm.chart import (
    CASES,
    NAME,
    Document,
    ci,
    container,
    documents,
    environment,
    name_of,
    one,
    pod_specs,
    rendered,
    write_chart,
)

BROKER = {"broker": {"host": "mosquitto"}}
NOT_SETTINGS = {"GATEWAY_CONFIG", "TMPDIR", "POD_INDEX"}
PLACES = {
    "metadata.name": "pod-0",
    "spec.nodeName": "node-a",
    "metadata.labels['apps.kubernetes.io/pod-index']": "0",
}


def gateway_of(case: Path) -> Document:
    return container(rendered(case), "gateway")


def settings_of(found: list[Document], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the gateway makes of its environment and its file, in a pod called pod-0 on the node node-a."""
    (config,) = [each for each in found if each["kind"] == "ConfigMap" and "gateway.yaml" in each["data"]]
    (folder / "gateway.yaml").write_text(config["data"]["gateway.yaml"])
    for name in [*Settings.model_fields, "gateway_config"]:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in filled(container(found, "gateway")["env"]).items():
        monkeypatch.setenv(name, value)
    return load_settings(folder / "gateway.yaml")


def filled(variables: list[Document]) -> dict[str, str]:
    """As Kubernetes fills them in: $(NAME) is a variable that came before."""
    values: dict[str, str] = {}
    for each in variables:
        value = each["value"] if "value" in each else PLACES[each["valueFrom"]["fieldRef"]["fieldPath"]]
        values[each["name"]] = re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1], found[0]), value)
    return values


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_gateway_takes_its_settings(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(rendered(case), tmp_path, monkeypatch)
    assert settings_warnings(settings, os.environ) == []
    assert settings.http_port == 8080


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_variable_is_a_setting_that_values_cannot_give_twice(case: Path) -> None:
    names = set(environment(gateway_of(case))) - NOT_SETTINGS
    assert {name.lower() for name in names} <= Settings.model_fields.keys() & write_chart().OF_THE_CHART


def test_one_gateway_has_its_topics_and_its_session_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(ci("minimal"), tmp_path, monkeypatch)
    assert settings.mqtt_input_topics == Settings.model_fields["mqtt_input_topics"].default
    assert (settings.aio_mqtt_session_expiry, settings.mqtt_leave_group) == (86_400, False)
    assert settings.rollout_lease == "kubernetes"  # another release may come to the volume, as for blue and green
    assert (settings.gateway_id, settings.client_id) == ("pod-0", "edge-gateway-vision-pod-0")


def test_several_gateways_share_topics_leave_in_order_and_agree_by_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(ci("replicas"), tmp_path, monkeypatch)
    assert all(topic.startswith("$share/vision/") for topic in settings.mqtt_input_topics)
    assert (settings.aio_mqtt_session_expiry, settings.mqtt_leave_group) == (600, True)
    assert (settings.rollout_lease, settings.rollout_lease_name) == ("kubernetes", f"{NAME}-roller")
    assert (settings.queue_max_messages, settings.queue_max_bytes) == (256, 64 * 2**20)  # what waited comes at once
    assert settings.client_id == "edge-gateway-vision-pod-0"  # each has its own, from its name
    assert len(settings.triton_endpoints) == len(settings.triton_metrics_urls) == 2


def test_replicas_are_started_at_once_and_replaced_one_by_one() -> None:
    spec = one(ci("replicas"), "StatefulSet", NAME)["spec"]
    assert (spec["replicas"], spec["podManagementPolicy"], spec["minReadySeconds"]) == (3, "Parallel", 10)
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}
    assert one(ci("replicas"), "PodDisruptionBudget", NAME)["spec"]["maxUnavailable"] == 1


def test_one_to_be_several_later_can_share_from_the_beginning() -> None:
    env = environment(container(documents({"broker": {"host": "b", "sharedSubscription": "always"}}), "gateway"))
    assert env["MQTT_INPUT_TOPICS"].startswith("$share/vision.edge/")
    assert "MQTT_LEAVE_GROUP" not in env  # nobody would take what comes meanwhile


def test_two_releases_can_be_one_group_on_one_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(ci("blue-green"), tmp_path, monkeypatch)
    assert settings.mqtt_leave_group
    assert all(topic.startswith("$share/vision.edge/") for topic in settings.mqtt_input_topics)
    assert (settings.rollout_lease, settings.rollout_lease_name) == ("kubernetes", f"{NAME}-roller")
    blue = documents({"broker": {"host": "mosquitto", "sharedSubscription": "always", "leaveGroup": "always"}})
    theirs = settings_of(blue, tmp_path, monkeypatch)
    assert theirs.mqtt_input_topics == settings.mqtt_input_topics
    assert (theirs.rollout_lease, theirs.rollout_lease_name) == (settings.rollout_lease, settings.rollout_lease_name)
    assert one(blue, "PersistentVolumeClaim", f"{NAME}-models")
    (role,) = [each for each in ci("blue-green") if each["kind"] == "Role"]
    assert role["rules"][0]["resourceNames"] == [f"{NAME}-roller"]
    assert not [each for each in ci("blue-green") if each["kind"] == "PersistentVolumeClaim"]


def test_replicas_may_have_topics_of_their_own() -> None:
    env = container(ci("own-topics"), "gateway")["env"]
    names = [each["name"] for each in env]
    assert names.index("POD_INDEX") < names.index("MQTT_INPUT_TOPICS")  # Kubernetes fills in what came before
    topics = environment({"env": env})["MQTT_INPUT_TOPICS"]
    assert topics == "edge-ai/plant/hall/line-$(POD_INDEX)/camera/snapshots"
    assert "MQTT_LEAVE_GROUP" not in names
    doctor = one(ci("own-topics"), "Pod", f"{NAME}-test-doctor")
    assert doctor["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "0"


def test_a_deployment_is_replaced_as_a_whole_under_one_name() -> None:
    found = ci("deployment")
    assert one(found, "Deployment", NAME)["spec"]["strategy"] == {"type": "Recreate"}
    assert environment(container(found, "gateway"))["GATEWAY_ID"] == NAME


def test_a_daemonset_knows_its_session_by_the_node() -> None:
    found = ci("daemonset-colocated")
    (gateway_id,) = [each for each in container(found, "gateway")["env"] if each["name"] == "GATEWAY_ID"]
    assert gateway_id["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    assert one(found, "DaemonSet", NAME)["spec"]["updateStrategy"]["rollingUpdate"] == {
        "maxUnavailable": "25%",
        "maxSurge": 0,
    }
    assert environment(container(found, "gateway"))["ROLLOUT_LEASE"] == "file"  # each node has a volume of its own


def test_where_the_number_follows_the_load_the_chart_does_not_say_it() -> None:
    found = ci("hpa")
    assert "replicas" not in one(found, "StatefulSet", NAME)["spec"]
    scaler = one(found, "HorizontalPodAutoscaler", NAME)["spec"]
    assert scaler["scaleTargetRef"]["kind"] == "StatefulSet"
    assert scaler["minReplicas"] == 2
    assert "$share/" in environment(container(found, "gateway"))["MQTT_INPUT_TOPICS"]


def test_the_lease_alone_is_granted() -> None:
    (role,) = [each for each in ci("replicas") if each["kind"] == "Role"]
    lease = environment(container(ci("replicas"), "gateway"))["ROLLOUT_LEASE_NAME"]
    assert [(rule["verbs"], rule.get("resourceNames")) for rule in role["rules"]] == [
        (["get", "update"], [lease]),
        (["create"], None),
    ]
    assert not [each for each in ci("host-path") if each["kind"] in ("Role", "RoleBinding")]


def test_the_token_of_azure_iot_operations_has_its_audience() -> None:
    found = ci("azure-iot-operations")
    spec = one(found, "StatefulSet", NAME)["spec"]["template"]["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "broker-auth"]
    assert volume["projected"]["sources"][0]["serviceAccountToken"]["audience"] == "aio-internal"
    (authority,) = [each for each in spec["volumes"] if each["name"] == "broker-ca"]
    assert authority["configMap"]["name"] == "azure-iot-operations-aio-ca-trust-bundle"
    authorization = one(found, "BrokerAuthorization", f"{NAME}-vision")  # other namespaces have some there too
    assert authorization["metadata"]["namespace"] == "azure-iot-operations"
    (rule,) = authorization["spec"]["authorizationPolicies"]["rules"]
    assert rule["principals"] == {"attributes": [{"group": "edge-gateways"}]}
    account = one(found, "ServiceAccount", NAME)
    assert account["metadata"]["annotations"]["aio-broker-auth/group"] == "edge-gateways"
    assert [each["method"] for each in rule["brokerResources"]] == ["Connect", "Publish", "Subscribe"]
    (method,) = one(found, "BrokerAuthentication", f"{NAME}-vision")["spec"]["authenticationMethods"]
    assert method["serviceAccountTokenSettings"]["audiences"] == ["aio-internal"]


def test_cert_manager_makes_the_certificate_that_is_mounted() -> None:
    found = ci("cert-manager")
    certificate = one(found, "Certificate", f"{NAME}-broker-client")["spec"]
    spec = one(found, "StatefulSet", NAME)["spec"]["template"]["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "broker-auth"]
    assert volume["secret"]["secretName"] == certificate["secretName"]
    assert certificate["issuerRef"] == {"name": "plant", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    assert "client auth" in certificate["usages"]


def colocated_stop() -> tuple[list[str], int]:
    """What Triton waits with, beside a gateway, and the grace period of the pod."""
    found = ci("colocated-gpu")
    (spec,) = [spec for owner, spec in pod_specs(found) if owner["kind"] == "StatefulSet"]
    return container(found, "triton")["lifecycle"]["preStop"]["exec"]["command"], spec["terminationGracePeriodSeconds"]


def test_beside_a_gateway_triton_ends_after_it() -> None:
    command, _ = colocated_stop()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        command = [part.replace("8080", str(listening.getsockname()[1])) for part in command]
        with subprocess.Popen(command) as waiting:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.5)
            listening.close()
            assert waiting.wait(10) == 0


def test_triton_does_not_wait_for_longer_than_the_pod_lives() -> None:
    command, grace = colocated_stop()
    most = int(command[2].partition("seq ")[2].partition(")")[0])
    assert most + 5 <= grace - 5  # and then its own --exit-timeout-secs=5


def test_both_containers_see_the_same_shared_memory() -> None:
    found = ci("colocated-gpu")
    for name in ("gateway", "triton"):
        mounts = {mount["mountPath"]: mount["name"] for mount in container(found, name)["volumeMounts"]}
        assert mounts["/dev/shm"] == "shared-memory"
    (spec,) = [spec for owner, spec in pod_specs(found) if owner["kind"] == "StatefulSet"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "shared-memory"]
    assert volume["emptyDir"]["medium"] == "Memory"
    env = environment(container(found, "gateway"))
    assert (env["TRITON_GRPC_URL"], env["TRITON_SHARED_MEMORY"]) == ("localhost:8001", "auto")


def test_in_one_pod_what_is_said_of_either_place_holds() -> None:
    given = {
        **BROKER,
        "mode": "colocated",
        "gateway": {"nodeSelector": {"a": "1"}, "tolerations": [{"key": "a"}], "podLabels": {"x": "1"}},
        "triton": {
            "nodeSelector": {"b": "2"},
            "tolerations": [{"key": "b"}],
            "podLabels": {"y": "2"},
            "podAnnotations": {"z": "3"},
            "runtimeClassName": "nvidia",
            "priorityClassName": "high",
            "affinity": {"nodeAffinity": {}},
        },
    }
    template = one(documents(given), "StatefulSet", NAME)["spec"]["template"]
    assert template["metadata"]["labels"].items() >= {"x": "1", "y": "2"}.items()
    assert template["metadata"]["annotations"]["z"] == "3"
    spec = template["spec"]
    assert spec["nodeSelector"] == {"a": "1", "b": "2"}
    assert spec["tolerations"] == [{"key": "a"}, {"key": "b"}]
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "high")
    assert spec["affinity"] == {"nodeAffinity": {}}


def test_triton_is_told_of_shared_memory_where_it_knows_the_argument() -> None:
    def told(**triton: Any) -> bool:
        given = {**BROKER, "mode": "colocated", "triton": triton}
        return "--allow-client-shm=true" in container(documents(given), "triton")["args"]

    assert told(gpuTag="26.05-py3")
    assert told(gpuTag="27.01-py3")
    assert not told(gpuTag="26.04-py3")
    assert not told(gpuTag="25.12-py3")
    assert not told(device="cpu")
    assert told(image={"tag": "of-mine"}, allowClientSharedMemory="true")


def test_pools_have_what_they_ask_for_and_get_what_is_placed_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ci("pools")
    sets = {
        each["metadata"]["name"].removeprefix(f"{NAME}-triton-"): each
        for each in found
        if each["kind"] == "StatefulSet"
    }
    limits = {
        name: sets[name]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name in ("small", "large", "plain")
    }
    assert limits["small"] == {"cpu": "2", "memory": "4Gi", "nvidia.com/mig-1g.5gb": 1}
    assert limits["large"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": 1}
    assert limits["plain"] == {"cpu": "2", "memory": "4Gi"}
    assert sets["leaving"]["spec"]["replicas"] == 0
    assert sets["large"]["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in sets["plain"]["spec"]["template"]["spec"]
    settings = settings_of(found, tmp_path, monkeypatch)
    assert len(settings.triton_endpoints) == 4  # none of the pool that is leaving
    safety, tenant = settings.placement_rules
    assert [endpoint.split(".")[0] for endpoint in safety.endpoints] == [f"{NAME}-triton-large-0"]
    assert len(tenant.endpoints) == 3


def test_a_new_triton_has_time_to_be_warmed() -> None:
    spec = one(ci("replicas"), "StatefulSet", f"{NAME}-triton")["spec"]
    assert (spec["replicas"], spec["minReadySeconds"]) == (2, 600)
    assert "minReadySeconds" not in one(ci("minimal"), "StatefulSet", f"{NAME}-triton")["spec"]  # nobody waits for it
    service = one(ci("replicas"), "Service", f"{NAME}-triton")["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)


def test_a_triton_on_each_node_is_asked_by_the_gateway_of_that_node() -> None:
    found = ci("daemonset-apart")
    service = one(found, "Service", f"{NAME}-triton-local")["spec"]  # Kubernetes would not change the other kind's
    assert service["internalTrafficPolicy"] == "Local"
    assert "clusterIP" not in service
    assert environment(container(found, "gateway"))["TRITON_GRPC_URL"].startswith(f"{NAME}-triton-local.vision.svc.")


def test_what_waits_for_the_broker_stays_with_its_replica() -> None:
    spec = one(ci("everything-set"), "StatefulSet", "plant-vision")["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["/var/lib/edge-gateway"] == claim["metadata"]["name"] == "data"
