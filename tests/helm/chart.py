"""The chart as the tests see it: rendered once for each file of values, in this process."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import helm_python
import yaml

from tests.command_line import ROOT

CHART = ROOT / "helm" / "triton-edge-gateway"
RELEASE, NAMESPACE = "edge", "vision"
NAME = "edge-triton-edge-gateway"
CASES = sorted((CHART / "ci").glob("*-values.yaml")) + sorted((CHART / "examples").glob("*.yaml"))
WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job"}
Document = dict[str, Any]


@functools.cache
def write_chart() -> ModuleType:
    """helm/write_chart.py, which is no package."""
    spec = importlib.util.spec_from_file_location("write_chart", ROOT / "helm" / "write_chart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@functools.cache
def chart() -> helm_python.Chart:
    """The chart, read once."""
    return helm_python.Chart.load(str(CHART))


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """What each template gives, by its name."""
    return dict(chart().render(dict(values), name=RELEASE, namespace=NAMESPACE))


def documents(values: Mapping[str, Any]) -> list[Document]:
    """All objects that these values give."""
    manifests = (text for name, text in texts(values).items() if name.endswith(".yaml"))
    return [each for text in manifests for each in yaml.safe_load_all(text) if each]


@functools.cache
def values_of(case: Path) -> Mapping[str, Any]:
    """The values in a file."""
    return yaml.safe_load(case.read_text()) or {}


@functools.cache
def rendered(case: Path) -> list[Document]:
    """The objects that a file of values gives."""
    return documents(values_of(case))


def ci(name: str) -> list[Document]:
    """The objects of one file in ci/."""
    return rendered(CHART / "ci" / f"{name}-values.yaml")


def one(found: list[Document], kind: str, name: str) -> Document:
    """The only object of that kind and name."""
    (document,) = [each for each in found if each["kind"] == kind and each["metadata"]["name"] == name]
    return document


def pod_specs(found: list[Document]) -> Iterator[tuple[Document, Document]]:
    """Each object that runs pods, with the specification of its pods."""
    for each in found:
        if each["kind"] in WORKLOADS:
            yield each, each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield each, each["spec"]


def containers(spec: Document) -> list[Document]:
    """All containers of a pod."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def container(found: list[Document], name: str) -> Document:
    """The only container with that name, of those that stay."""
    (each,) = [
        c for o, spec in pod_specs(found) if o["kind"] in WORKLOADS for c in containers(spec) if c["name"] == name
    ]
    return each


def environment(of: Document) -> dict[str, str]:
    """The environment of a container, as far as it is text."""
    return {each["name"]: each.get("value", "") for each in of["env"]}


def name_of(case: Path) -> str:
    """For the ids of tests."""
    return case.stem.removesuffix("-values")
