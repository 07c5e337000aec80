"""What the images stand on: pulled, or made from Debian's packages where nothing can be pulled.

Eclipse Mosquitto and Prometheus come from Debian then too: stand-ins under the names that compose uses, with the same
users, folders and commands. For Grafana there is none.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from compose.images.images import ROOT, Engine, ImageError, without_digest

SUITE = "bookworm"
CACHE = ROOT / ".cache" / "images"
PULL_TIMEOUT_S = 120
STAND_IN_LABEL = "stand-in"
PYTHON_BASE = "localhost/debian-python:bookworm"


@dataclass(frozen=True, slots=True)
class StandIn:
    """An image from Debian's packages; the folders belong to its user."""

    packages: tuple[str, ...]
    folders: tuple[str, ...] = ()
    user: int = 0
    entrypoint: str = ""


PYTHON = StandIn(("python3", "python3-venv", "python3-pip", "libpython3.11", "ca-certificates"))
STAND_INS = {
    "MOSQUITTO_IMAGE": StandIn(
        ("mosquitto", "mosquitto-clients"),
        ("mosquitto/config", "mosquitto/data", "mosquitto/listeners", "mosquitto/secrets"),
        1883,
    ),
    "PROMETHEUS_IMAGE": StandIn(("prometheus",), ("prometheus",), 65534, "/usr/bin/prometheus"),
}


def base_of_dockerfile() -> str:
    """The pinned base that the Dockerfile names."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def can_pull(podman: Engine, image: str) -> bool:
    """Pull an image; False where no registry gives it."""
    try:
        done = subprocess.run(
            [*podman.command, "pull", "--quiet", image], check=False, capture_output=True, timeout=PULL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def python_base(podman: Engine, *, offline: bool) -> str:
    """The image that ours are built on."""
    if not offline and can_pull(podman, base_of_dockerfile()):
        return base_of_dockerfile()
    print(f"{base_of_dockerfile()} cannot be pulled: a base is made of Debian's packages", flush=True)
    make(podman, PYTHON, PYTHON_BASE)
    return PYTHON_BASE


def foreign_images(podman: Engine, images: dict[str, str], *, offline: bool) -> dict[str, str]:
    """Variable to the image to start for all of `images` that can be had; says what stands in and what is missing."""
    found = {}
    for variable, image in images.items():
        if not offline and can_pull(podman, image):
            found[variable] = image
        elif variable in STAND_INS:
            print(f"{image} cannot be pulled: one from Debian's packages stands in", flush=True)
            make(podman, STAND_INS[variable], without_digest(image))
            found[variable] = without_digest(image)
        else:
            print(f"{image} cannot be pulled, and Debian has none: it is left out", flush=True)
    return found


def make(podman: Engine, kind: StandIn, name: str) -> None:
    """Import an image of Debian's packages; its archive is kept, for it takes a while."""
    CACHE.mkdir(parents=True, exist_ok=True)
    archive = CACHE / f"{SUITE}-{'-'.join(kind.packages)}.tar"
    if not archive.exists():
        draft = archive.with_suffix(".draft.tar")
        draft.unlink(missing_ok=True)
        owned = [f'mkdir -p "$1/{name}" && chown {kind.user}:{kind.user} "$1/{name}"' for name in kind.folders]
        hooks = [f"--customize-hook={hook}" for hook in owned]
        packages = f"--include={','.join(kind.packages)}"
        done = subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", packages, *hooks, SUITE, str(draft)],
            check=False,
            capture_output=True,
            text=True,
            # Its own place for what it makes: in ours no other user may look, not even apt's.
            env={name: value for name, value in os.environ.items() if name != "TMPDIR"},
        )
        if done.returncode:
            raise ImageError(f"mmdebstrap {packages} failed: {done.stderr.strip()[-500:]}")
        draft.rename(archive)
    changes = [
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        f"LABEL {STAND_IN_LABEL}=debian",
    ]
    changes += [f'ENTRYPOINT ["{kind.entrypoint}"]'] if kind.entrypoint else []
    options = [f"--change={change}" for change in changes]
    podman.run("import", "--quiet", *options, str(archive), name, capture=True)
