"""Build the images, or carry them to a site without a network: `python3 compose/images/images.py build | save | load`.

By docker, or podman where there is no docker; CONTAINER_ENGINE names the one to take. Needs nothing but Python 3.11,
for it runs on the site too.
"""
# ruff: noqa: S603, S607, T201 - a program for people, which starts docker, podman and git

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VERSION_LINE = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)
VARIABLE = re.compile(r"^([A-Z_]+_IMAGE)=(\S+)$", re.MULTILINE)
CHUNK = 2**20


class ImageError(Exception):
    """What went wrong, and how to mend it, for a person."""


@dataclass(frozen=True, slots=True)
class Build:
    """One of the images that are built here, by the variable that names it in compose/.env."""

    variable: str
    name: str
    dockerfile: str
    arguments: Mapping[str, str]


BUILDS = (
    Build("GATEWAY_IMAGE", "triton-edge-gateway", "Dockerfile", {}),
    Build("CAMERA_IMAGE", "triton-edge-gateway-camera", "Dockerfile", {"EXTRAS": "video"}),
    Build("TRITON_CPU_IMAGE", "triton-edge-gateway-triton-cpu", "triton/Dockerfile.cpu", {}),
)


@dataclass(frozen=True, slots=True)
class Engine:
    """docker or podman, with the options that stand before each of its commands."""

    command: tuple[str, ...]

    @property
    def is_podman(self) -> bool:
        """Whether what docker does not know may be asked for."""
        return Path(self.command[0]).name == "podman"

    def run(self, *arguments: str, capture: bool = False) -> str:
        """What it prints, where that is captured; raises ImageError when it fails."""
        done = subprocess.run([*self.command, *arguments], check=False, text=True, capture_output=capture)
        if done.returncode:
            said = f":\n{done.stdout[-2000:]}{done.stderr[-2000:]}" if capture else ""
            raise ImageError(f"{' '.join([*self.command, *arguments[:3]])} ... failed{said}")
        return done.stdout or ""

    def has(self, image: str) -> bool:
        """Whether the image is here."""
        asked = subprocess.run([*self.command, "image", "inspect", image], check=False, capture_output=True)
        return asked.returncode == 0


def find_engine() -> Engine:
    """The one of CONTAINER_ENGINE, else docker, if its service answers, else podman; raises ImageError."""
    if named := os.environ.get("CONTAINER_ENGINE"):
        return Engine(tuple(named.split()))
    for name in ("docker", "podman"):
        if shutil.which(name) and not subprocess.run([name, "info"], check=False, capture_output=True).returncode:
            return Engine((name,))
    raise ImageError("neither docker nor podman answers; install one of them, or name it in CONTAINER_ENGINE")


def version() -> str:
    """The version of the gateway in this checkout."""
    found = VERSION_LINE.search((ROOT / "gateway" / "__init__.py").read_text("utf-8"))
    assert found is not None
    return found[1]


