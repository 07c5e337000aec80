"""How pip is configured on this machine, handed into a build: a Dockerfile knows of no index and no certificate."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

SETTING = re.compile(r"^(global|:env:)\.([a-z-]+)='(.*)'$", re.MULTILINE)
TAKEN = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "default-timeout", "cert")
CERTIFICATES = "/run/certificates-of-host.pem"
"""Not among the image's own certificates, which would go into the image."""


def settings() -> dict[str, str]:
    """What of this machine's configuration matters in a build; the environment wins, as with pip itself."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = sorted(SETTING.findall(listed), reverse=True)  # global before :env:
    return {name: value for _, name, value in found if name in TAKEN}


def local_paths(values: dict[str, str]) -> list[Path]:
    """Folders on this machine that pip looks into; an index names files that lie beside it."""
    places = [place for name in ("index-url", "extra-index-url") for place in values.get(name, "").split()]
    indexes = [Path(unquote(urlsplit(place).path)) for place in places if place.startswith("file:")]
    found = [path.parent if len(path.parts) > 2 else path for path in indexes]
    found += [Path(place) for place in values.get("find-links", "").split() if place.startswith("/")]
    return sorted({path for path in found if path.exists()})


def build_options(folder: Path) -> list[str]:
    """Options of `podman build` that let pip in it find what pip finds here."""
    values = settings()
    mounts = {str(path): str(path) for path in local_paths(values)}
    if "cert" in values:
        mounts[values["cert"]] = CERTIFICATES
        values["cert"] = CERTIFICATES
    configuration = folder / "pip.conf"
    lines = [f"{name} = {value.replace('%', '%%')}" for name, value in values.items()]
    configuration.write_text("\n".join(["[global]", *lines, ""]))
    mounts[str(configuration)] = "/etc/pip.conf"
    return ["--network=host", *(f"--volume={source}:{target}:ro" for source, target in mounts.items())]


def has_own_wheels() -> bool:
    """Whether this machine keeps wheels of its own: torch's build without CUDA may be one of them."""
    return bool(settings().get("find-links"))
