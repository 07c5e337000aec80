"""The compose files as compose reads them: variables put in from .env.example, one file laid over the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.command_line import ROOT

FOLDER = ROOT / "compose"
FILE, TLS_FILE = FOLDER / "compose.yaml", FOLDER / "compose.tls.yaml"
EXAMPLE = FOLDER / ".env.example"
_VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+):\?copy it from \.env\.example to \.env\}")


def example() -> dict[str, str]:
    """The variables of .env.example."""
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def variables(path: Path) -> set[str]:
    """Those that a compose file names; in no other way than with the hint where they come from."""
    text = path.read_text()
    found = set(_VARIABLE.findall(text))
    assert len(_VARIABLE.findall(text)) == len(re.findall(r"(?<!\$)\$(?!\$)", text)), f"another form in {path.name}"
    return found


def services(path: Path = FILE) -> dict[str, dict[str, Any]]:
    """All services of a file."""
    filled = _VARIABLE.sub(lambda found: example()[found[1]], path.read_text()).replace("$$", "$")
    return dict(yaml.safe_load(filled)["services"])


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """What lies where in the container: source by target."""
    return {parts[1]: parts[0] for parts in (text.split(":") for text in service.get("volumes", ()))}


def number_of_bytes(text: str) -> int:
    """What compose makes of 512m."""
    return int(text[:-1]) * {"m": 2**20, "g": 2**30}[text[-1]]
