"""Passwords and tokens are made once, each service gets its own, and nobody else's."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from gateway.config import Settings
from tests.compose.files import FOLDER, mounts, services
from tests.compose.site_setup import load_setup, prepared


@pytest.fixture
def setup() -> ModuleType:
    return load_setup()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepared(tmp_path, monkeypatch)


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_first_start_makes_all_and_a_second_changes_nothing(setup: ModuleType, root: Path) -> None:
    assert setup.main(["make"], root) == 0
    first = contents(root)
    assert {*(f"all/{name}" for name in setup.NAMES), "mosquitto/passwords"} < set(first)
    secrets = [first[f"all/{name}"] for name in setup.NAMES]
    assert len(set(secrets)) == len(setup.NAMES)
    assert min(map(len, secrets)) > 32
    assert setup.main(["make"], root) == 0
    assert contents(root) == first


def test_each_service_has_its_own_alone(setup: ModuleType, root: Path) -> None:
    setup.main(["make"], root)
    made = {path.name for path in (root / "camera").iterdir()}
    assert made == {"mqtt-password", ".mqtt-password.sha256"}
    for path in root.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    hashed = (root / "mosquitto" / "passwords").read_text()
    assert not [name for name in setup.USERS if setup.kept(root, f"mqtt-{name}") in hashed]


def test_the_owners_are_those_who_read(setup: ModuleType, root: Path) -> None:
    users = {name: service["user"] for name, service in services().items()}
    assert users["gateway"] == users["camera"] == "{}:{}".format(*setup.GATEWAY)
    assert users["mosquitto"] == "{}:{}".format(*setup.MOSQUITTO)
    assert users["grafana"] == "{}:{}".format(*setup.GRAFANA)
    setup.main(["make"], root)
    if os.geteuid() == 0:
        owned = {(path.stat().st_uid, path.stat().st_gid) for path in root.glob("[gmc]*/[!.]*")}
        assert owned == {setup.GATEWAY, setup.MOSQUITTO, setup.GRAFANA}


def test_one_can_be_made_anew(setup: ModuleType, root: Path) -> None:
    setup.main(["make"], root)
    before = contents(root)
    assert setup.main(["renew", "mqtt-camera"], root) == 0
    changed = {name for name, text in contents(root).items() if before[name] != text and not name.endswith(".sha256")}
    assert changed == {"all/mqtt-camera", "camera/mqtt-password", "mosquitto/passwords"}


def test_the_gateway_alone_has_a_client_id_that_nobody_guesses(setup: ModuleType, root: Path) -> None:
    setup.main(["make"], root)
    given = yaml.safe_load((root / "gateway" / "gateway.yaml").read_text())
    assert Settings(**given).client_id == f"edge-gateway-{setup.kept(root, 'mqtt-client-id')}"
    gateway = services()["gateway"]
    assert mounts(gateway)["/run/secrets"] == "gateway-secrets"
    assert gateway["environment"]["GATEWAY_CONFIG"] == "/run/secrets/gateway.yaml"
    setup.main(["renew", "mqtt-client-id"], root)
    assert yaml.safe_load((root / "gateway" / "gateway.yaml").read_text()) != given


def test_after_a_restore_services_have_what_is_shown(setup: ModuleType, root: Path) -> None:
    setup.main(["make"], root)
    kept = {name: (root / "all" / name).read_bytes() for name in setup.NAMES}
    for name in setup.NAMES:
        setup.main(["renew", name], root)
    for name, data in kept.items():  # as tar does, with the times of then
        (root / "all" / name).write_bytes(data)
        os.utime(root / "all" / name, (0, 0))
    hashed = (root / "mosquitto" / "passwords").read_text()
    assert setup.main(["make"], root) == 0
    for name, (place, _) in setup.COPIES.items():
        assert setup.kept(root, name) in (root / place).read_text()
    assert (root / "mosquitto" / "passwords").read_text() != hashed


@pytest.mark.parametrize("left", ["", "\n", "cut-off"])
def test_what_was_cut_off_is_made_anew(setup: ModuleType, root: Path, left: str) -> None:
    setup.main(["make"], root)
    (root / "all" / "api-token").write_text(left)
    assert setup.main(["make"], root) == 0
    made = setup.kept(root, "api-token")
    assert len(made) > 24
    assert (root / "gateway" / "api-token").read_text().strip() == made


def test_several_at_once_make_the_same(root: Path) -> None:
    script = (
        "import importlib.util as u, os, pathlib, sys; os.geteuid() and setattr(os, 'fchown', lambda *_: None);"
        "s = u.spec_from_file_location('s', sys.argv[1]); m = u.module_from_spec(s); s.loader.exec_module(m);"
        "sys.exit(m.main(['make'], pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", script, str(FOLDER / "setup.py"), str(root)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for each in started:
        _, said = each.communicate(timeout=60)
        assert (each.returncode, said) == (0, "")
    assert (root / "gateway" / "api-token").read_text() == (root / "all" / "api-token").read_text()


def test_a_full_disk_is_said_in_one_line(
    setup: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert setup.main(["make"], root) == 1
    said, where = capsys.readouterr().err, root / "all" / "mqtt-gateway"
    assert said == f"setup: {where}: No space left on device: make room on this disk, then start it again\n"
    assert contents(root) == {}
    assert setup.main(["make"], root) == 0


def test_they_can_be_shown(setup: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup.main(["make"], root)
    assert capsys.readouterr().out == ""
    assert setup.main(["show"], root) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert shown == {name: setup.kept(root, name) for name in setup.NAMES}


@pytest.mark.parametrize("wrong", [["xyzzy"], ["renew"], ["renew", "xyzzy"], ["make", "mqtt-camera"]])
def test_a_wrong_word_changes_nothing(
    setup: ModuleType, root: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.main(wrong, root) == 2
    assert contents(root) == {}
    assert "usage: setup" in capsys.readouterr().err
