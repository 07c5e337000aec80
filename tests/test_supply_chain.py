"""What the project is made of: locked with hashes, the same on site as in the tests, and known by licence."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway import __version__

ROOT = Path(__file__).parent.parent
LOCKS = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))
CUDA = re.compile(r"torch|triton|nvidia-(cu|n[cv]).*|cuda-.*")


def lock(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Package to its entries, each with its hashes."""
    entries: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", (ROOT / "requirements" / name).read_text("utf-8")):
        requirement = Requirement(block.partition("\\")[0])
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", block)
        entries.setdefault(canonicalize_name(requirement.name), []).append((requirement, hashes))
    return entries


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return loaded


def declared(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, extras of extras included."""
    found, todo = [], [*project()["dependencies"]]
    for extra in extras:
        todo += project()["optional-dependencies"][extra]
    while todo:
        requirement = Requirement(todo.pop())
        if requirement.name == project()["name"]:
            for extra in requirement.extras:
                todo += project()["optional-dependencies"][extra]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_of_a_lock_has_one_version_and_its_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text("utf-8")
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    for entries in lock(name).values():
        for requirement, hashes in entries:
            assert [item.operator for item in requirement.specifier] == ["=="], requirement
            assert hashes, requirement


@pytest.mark.parametrize(("name", "extras"), [("gateway.txt", ()), ("development.txt", ("test", "check"))])
def test_a_lock_holds_what_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    locked = lock(name)
    for wanted in declared(*extras):
        if CUDA.fullmatch(wanted.name):
            continue  # the CPU build has other hashes than the one for CUDA
        entries = locked[canonicalize_name(wanted.name)]
        versions = [next(iter(requirement.specifier)).version for requirement, _ in entries]
        assert any(wanted.specifier.contains(version) for version in versions), f"{wanted}: run `make lock`"


@pytest.mark.parametrize("lock_name", ["gateway", "signing", "tracing", "video", "triton-cpu", "build"])
def test_on_site_runs_what_the_tests_ran_with(lock_name: str) -> None:
    tested = lock("development.txt")
    for name, entries in lock(f"{lock_name}.txt").items():
        given = {str(requirement.specifier) for requirement, _ in entries}
        assert given <= {str(requirement.specifier) for requirement, _ in tested[name]}, f"{name}: run `make lock`"


def test_the_page_of_licences_is_that_of_the_lock() -> None:
    page = (ROOT / "docs" / "licences.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\w.-]+) \| ([\d.]+) \|", page, re.MULTILINE)
    listed = {str(canonicalize_name(name)): version for name, version in rows}
    for name, entries in lock("gateway.txt").items():
        versions = [next(iter(requirement.specifier)).version for requirement, _ in entries]
        here = any(requirement.marker is None or requirement.marker.evaluate() for requirement, _ in entries)
        assert not here or listed.get(name) in versions, f"{name}: run `make sbom`"


def test_the_public_workflow_calls_what_there_is() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    called = {match for step in steps for match in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert called == {"check", "test", "audit", "sbom", "images", "chart"}
    assert called <= targets
    used = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used), "pinned by commit"
    scans = [step["with"] for step in steps if "trivy" in step.get("uses", "")]
    assert {scan["scan-type"] for scan in scans} == {"rootfs", "fs", "image"}
    assert {scan.get("image-ref") for scan in scans} == {None, f"triton-edge-gateway:{__version__}"}
    assert all(scan["severity"] == "HIGH,CRITICAL" and scan["exit-code"] == "1" for scan in scans)
