"""Passwords and tokens are made once, each service gets its own, and nobody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import ModuleType

import pytest

from tests.compose.files import services
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
    secrets = [text for name, text in first.items() if name.startswith("all/")]
    assert len(set(secrets)) == len(setup.NAMES)
    assert min(map(len, secrets)) > 32
    assert setup.main(["make"], root) == 0
    assert contents(root) == first


def test_each_service_has_its_own_alone(setup: ModuleType, root: Path) -> None:
    setup.main(["make"], root)
    made = {path.name for path in (root / "camera").iterdir()}
    assert made == {"mqtt-password"}
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
        owned = {(path.stat().st_uid, path.stat().st_gid) for path in root.glob("[gmc]*/*")}
        assert owned == {setup.GATEWAY, setup.MOSQUITTO, setup.GRAFANA}


def test_one_can_be_made_anew(setup: ModuleType, root: Path) -> None:
    setup.main(["make"], root)
    before = contents(root)
    assert setup.main(["renew", "mqtt-camera"], root) == 0
    changed = {name for name, text in contents(root).items() if before[name] != text}
    assert changed == {"all/mqtt-camera", "camera/mqtt-password", "mosquitto/passwords"}


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
