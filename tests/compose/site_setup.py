"""compose/setup.py, which is a script in a container and in no package, with volumes that are folders."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from tests.compose.files import FOLDER


def load_setup() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("compose_setup", FOLDER / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The volumes, empty; who is not root gives nothing away, and keeps the files himself."""
    for name in ("all", "mosquitto", "gateway", "camera", "grafana"):
        (folder / "secrets" / name).mkdir(parents=True)
    if os.geteuid() != 0:
        monkeypatch.setattr(os, "fchown", lambda *_: None)
    return folder / "secrets"
