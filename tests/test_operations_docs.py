"""Pages for those who install and run it: what they tell to type is there to be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from gateway.cli import cli
from tests.command_line import ROOT
from tests.test_docs import code

DOCS = ROOT / "docs"
PAGES = [
    *sorted((DOCS / "install").glob("*.md")),
    *(DOCS / f"{name}.md" for name in ("upgrade", "backup", "air-gap", "troubleshooting", "capacity")),
]
PROGRAMS = {
    "cd", "chmod", "chown", "cp", "curl", "docker", "git", "helm", "id", "install", "journalctl", "k3s", "kubectl",
    "ln", "ls", "make", "mosquitto_pub", "mv", "podman", "python3", "rm", "runuser", "skopeo", "systemctl",
    "systemd-analyze", "tar", "umask", "useradd",
}  # fmt: skip
"""Of the system or of the target; all but the containers' and the cluster's are part of Debian or in its packages."""
LONGEST_PAGE = 78
"""Lines; about what is printed on one page."""
LOOKED_UP = ("troubleshooting.md", "capacity.md")
"""Pages that nobody reads from beginning to end."""


def lines(page: Path) -> list[str]:
    """Every line of shell on a page, those in the text too."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    joined = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    pieces = [piece.replace("\\|", "|") for piece in code(page)]  # as a table writes it
    inline = [piece for piece in pieces if "\n" not in piece and piece.split(" ")[0] in {*PROGRAMS, "edge-gateway"}]
    return [part.strip() for line in [*joined, *inline] for part in re.split(r"&&|\|(?!\|)", line) if part.strip()]


def own_arguments(words: list[str]) -> list[str] | None:
    """What follows our own program, here or in a container; None where it is only a name."""
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        ran = index == 0 or before == "--" or (words[:3] == ["docker", "compose", "exec"] and before == "gateway")
        if word.endswith("/bin/edge-gateway") or (word == "edge-gateway" and ran):
            return words[index + 1 :]
    return None


def resolve(arguments: list[str]) -> click.Command:
    """The command that these words name, with their options looked at; nothing runs."""
    command: click.Command = cli
    while isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
        command = command.commands[arguments.pop(0)]
    assert not isinstance(command, click.Group) or not arguments, f"{command.name} has no {arguments}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in arguments if word.startswith("--")} <= known | {"--help"}, arguments
    return command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_command_exists(page: Path) -> None:
    for line in lines(page):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if (ours := own_arguments(words)) is not None:
            resolve(ours)
        if words[0] == "edge-gateway":
            continue
        program = words[0]
        assert program in PROGRAMS or re.fullmatch(r"(/opt/edge-gateway/[\w.]+|dist/build)/bin/[\w-]+", program), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_services_volumes_files_and_units_exist(page: Path) -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    compose = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())
    services, volumes = set(compose["services"]), set(compose["volumes"])
    for line in lines(page):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets, line
        if words[:2] == ["docker", "compose"] and len(words) > 3 and words[2] in ("logs", "exec", "run"):
            assert next(word for word in words[3:] if not word.startswith("-")) in services, line
        if words[:1] in (["systemctl"], ["journalctl"]):
            assert {"edge-gateway", "daemon-reload", "podman-restart"} & set(words), line
        for volume in re.findall(r"\bedge-gateway_([\w-]+)", line):
            assert volume in volumes, line
        for path in re.findall(r"(?<![\w./-])(?:compose|helm|requirements)/[\w./-]+", line.partition("#")[0]):
            assert (ROOT / path).exists(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_one_page(page: Path) -> None:
    if page.name not in LOOKED_UP:
        assert len(page.read_text().splitlines()) <= LONGEST_PAGE
