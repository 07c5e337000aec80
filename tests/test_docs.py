"""The documentation is current, names only what exists, and its links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from gateway.admin.command_bodies import STATUS as COMMAND_CODES
from gateway.cli import cli
from gateway.config import RELOADABLE, Settings
from gateway.errors import SnapshotError
from gateway.metrics import CATALOGUE, PREFIX
from tests.command_line import ROOT, environment

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SETTINGS = {name.upper() for name in Settings.model_fields} | {"GATEWAY_CONFIG"}
CODES = {kind.code for kind in SnapshotError.__subclasses__()}
METRICS = {PREFIX + item.name for item in CATALOGUE} | {item.name for item in CATALOGUE}
# Names in capitals that are neither ours nor a mistake: of the Makefile, of other programs, of files.
OTHERS = {"DEMO_SECONDS", "RUST_LOG", "NO_COLOR", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "MODEL_CARD", "IMAGENET1K_V2"}
OTHERS |= {"TYPE_FP32", "KIND_CPU", "DISABLE_OPTIMIZED_EXECUTION"}  # of config.pbtxt
# Codes of HTTP alone: no snapshot has come of it.
OTHERS |= {
    "WORKER_UNAVAILABLE",
    "REQUEST_TIMEOUT",
    "CROSS_SITE",
    "CAMERA_UNKNOWN",
    "PICTURE_UNKNOWN",
    "GOLDEN_INVALID",
    "CONSOLE_OFF",
    "RESULT_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
    "REQUEST_HEADER_FIELDS_TOO_LARGE",
}
OTHERS |= {f"OTEL_{name}" for name in ("SERVICE_NAME", "RESOURCE_ATTRIBUTES")}  # of OpenTelemetry itself
OTHERS |= {f"OTEL_EXPORTER_OTLP_{name}" for name in ("HEADERS", "CERTIFICATE", "TIMEOUT", "COMPRESSION")}
OTHERS |= {"MODEL_SIGNING_PASSWORD", "SHA256SUMS", *COMMAND_CODES}  # and the codes of commands
OTHERS |= set(re.findall(r"(?m)^#? ?([A-Z_]+)=", (ROOT / "compose" / ".env.example").read_text()))  # of compose
OTHERS |= {"NOTIFY_SOCKET"}  # of systemd
for _name in ("Dockerfile", "triton/Dockerfile.cpu"):
    OTHERS |= set(re.findall(r"(?m)^ARG ([A-Z_]+)", (ROOT / _name).read_text()))
OTHERS |= {"POD_INDEX"}  # of Kubernetes
# Options of the programs beside ours that the pages show.
FOREIGN_OPTIONS = {"--model-control-mode", "--strict-readiness", "--check", "--grid", "--decode", "--end", "--max-wh"}
FOREIGN_OPTIONS |= {"--ignore-paths", "--allow-client-shm", "--trace-config", "--no-index", "--device"}
FOREIGN_OPTIONS |= {"--model-repository"}
# Programs beside ours: what they take on their lines is not ours to check.
FOREIGN_PROGRAMS = (
    "docker ",
    "python ",
    "yolo ",
    "curl ",
    "anomalib ",
    "pip ",
    "mosquitto_pub ",
    "mosquitto_rr ",
    "model_signing ",
    "make ",
    "helm ",
    "podman ",
    "tar ",
    "nvidia-ctk ",
    "dist/build/bin/pip ",
    "kubectl ",
    "python3 ",
    "systemctl ",
    "useradd ",
    "/opt/edge-gateway/",
)
# What is written down for a time when it was different.
HISTORY = {"CHANGELOG.md"}


def current_pages() -> list[Path]:
    """All but those that tell of the past."""
    return [page for page in PAGES if page.name not in HISTORY and "decisions" not in page.parts]


def code(page: Path) -> list[str]:
    """Every piece of code of a page, of one line or of many."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def options(command: click.Command) -> set[str]:
    """All options of a command and of those below it."""
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union(*(options(each) for each in below)) | {"--help", "-h"}


def test_the_generated_pages_are_current() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_schemas_that_the_pages_name_are_there() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    named = re.findall(r"yaml-language-server: \$schema=(\S+)", text)
    assert named == ["docs/schema/gateway.schema.json", "docs/schema/model.schema.json"]
    for path in named:
        assert json.loads((ROOT / path).read_text())["additionalProperties"] is False


def test_each_setting_says_whether_it_needs_a_restart() -> None:
    rows = re.findall(
        r"^\| `([A-Z_]+)` \|.*\| (yes|no) \| [^|]+ \|$", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE
    )
    assert dict(rows) == {name.upper(): "yes" if name in RELOADABLE else "no" for name in Settings.model_fields}


def test_codes_settings_and_metrics_are_all_documented() -> None:
    for name, expected in {"errors.md": CODES, "configuration.md": SETTINGS}.items():
        text = (ROOT / "docs" / name).read_text()
        assert not {item for item in expected if f"`{item}`" not in text}
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert not [item.name for item in CATALOGUE if f"| `{PREFIX}{item.name}` |" not in text]


@pytest.mark.parametrize("page", current_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_capitals_are_settings_or_error_codes(page: Path) -> None:
    named = {name for piece in code(page) for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", piece)}
    unknown = sorted(named - SETTINGS - CODES - OTHERS)
    assert not unknown


@pytest.mark.parametrize("page", current_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_metrics_exist(page: Path) -> None:
    named = set(re.findall(rf"(?<![:\w]){PREFIX}[a-z_]+", page.read_text()))
    series = {name + suffix for name in METRICS for suffix in ("", "_bucket", "_sum", "_count")}
    unknown = sorted(named - series)
    assert not unknown


@pytest.mark.parametrize("page", current_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for piece in code(page):
        for name, rest in re.findall(r"edge-gateway ([a-z]+)([^\n#`]*)", piece):
            assert name in cli.commands, f"{page.name}: edge-gateway {name}"
            asked = set(re.findall(r"(?<!\S)--[a-z-]+", rest))
            assert asked <= options(cli.commands[name]), f"{page.name}: edge-gateway {name}{rest}"
        own = "\n".join(line for line in piece.splitlines() if not line.startswith(FOREIGN_PROGRAMS))
        loose = set(re.findall(r"(?<!\S)--[a-z-]+", re.sub(r"(?m)\s#.*$", "", own)))
        assert loose <= options(cli) | FOREIGN_OPTIONS, f"{page.name}: {piece}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if heading and linked.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page.name} links to {target}"
