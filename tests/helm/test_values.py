"""Values are refused that mean nothing, or something else together than each by itself."""

from __future__ import annotations

import copy
import json
from typing import Any

import helm_python
import pytest
import yaml

from gateway.config import Settings
from tests.helm.chart import CHART, chart, documents, texts, write_chart

BROKER = {"broker": {"host": "mosquitto"}}
SOURCE = {"name": "x", "url": "https://x/y", "sha256": "0" * 64}
GREEDY = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1500m"}}
APART = {
    "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}
}


def with_values(path: str, value: Any) -> dict[str, Any]:
    """The least that is needed, and one value more."""
    return both((path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("brokr", {}),
        ("broker.hots", "mosquitto"),
        ("broker.tls.enable", True),
        ("broker.auth.certManager.issuerRef.nmae", "x"),
        ("gateway.replica", 2),
        ("gateway.resources.limit", {"cpu": "1"}),
        ("gateway.settings.snapshot_deadline", 5),
        ("gateway.settings.aio_broker_hostname", "mosquitto"),  # broker.host says it
        ("gateway.settings.snapshot_deadline_ms", "soon"),
        ("gateway.image.tag", "latest"),
        ("gateway.image.digest", "sha256:short"),
        ("gateway.kind", "ReplicaSet"),
        ("gateway.replicas", 0),
        ("gateway.replicas", "3"),
        ("gateway.extraEnv", [{"value": "1"}]),
        ("triton.gpu.resource", "gpu"),
        ("triton.pools", {"large": {"replica": 1}}),
        ("triton.pools", {"large": {"image": {"tag": "latest"}}}),
        ("triton.pools", {"A_POOL": {}}),
        ("triton.placement", [{"model": "x"}]),
        ("triton.resources", {"limits": {"memory": None}}),  # no limit
        ("models.download.sources", [{"name": "x", "url": "https://x/y"}]),  # no digest
        ("models.download.sources", [{"name": "x", "sha256": "0" * 64}]),  # from nowhere
        ("models.download.sources", [{"name": "x", "sha256": "0" * 64, "oci": {"reference": "x:1", "file": "f"}}]),
        ("models.download.orasImage", "oras:latest"),
        ("models.download.orasImage", "oras"),
        ("models.volume.size", "ten"),
        ("autoscaling.minReplicas", 1),
        ("security.runAsUser", 0),
        ("networkPolicy.enable", False),
        ("nameOverride", "Bad_Name!"),
        ("fullnameOverride", "A.B"),
        ("commonLabels", {"app.kubernetes.io/name": "mine"}),  # the chart's own, which would be there twice
        ("commonLabels", {"team": "x" * 64}),
        ("gateway.podLabels", {"app.kubernetes.io/component": "mine"}),
        ("gateway.podAnnotations", {"checksum/settings": "1"}),
        ("commonAnnotations", {"helm.sh/resource-policy": "keep"}),
        ("monitoring.labels", {"helm.sh/chart": "mine"}),
        ("models.download.proxy", "proxy:3128"),
        ("autoscaling.prometheusAddress", "http://x #a"),
    ],
)
def test_a_typo_is_refused(path: str, value: Any) -> None:
    with pytest.raises(helm_python.HelmError) as caught:
        texts(with_values(path, value))
    assert path.split(".")[0] in str(caught.value)


