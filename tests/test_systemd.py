"""The systemd unit: hardened as measured by systemd itself, and in step with the gateway's own limits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import app
from gateway.commands.camera import camera
from gateway.config import Settings
from gateway.config_warnings import suspicious_variables
from gateway.workers import front
from tests.command_line import ROOT, run

FOLDER = ROOT / "compose" / "systemd"
UNIT = FOLDER / "edge-gateway.service"
CAMERA_UNIT = FOLDER / "edge-gateway-camera.service"
PINNING = FOLDER / "pinning.conf"
LARGEST_EXPOSURE = 20
"""In tenths, of 10.0 for a service without any restriction."""
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze, of Debian's package systemd, is not installed"
)


def value(name: str, unit: Path = UNIT) -> str:
    """The only value of a setting of the unit."""
    [found] = re.findall(rf"(?m)^{name}=(.*)$", unit.read_text())
    return str(found)


def seconds(name: str) -> float:
    return float(value(name).removesuffix("s"))


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_systemd
@pytest.mark.parametrize("unit", [UNIT, CAMERA_UNIT], ids=lambda unit: unit.stem)
def test_systemd_judges_it_as_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={LARGEST_EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


@needs_systemd
@pytest.mark.parametrize(("unit", "pinned"), [(UNIT, False), (UNIT, True), (CAMERA_UNIT, False)])
def test_systemd_understands_every_line(tmp_path: Path, unit: Path, pinned: bool) -> None:
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={Path(sys.executable).resolve()}", unit.read_text()))
    if pinned:
        drop_in = tmp_path / f"{UNIT.name}.d" / PINNING.name
        drop_in.parent.mkdir()
        shutil.copy(PINNING, drop_in)
    done = analyze("verify", copy)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_waits_for_the_drain_and_what_comes_after_it() -> None:
    drain_s = Settings.model_fields["drain_timeout_s"].default
    one_process = 3 * app.CLOSE_LIMIT_S + app.BROKER_CLOSE_LIMIT_S + app.CLOSE_LIMIT_S
    workers = front.MARGIN_S + 2 * front.CLOSE_LIMIT_S
    assert seconds("TimeoutStopSec") >= drain_s + max(one_process, workers) + 5
    assert f"DRAIN_TIMEOUT_S ({drain_s:g}) and {seconds('TimeoutStopSec') - drain_s:g} more" in UNIT.read_text()


def test_a_gateway_that_stops_is_not_taken_for_one_that_hangs() -> None:
    assert value("Type") == "notify"
    assert seconds("WatchdogSec") > 2 * max(app.CLOSE_LIMIT_S, app.BROKER_CLOSE_LIMIT_S, front.CLOSE_LIMIT_S)


def test_the_example_of_a_configuration_keeps_to_what_the_unit_may_write_and_hands_on(tmp_path: Path) -> None:
    example = tmp_path / "gateway.yaml"
    example.write_text(re.sub(r"(?m)^# (\w+: )", r"\1", (FOLDER / "gateway.yaml").read_text()))
    done = run("config", "show", "--json", "--config", str(example))
    assert done.returncode == 0, done.stderr
    shown = {name: entry["value"] for name, entry in json.loads(done.stdout).items()}
    state = f"/var/lib/{value('StateDirectory')}/"
    assert all(shown[name].startswith(state) for name in ("model_state_dir", "spool_dir"))
    identifier, _, folder = value("LoadCredential").partition(":")
    assert f"in {folder}, as systemd hands them on" in example.read_text()
    secrets = [path for name, path in shown.items() if name.endswith("_file")]
    assert len(secrets) == 2
    assert all(path.startswith(f"/run/credentials/{UNIT.name}/{identifier}_") for path in secrets)


def test_the_variables_of_systemd_are_not_taken_for_misspelt_settings() -> None:
    names = "NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID MAINPID"
    names += " STATE_DIRECTORY RUNTIME_DIRECTORY CONFIGURATION_DIRECTORY CREDENTIALS_DIRECTORY LISTEN_FDS LISTEN_PID"
    assert suspicious_variables(dict.fromkeys(names.split(), "1")) == []


def test_the_camera_s_unit_gives_it_what_its_command_and_its_settings_name() -> None:
    options = {option for parameter in camera.params for option in parameter.opts}
    command = CAMERA_UNIT.read_text().partition("ExecStart=")[2].partition("\nEnvironmentFile")[0].split()
    assert {word for word in command if word.startswith("--")} <= options
    assert value("EnvironmentFile", CAMERA_UNIT).endswith("/camera.env")
    lines = re.findall(r"(?m)^#? ?([A-Z_]+)=(.+)$", (FOLDER / "camera.env").read_text())
    settings = Settings(**{name.lower(): text for name, text in lines})
    identifier, _, _ = value("LoadCredential", CAMERA_UNIT).partition(":")
    password = f"/run/credentials/{CAMERA_UNIT.name}/{identifier}_mqtt-password"
    assert str(settings.aio_mqtt_password_file) == password
    assert f"${{CREDENTIALS_DIRECTORY}}/{identifier}_cameras.yaml" in command
