"""Whether each locked package has a wheel for arm64, so that the images build there: asked of the package index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from compose.images.images import ImageError
from tests.test_supply_chain import lock

LOCKS = ("gateway.txt", "signing.txt", "tracing.txt", "video.txt", "triton-cpu.txt")
PYTHON = "3.12"
"""That of the Dockerfile's base."""
GLIBC = 36
"""2.36 of Debian bookworm; wheels for all older ones fit."""
MACHINE = {"platform_machine": "aarch64", "sys_platform": "linux", "platform_system": "Linux"}
MACHINE |= {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}


def arm64_requirements() -> list[str]:
    """Lines of a requirements file, with hashes, of all that is installed on arm64."""
    lines = {}
    for name in LOCKS:
        for entries in lock(name).values():
            for requirement, hashes in entries:
                if requirement.marker is None or requirement.marker.evaluate(MACHINE):
                    pin = f"{requirement.name}{requirement.specifier}"
                    lines[pin] = " ".join([pin, *(f"--hash=sha256:{digest}" for digest in hashes)])
    return list(lines.values())


def check_arm64(folder: Path) -> str:
    """Fetch all of them; raises ImageError where one has no wheel."""
    wanted = arm64_requirements()
    (folder / "arm64.txt").write_text("\n".join(wanted))
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1)]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--python-version={PYTHON}", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--platform=manylinux2014_aarch64"]
    done = subprocess.run(
        [*command, "--requirement", str(folder / "arm64.txt"), "--dest", str(folder / "arm64")],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ImageError(f"a package has no wheel for arm64: {done.stderr[-500:]}")
    return f"arm64: {len(wanted)} packages have wheels"
