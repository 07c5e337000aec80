"""What this machine must have: root on Debian, podman and its parts; and a podman apart from the machine's own."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compose.images.images import Engine

PROGRAMS = {
    "podman": "podman",
    "buildah": "buildah",
    "runc": "runc",
    "conmon": "conmon",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
}
"""Program to Debian package."""
LARGEST_LIMIT = 4096


class NotHereError(Exception):
    """Why the test cannot be run on this machine."""


def require_programs() -> None:
    """Install what is missing; raises NotHereError where that is not possible."""
    if os.geteuid() != 0:
        raise NotHereError("only root can build and start containers with networks of their own; run it with sudo")
    missing = [package for program, package in PROGRAMS.items() if not _is_here(program)]
    if not missing:
        return
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        raise NotHereError(f"{', '.join(missing)} cannot be installed, for this is no Debian")
    print(f"Installing from Debian's packages: {' '.join(missing)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise NotHereError(f"apt-get {command[0]} failed: {done.stderr.strip()[-300:]}")


def _is_here(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


@contextmanager
def own_podman(folder: Path) -> Iterator[Engine]:
    """A podman with images, containers, networks and volumes in a folder of its own, which it leaves empty."""
    (folder / "containers.conf").write_text(_configuration(folder))
    os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
    (folder / "scratch").mkdir()
    os.environ["TMPDIR"] = str(folder / "scratch")  # what an interrupted build leaves behind goes with the folder
    places = {"--root": "storage", "--runroot": "run", "--tmpdir": "tmp"}
    options = [part for option, name in places.items() for part in (option, str(folder / name))]
    podman = Engine(("podman", *options))
    try:
        yield podman
    finally:
        podman.run("rm", "--all", "--force", "--time", "5", capture=True)
        podman.run("volume", "rm", "--all", "--force", capture=True)
        podman.run("network", "prune", "--force", capture=True)
        podman.run("rmi", "--all", "--force", capture=True)
        for mount in (folder / "storage" / "overlay", folder / "storage"):
            subprocess.run(["umount", "--quiet", str(mount)], check=False, stderr=subprocess.DEVNULL)


def _configuration(folder: Path) -> str:
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    ulimits = [f'"{name}={limit}:{limit}"' for name, kind in limits.items() for limit in [_limit(kind)]]
    manager = "systemd" if Path("/run/systemd/system").is_dir() else "cgroupfs"
    return f"""\
[containers]
default_ulimits = [{", ".join(ulimits)}]
[engine]
runtime = "runc"
cgroup_manager = "{manager}"
events_logger = "file"
volume_path = "{folder / "volumes"}"
[network]
network_backend = "netavark"
network_config_dir = "{folder / "networks"}"
"""


def _limit(kind: int) -> int:
    """What is enough for each container, and not more than this process has, which could not be handed on."""
    hard = resource.getrlimit(kind)[1]
    return LARGEST_LIMIT if hard == resource.RLIM_INFINITY else min(hard, LARGEST_LIMIT)
