"""What brings drops to the volume: it reaches its servers, is made anew where it has to be, and needs nobody twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.commands.models.fetch import fetch
from tests.helm.chart import NAME, Document, ci, containers, documents, environment, one, pod_specs

BROKER = {"broker": {"host": "mosquitto"}}
STAYING = {"gateway", "triton", "ready", "doctor"}
OCI: dict[str, Any] = {
    "name": "a",
    "sha256": "1" * 64,
    "oci": {"reference": f"registry/a@sha256:{'2' * 64}", "file": "a.tar"},
}


def steps(found: list[Document], name: str) -> list[Document]:
    """The steps whose names begin so, in order."""
    every = [each for _, spec in pod_specs(found) for each in containers(spec) if each["name"] not in STAYING]
    return [each for each in every if each["name"].startswith(f"{name}-")]


def job(**values: Any) -> Document:
    """The only Job, for values with a download."""
    given = {**BROKER, "models": {"download": {"sources": [OCI]}}, **values}
    (each,) = [each for each in documents(given) if each["kind"] == "Job"]
    return each


@pytest.mark.parametrize("case", ["download-job", "download-in-pod", "air-gap"])
def test_a_drop_is_verified_by_a_command_that_there_is(case: str) -> None:
    fetching = [each["args"] for each in steps(ci(case), "fetch")]
    pulling = [each["args"] for each in steps(ci(case), "pull")]
    assert fetching
    for arguments in fetching:
        assert arguments[:2] == ["models", "fetch"]
        given = fetch.make_context("fetch", arguments[2:]).params
        assert (len(given["sha256"]), str(given["repository"])) == (64, "/models")
        source = given["source"]
        brought = any(source in each or f"--output={Path(source).parent}" in each for each in pulling)
        assert brought != source.startswith("https://")


def reached(sources: list[Document], **download: Any) -> set[int]:
    """The ports that the policy of the Job opens."""
    found = documents({**BROKER, "models": {"download": {"sources": sources, **download}}})
    egress = one(found, "NetworkPolicy", f"{NAME}-download")["spec"]["egress"]
    return {port["port"] for rule in egress for port in rule["ports"]} - {53}


def test_who_downloads_reaches_the_ports_of_its_servers() -> None:
    digest = {"name": "a", "sha256": "1" * 64}
    s3 = {"bucket": "models", "key": "a.tar"}
    assert reached([OCI]) == {443}
    assert reached([{**OCI, "oci": {**OCI["oci"], "reference": f"r.example:5000/a@sha256:{'2' * 64}"}}]) == {5000}
    assert reached([{**digest, "url": "http://srv:8000/a.tar"}]) == {8000}
    assert reached([{**digest, "url": "http://srv/a.tar"}]) == {80}
    assert reached([{**digest, "url": "https://[fd00::1]:8443/a.tar"}]) == {8443}
    assert reached([{**digest, "s3": s3}]) == {443}
    assert reached([{**digest, "s3": {**s3, "endpoint": "http://minio:9000"}}]) == {9000}
    assert reached([OCI], proxy="http://proxy:3128") == {443, 3128}


def test_an_air_gapped_site_reaches_registry_and_proxy() -> None:
    policy = one(ci("air-gap"), "NetworkPolicy", f"{NAME}-download")["spec"]
    assert {5000, 3128} <= {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert environment(steps(ci("air-gap"), "pull")[0])["NO_PROXY"] == "registry.plant.example"


@pytest.mark.parametrize(
    "change",
    [
        {"commonLabels": {"team": "vision"}},
        {"security": {"runAsUser": 2000}},
        {"imagePullSecrets": ["plant"]},
        {"serviceAccount": {"name": "mine"}},
        {"models": {"download": {"sources": [OCI], "scratchSize": "1Gi"}}},
        {"models": {"download": {"sources": [OCI]}, "volume": {"existingClaim": "models"}}},
        {"gateway": {"tolerations": [{"operator": "Exists"}]}},
    ],
    ids=str,
)
def test_a_job_that_cannot_be_changed_is_another_one(change: dict[str, Any]) -> None:
    assert job()["metadata"]["name"] == job(monitoring={"interval": "1m"})["metadata"]["name"]
    assert job(**change)["metadata"]["name"] != job()["metadata"]["name"]


def test_a_job_waits_for_its_server_for_days() -> None:
    assert job()["spec"]["backoffLimit"] >= 1000


def test_what_models_may_weigh_holds_for_downloads_too() -> None:
    given = {
        **BROKER,
        "gateway": {"settings": {"max_model_bytes": 8 * 2**30}},
        "models": {"download": {"sources": [OCI]}},
    }
    for name in ("look", "fetch"):
        (step,) = steps(documents(given), name)
        assert environment(step)["MAX_MODEL_BYTES"] == str(8 * 2**30)


def test_a_download_runs_where_the_volume_is_used() -> None:
    gateway = {"tolerations": [{"key": "edge"}], "nodeSelector": {"site": "a"}}
    triton = {"tolerations": [{"key": "nvidia.com/gpu"}], "nodeSelector": {"gpu": "yes"}}
    spec = job(mode="colocated", gateway=gateway, triton=triton)["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"site": "a", "gpu": "yes"}
    assert spec["tolerations"] == [{"key": "edge"}, {"key": "nvidia.com/gpu"}]
    (term,) = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    shared = {"accessModes": ["ReadWriteMany"]}
    free = job(models={"download": {"sources": [OCI]}, "volume": shared})["spec"]["template"]["spec"]
    assert "affinity" not in free


class Node:
    """Runs the steps of a source as a node would, with stand-ins for the tool and the gateway's command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "tmp", "models"):
            (folder / name).mkdir()
        self.program("edge-gateway", f'test -e {folder}/models/there || grep -q drop "$3" 2> /dev/null')

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, step: Document) -> int:
        words = [*step.get("command", ["edge-gateway"]), *step["args"]]
        words = [str(word).replace("/tmp/", f"{self.folder}/tmp/") for word in words]
        words[0] = sys.executable if words[0] == "python3" else words[0]
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        done = subprocess.run(words, env={"PATH": path}, capture_output=True, check=False, timeout=30)
        return done.returncode


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def in_pods() -> list[Document]:
    volume = {"type": "hostPath", "hostPath": "/srv/models"}
    found = documents({**BROKER, "mode": "colocated", "models": {"volume": volume, "download": {"sources": [OCI]}}})
    return [each for name in ("look", "pull", "fetch") for each in steps(found, name)]


def test_a_pod_starts_without_the_registry_when_its_models_are_there(node: Node) -> None:
    node.program("oras", "exit 1")
    look, pull, _ = in_pods()
    assert node.run(look) == 0
    assert node.run(pull) != 0  # nothing there: a gateway without models would wait in silence
    (node.folder / "models" / "there").touch()
    assert [node.run(step) for step in in_pods()] == [0, 0, 0]


def test_a_pod_brings_what_is_not_there_and_holds_one_archive_at_a_time(node: Node) -> None:
    archive = node.folder / "tmp" / "archive"
    node.program("oras", f"mkdir {archive} && echo drop > {archive}/a.tar")
    archive.mkdir()
    (archive / "of-the-source-before.tar").touch()
    assert [node.run(step) for step in in_pods()] == [0, 0, 0]
    assert [each.name for each in archive.iterdir()] == ["a.tar"]