def both(*changes: tuple[str, Any]) -> dict[str, Any]:
    """Several values at once, on top of the least that is needed."""
    given: dict[str, Any] = copy.deepcopy(BROKER)
    for path, value in changes:
        level = given
        *above, last = path.split(".")
        for name in above:
            level = level.setdefault(name, {})
        level[last] = value
    return given


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "broker.host is needed"),
        (both(("gateway.kind", "Deployment"), ("gateway.replicas", 2)), "use StatefulSet"),
        (both(("gateway.kind", "DaemonSet"), ("gateway.replicas", 2)), "one gateway a node"),
        (both(("gateway.kind", "Deployment"), ("gateway.partition", 1)), "partition needs"),
        (both(("autoscaling.type", "hpa"), ("autoscaling.maxReplicas", 2), ("autoscaling.minReplicas", 3)), "is below"),
        (both(("autoscaling.type", "hpa"), ("broker.sharedSubscription", "never")), "autoscaling needs"),
        (both(("gateway.replicas", 2), ("gateway.settings.mqtt_protocol", "3.1.1")), "by MQTT 5"),
        (both(("broker.inputTopics", ["x/$(POD_INDEX)"]), ("gateway.replicas", 2)), "sharedSubscription=never"),
        (both(("broker.leaveGroup", "always")), "sharedSubscription=always"),
        (both(("broker.tls.caSecret", "x")), "needs broker.tls.enabled=true"),
        (both(("broker.auth.type", "serviceAccountToken")), "needs broker.tls.enabled=true"),
        (both(("broker.auth.type", "password")), "broker.auth.username"),
        (both(("broker.auth.type", "certificate"), ("broker.tls.enabled", True)), "certManager.enabled=true"),
        (both(("broker.auth.certManager.enabled", True)), "issuerRef.name"),
        (both(("mode", "colocated"), ("triton.enabled", False)), "triton.enabled=true"),
        (both(("mode", "colocated"), ("triton.replicas", 2)), "one Triton beside each gateway"),
        (both(("triton.enabled", False)), "triton.external.endpoints"),
        (both(("triton.external.endpoints", ["a:8001"])), "triton.enabled=false"),
        (both(("triton.kind", "DaemonSet")), "the Triton of its node"),
        (both(("triton.replicas", 0)), "at least one must serve"),
        (both(("triton.placement", [{"model": "*", "pools": ["large"]}])), "triton.pools"),
        (
            both(("triton.pools", {"large": {}}), ("triton.placement", [{"model": "*", "pools": ["lagre"]}])),
            "the pool 'lagre'",
        ),
        (
            both(("triton.pools", {"large": {}}), ("triton.placement", [{"model": "*", "pools": ["large"]}])),
            "needs several servers",
        ),
        (both(("models.volume.type", "hostPath")), "models.volume.hostPath"),
        (both(("models.volume.hostPath", "/srv")), "type=hostPath"),
        (both(("models.volume.type", "emptyDir")), "nobody else would see or fill it"),
        (both(("models.volume", {"type": "hostPath", "hostPath": "/srv"})), "which node has the folder"),
        (both(("models.download.sources", [SOURCE, SOURCE])), "a name twice"),
        (both(("models.download.noProxy", "a.example")), "needs models.download.proxy"),
        (both(("gateway.replicas", 3), ("gateway.affinity", APART)), "ReadWriteMany"),
        (both(("gateway.resources.requests", {"memory": "1Gi"})), "above its limit of 512Mi"),
        (both(("triton.pools", {"large": {"resources": GREEDY}})), "triton.pools.large.resources.requests.cpu"),
        (both(("triton.image.digest", "sha256:" + "0" * 64)), "does not tell which Triton"),
        (both(("broker.azure.brokerAuthorization", True)), "aio-broker-auth/group"),
        (both(("models.signature.existingSecret", "x")), "one of publicKey and certificate"),
        (both(("gateway.tokens.existingSecret", "x")), "at least one of"),
        (
            both(("gateway.tokens", {"existingSecret": "x", "readKey": "a", "commandKey": "a"})),
            "must differ",
        ),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(helm_python.HelmRenderError) as caught:
        texts(given)
    assert says in str(caught.value)


def objects(schema: Any) -> list[dict[str, Any]]:
    """Every part of a schema that has properties."""
    if isinstance(schema, list):
        return [found for item in schema for found in objects(item)]
    if not isinstance(schema, dict):
        return []
    nested = [found for name, part in schema.items() if name != "default" for found in objects(part)]
    return [schema, *nested] if isinstance(schema.get("properties"), dict) and "type" in schema else nested


def test_no_level_takes_keys_that_it_does_not_know() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = objects(schema)
    assert len(found) > 20
    open_ones = [each for each in found if each.get("additionalProperties") is not False]
    assert [list(each["properties"]) for each in open_ones] == [["name"]]  # parts of a pod, which Kubernetes checks


def test_every_default_is_documented_and_valid() -> None:
    chart().validate_schema(BROKER)
    readme = (CHART / "README.md").read_text()
    for value in write_chart().values((CHART / "values.yaml").read_text()):
        assert f"| `{'.'.join(value.path)}` |" in readme


@pytest.mark.parametrize("text", ["a: 1\n", "# a comment\na: 1\n", "# -- Meaning.\na: {}\n"])
def test_a_value_without_a_meaning_or_a_rule_is_not_taken(text: str) -> None:
    with pytest.raises(write_chart().StaleError):
        write_chart().values(text)


def test_a_schema_comes_from_comments() -> None:
    text = "a:\n  # -- How many,\n  # in all.\n  # @schema minimum: 1\n  b: 2\n"
    schema = write_chart().values_schema(write_chart().values(text))
    assert schema["properties"]["a"]["additionalProperties"] is False
    expected = {"description": "How many, in all.", "type": "integer", "minimum": 1, "default": 2}
    assert schema["properties"]["a"]["properties"]["b"] == expected


def test_the_settings_of_the_chart_are_settings() -> None:
    assert Settings.model_fields.keys() >= write_chart().OF_THE_CHART


def test_what_a_running_gateway_takes_over_restarts_nobody() -> None:
    def checksum(settings: dict[str, Any]) -> str:
        found = documents(BROKER | {"gateway": {"settings": settings}})
        (gateway,) = [each for each in found if each["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway"
                      and each["kind"] == "StatefulSet"]  # fmt: skip
        return str(gateway["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])

    assert checksum({"log_level": "debug"}) == checksum({"log_level": "info"}) == checksum({})
    assert checksum({"workers": 2}) != checksum({})


def test_settings_reach_the_gateway_as_its_file() -> None:
    settings = {
        "snapshot_deadline_ms": 5000,
        "enable_dual_backend": False,
        "repeat_window_s": 0,
        "mqtt_command_topics": [],
    }
    (config,) = [
        each for each in documents(BROKER | {"gateway": {"settings": settings}}) if each["kind"] == "ConfigMap"
    ]
    assert yaml.safe_load(config["data"]["gateway.yaml"]) == settings