def labels() -> dict[str, str]:
    """Build arguments that say what an image was built from."""
    return {
        "VERSION": version(),
        "REVISION": _git("rev-parse", "HEAD") or "unknown",
        "SOURCE": re.sub(r"//[^/@]*@", "//", _git("remote", "get-url", "origin")) or "unknown",
        "CREATED": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=False, text=True, capture_output=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def build(engine: Engine, each: Build, options: Sequence[str] = (), *, quiet: bool = False) -> str:
    """Build an image and return its name; options are the engine's own."""
    name = f"{each.name}:{version()}"
    values = [f"--build-arg={key}={value}" for key, value in {**labels(), **each.arguments}.items()]
    form = ["--format", "docker"] if engine.is_podman else []  # OCI's has no place for HEALTHCHECK
    file = ["--file", str(ROOT / each.dockerfile)]
    engine.run("build", *form, *file, "--tag", name, *values, *options, str(ROOT), capture=quiet)
    return name


def compressed_size(engine: Engine, image: str) -> int:
    """Bytes of an image as a registry keeps it, gzip's usual level; nearly, for layers are compressed in one."""
    saving = subprocess.Popen([*engine.command, "save", image], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    counter = _Counter()
    with gzip.GzipFile(fileobj=counter, mode="wb", compresslevel=6) as packed:
        assert saving.stdout is not None
        shutil.copyfileobj(saving.stdout, packed, CHUNK)
    if saving.wait():
        raise ImageError(f"{image} could not be read")
    return counter.size


class _Counter:
    """A file that only counts what is written to it."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""


def images_of_compose(profile: str) -> dict[str, str]:
    """Variable to image of all that compose/ starts with a profile, as compose/.env says, else .env.example."""
    own = ROOT / "compose" / ".env"
    text = (own if own.exists() else own.with_name(".env.example")).read_text("utf-8")
    other = {"cpu": "TRITON_IMAGE", "gpu": "TRITON_CPU_IMAGE"}[profile]
    return {variable: image for variable, image in VARIABLE.findall(text) if variable != other}


def without_digest(image: str) -> str:
    """name:tag of name:tag@sha256:...; an archive keeps no digest of a registry."""
    return image.partition("@")[0]


def save(engine: Engine, images: Mapping[str, str], archive: Path, *, quiet: bool = False) -> Path:
    """Write all images into one archive, pulled where they are not here; returns the manifest beside it."""
    for image in images.values():
        if not engine.has(image):
            engine.run("pull", image)
        if image != without_digest(image):
            engine.run("tag", image, without_digest(image))
    names = {variable: without_digest(image) for variable, image in images.items()}
    archive.parent.mkdir(parents=True, exist_ok=True)
    several = ["--multi-image-archive"] if engine.is_podman else []
    archive.unlink(missing_ok=True)  # podman adds to none
    engine.run("save", *several, "--output", str(archive), *dict.fromkeys(names.values()), capture=quiet)
    manifest = {"archive": archive.name, "bytes": archive.stat().st_size, "sha256": digest(archive), "images": names}
    beside = manifest_of(archive)
    beside.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return beside


def load(engine: Engine, archive: Path, *, quiet: bool = False) -> dict[str, str]:
    """Load what `save` wrote, if it is that; returns variable to image. Raises ImageError for another file."""
    try:
        manifest: dict[str, Any] = json.loads(manifest_of(archive).read_text("utf-8"))
        images, wanted = {str(key): str(value) for key, value in manifest["images"].items()}, manifest["sha256"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ImageError(f"{manifest_of(archive)} is no manifest ({error}); carry it beside the archive") from error
    if not archive.is_file() or digest(archive) != wanted:
        raise ImageError(f"{archive} is not the file that was saved (sha256 {wanted}); copy it again")
    engine.run("load", "--input", str(archive), capture=quiet)
    for name in images.values():
        if not engine.has(name) and engine.has(f"localhost/{name}"):  # saved by podman, loaded by docker
            engine.run("tag", f"localhost/{name}", name)
    if missing := [name for name in images.values() if not engine.has(name)]:
        raise ImageError(f"{archive} does not hold {', '.join(missing)}; save it again")
    return images


def manifest_of(archive: Path) -> Path:
    """The file that says what is in an archive, and its digest."""
    return archive.with_suffix(".json")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="images.py", description=__doc__)
    parser.add_argument("action", choices=["build", "save", "load"])
    parser.add_argument("--profile", choices=["cpu", "gpu"], default="cpu", help="of compose: whose images are saved")
    archive = ROOT / "dist" / f"triton-edge-gateway-images-{version()}.tar"
    parser.add_argument("--archive", type=Path, default=archive, help="file to write or to load")
    parser.add_argument("options", nargs="*", help="after --: options of docker build or podman build")
    given = parser.parse_args()
    try:
        engine = find_engine()
        if given.action == "build":
            names = [build(engine, each, given.options) for each in BUILDS]
            for name in names:
                print(f"{name}: {compressed_size(engine, name) / 1e6:.1f} MB compressed")
        elif given.action == "save":
            print(f"Written: {given.archive} and {save(engine, images_of_compose(given.profile), given.archive)}")
        else:
            images = load(engine, given.archive)
            print("Loaded. In compose/.env:", *(f"{variable}={image}" for variable, image in images.items()), sep="\n")
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
