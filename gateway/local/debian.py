"""Getting what is missing from Debian's packages, for a machine that has only Python."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gateway.terminal.progress import busy

INSTALL_TIMEOUT_S = 300
# Asked by package scripts before they start a service; 101 means: do not.
_POLICY = Path("/usr/sbin/policy-rc.d")


def find_program(name: str) -> Path | None:
    """A program on PATH or in the folders for system programs, which a user's PATH often leaves out."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def find_shared_library(name: str) -> bool:
    """Whether the system's linker knows a library of this exact name."""
    linker = find_program("ldconfig")
    if linker is None:
        return False
    listing = subprocess.run([str(linker), "-p"], capture_output=True, text=True, check=False)
    return any(line.split()[:1] == [name] for line in listing.stdout.splitlines())


def install_package(package: str, reason: str) -> bool:
    """Install a Debian package when root on such a system, saying so; False when that does not work here.

    A service that comes with it is neither started nor enabled.
    """
    apt = find_program("apt-get")
    if apt is None or os.geteuid() != 0:
        return False
    print(f"{reason}: installing the Debian package {package} ...", file=sys.stderr, flush=True)
    with _no_services(), busy(f"Installing {package}"):
        if _apt(apt, "install", package) or (_apt(apt, "update") and _apt(apt, "install", package)):
            _disable_service(package)
            return True
    text = f"The package {package} could not be installed (no network, or not in this distribution)."
    print(text, file=sys.stderr, flush=True)
    return False


def _apt(apt: Path, *action: str) -> bool:
    command = [str(apt), "-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *action]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    if _POLICY.exists():  # a container image or the administrator has decided already
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _disable_service(package: str) -> None:
    systemctl = find_program("systemctl")
    if systemctl is not None:
        subprocess.run([str(systemctl), "disable", "--now", "--quiet", package], capture_output=True, check=False)
