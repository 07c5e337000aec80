"""Pods are where their volume is, what they need is theirs, and nobody else gets at it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import helm_python
import pytest
import yaml

from tests.helm.chart import NAME, Document, chart, ci, container, documents, one, pod_specs

BROKER = {"broker": {"host": "mosquitto"}}
WITH = "requiredDuringSchedulingIgnoredDuringExecution"


def beside(spec: Document) -> list[str]:
    """The components on whose nodes a pod runs."""
    terms = spec.get("affinity", {}).get("podAffinity", {}).get(WITH, [])
    assert all(term["topologyKey"] == "kubernetes.io/hostname" for term in terms)
    return [term["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] for term in terms]


def spec_of(found: list[Document], name: str) -> Document:
    """Of the pods of the object with that name."""
    (spec,) = [spec for owner, spec in pod_specs(found) if owner["metadata"]["name"] == name]
    return spec


def test_on_a_volume_of_one_node_all_follow_triton() -> None:
    given = {**BROKER, "triton": {"nodeSelector": {"gpu": "yes"}, "tolerations": [{"key": "gpu"}]}}
    found = documents(given)
    gateway = spec_of(found, NAME)
    assert (beside(gateway), gateway["tolerations"]) == (["triton"], [{"key": "gpu"}])
    doctor = spec_of(found, f"{NAME}-test-doctor")  # it mounts the volume too
    assert (beside(doctor), doctor["tolerations"]) == (["gateway"], [{"key": "gpu"}])
    shared = documents({**given, "models": {"volume": {"accessModes": ["ReadWriteMany"]}}})
    assert (beside(spec_of(shared, NAME)), spec_of(shared, NAME).get("tolerations")) == ([], None)


def test_on_folders_of_nodes_all_follow_triton() -> None:
    assert beside(spec_of(ci("host-path"), NAME)) == ["triton"]
    assert beside(spec_of(ci("daemonset-apart"), NAME)) == []  # on each node there is one


def test_an_affinity_of_ones_own_stays() -> None:
    own = {
        "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "cache"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    found = documents({**BROKER, "gateway": {"affinity": {"podAffinity": {WITH: [own]}, "nodeAffinity": {}}}})
    assert beside(spec_of(found, NAME)) == ["cache", "triton"]
    assert spec_of(found, NAME)["affinity"]["nodeAffinity"] == {}


@pytest.mark.parametrize("name", [NAME, f"{NAME}-triton"])
def test_a_pod_that_is_not_ready_holds_no_node(name: str) -> None:
    assert one(ci("replicas"), "PodDisruptionBudget", name)["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_limits_alone_are_requests_too() -> None:
    limits = {"cpu": "500m", "memory": "256Mi"}
    found = documents(
        {**BROKER, "gateway": {"resources": {"limits": limits}}, "triton": {"resources": {"limits": limits}}}
    )
    assert container(found, "gateway")["resources"] == {"limits": limits, "requests": limits}
    assert container(found, "triton")["resources"]["requests"] == {**limits, "nvidia.com/gpu": 1}
    less = documents({**BROKER, "gateway": {"resources": {"requests": {"cpu": "100m"}}}})
    assert container(less, "gateway")["resources"]["requests"] == {"cpu": "100m", "memory": "512Mi"}


def test_a_pool_takes_no_image_of_another_device() -> None:
    digest = "sha256:" + "0" * 64
    image = {"repository": "mine/triton", "tag": "26.08-py3", "digest": digest}
    pools = {"a": {}, "b": {"device": "cpu"}, "c": {"image": {"tag": "26.09-py3"}}}
    found = documents({**BROKER, "triton": {"image": image, "pools": pools}})
    images = {name: spec_of(found, f"{NAME}-triton-{name}")["containers"][0]["image"] for name in pools}
    assert images["a"] == f"mine/triton@{digest}"
    assert images["b"].startswith("triton-edge-gateway-triton-cpu:")
    assert images["c"] == "mine/triton:26.09-py3"


def test_beside_a_gateway_triton_commands_are_for_the_gateway_alone() -> None:
    triton = container(ci("colocated-gpu"), "triton")
    assert "--grpc-address=127.0.0.1" in triton["args"]
    (restricted,) = [each for each in triton["args"] if each.startswith("--http-restricted-api=")]
    assert restricted.endswith("=$(POD_UID)")
    assert "model-repository" in restricted
    assert "health" not in restricted  # for the kubelet, which asks the pod's address
    assert [each["name"] for each in triton["env"] if "valueFrom" in each] == ["POD_UID"]
    assert not [
        each for each in container(ci("minimal"), "triton")["args"] if "address" in each or "restricted" in each
    ]


def names(release: str, namespace: str = "vision", **values: Any) -> set[str]:
    texts = chart().render({**BROKER, **values}, name=release, namespace=namespace)
    found = [
        each for name, text in texts.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text) if each
    ]
    return {each["metadata"]["name"] for each in found if each["kind"] == "StatefulSet"}


def test_two_long_names_stay_two() -> None:
    one, other = names("a-plant-with-a-very-long-name-hall-1"), names("a-plant-with-a-very-long-name-hall-2")
    assert not one & other
    assert all(len(name) <= 52 for name in one | other)


@pytest.mark.parametrize("release", ["3rd-line", "hall.1"])
def test_a_release_that_can_name_no_service_is_refused(release: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match="fullnameOverride"):
        names(release)
    assert names(release, fullnameOverride="hall") == {"hall", "hall-triton"}


def test_names_that_look_like_numbers_stay_names() -> None:
    found = documents({**BROKER, "serviceAccount": {"name": "123"}, "imagePullSecrets": ["123", "null"]})
    spec = spec_of(found, NAME)
    assert (spec["serviceAccountName"], spec["imagePullSecrets"]) == ("123", [{"name": "123"}, {"name": "null"}])


def test_another_namespace_or_node_set_is_another_client_and_another_group() -> None:
    def told(namespace: str, **values: Any) -> tuple[str, str]:
        given = {"broker": {"host": "b", "sharedSubscription": "always"}, **values}
        text = chart().render(given, name="edge", namespace=namespace)["triton-edge-gateway/templates/gateway.yaml"]
        env = {each["name"]: each.get("value") for each in container([yaml.safe_load(text)], "gateway")["env"]}
        return env["AIO_MQTT_CLIENT_ID"], env["MQTT_INPUT_TOPICS"].split("/")[1]

    assert told("a") == ("edge-gateway-a-$(GATEWAY_ID)", "a.edge")
    assert told("b") == ("edge-gateway-b-$(GATEWAY_ID)", "b.edge")
    daemons = [told("a", gateway={"kind": "DaemonSet"}, fullnameOverride=name)[0] for name in ("blue", "green")]
    assert len(set(daemons)) == 2
    kept = {"host": "b", "sharedSubscription": "always", "clientIdPrefix": "edge-gateway-", "shareGroup": "edge"}
    assert told("a", broker=kept) == ("edge-gateway-$(GATEWAY_ID)", "edge")  # as a chart before this one


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int]]]:
    """The address of a server, and the status that it answers with."""
    status = [503]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()
            self.wfile.write(b'{"reason": "no model"}')

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/ready", status
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_helm_test_says_why_a_gateway_is_not_ready(answering: tuple[str, list[int]]) -> None:
    url, status = answering
    (test,) = spec_of(ci("colocated-gpu"), f"{NAME}-test-ready")["containers"]
    words = [sys.executable, "-I", *test["command"][1:]]

    def asked(service: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, service, url, test["args"][2]], capture_output=True, text=True, check=False)

    refused = asked("http://127.0.0.1:1/ready")  # nobody is ready, so nobody is behind the Service
    assert refused.returncode == 1
    assert "no model" in refused.stdout
    assert "edge-gateway doctor" in refused.stderr
    assert "Traceback" not in refused.stderr
    status[0] = 200
    assert asked(url).returncode == 0


def test_what_switches_on_outside_access_says_that_a_policy_is_before_it() -> None:
    def notes(**values: Any) -> str:
        return str(
            chart().render({**BROKER, **values}, name="edge", namespace="vision")[
                "triton-edge-gateway/templates/NOTES.txt"
            ]
        )

    balanced = {"service": {"type": "LoadBalancer"}}
    assert "networkPolicy.apiFrom is empty" in notes(gateway=balanced)
    assert "apiFrom" not in notes(gateway=balanced, networkPolicy={"enabled": False})
    assert "models.volume.existingClaim" in notes()
    assert "accessModes=" not in notes()  # of a claim that is there they cannot be changed
