"""The root of the gateway's image: an interpreter, what it is linked to, the gateway; no shell and no package manager.

Runs in the last stage but one of the Dockerfile, with the Python of the base image. What it copies from Debian packages
is recorded as the distroless images do (/var/lib/dpkg/status.d), so that scanners know what to look for.
"""
# ruff: noqa: S603, S607 - a script of the image's build, which asks ldd and dpkg of the base image

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

UNUSED = (
    *("test", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo", "pydoc_data", "config-*"),
    *("site-packages", "dist-packages", "__pycache__", "_tkinter.*", "_test*", "_ctypes_test.*", "_xxtestfuzz.*"),
)
"""Of the standard library: what tests it, draws windows or installs packages."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FILES = (CERTIFICATES, Path("/etc/os-release"), Path("/etc/nsswitch.conf"), Path("/etc/ld.so.conf"))
LOADED_BY_NAME = ("libgcc_s.so.1",)
"""glibc loads it when a thread is cancelled; nothing need be linked to it."""
USER = "edge-gateway"


class Root:
    """A folder that becomes `/`; paths are those of the base image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources: set[Path] = set()
        """What was copied from the base image."""

    def at(self, path: Path) -> Path:
        """Where a path of the base image is to lie; links in its folders are followed, the last one is not."""
        return self.folder / (path.parent.resolve() / path.name).relative_to("/")

    def file(self, path: Path) -> None:
        """Copy a file; of a link, the link and what it leads to."""
        target = self.at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            if not target.is_symlink():
                target.symlink_to(path.readlink())
            self.file(path.parent / path.readlink())
        elif not target.exists():
            shutil.copy2(path, target)
            self.sources.add(path.parent.resolve() / path.name)

    def tree(self, folder: Path, unused: tuple[str, ...] = ()) -> None:
        """Copy a folder with all that is in it but what matches `unused`."""
        shutil.copytree(
            folder, self.at(folder), symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*unused)
        )
        self.sources.add(folder.resolve())

    def libraries(self, known: Iterable[Path]) -> None:
        """Copy all shared libraries of the base image that the copied files are linked to."""
        binaries = [
            path for path in self.folder.rglob("*") if not path.is_symlink() and path.is_file() and _is_elf(path)
        ]
        brought = {path.name for path in binaries}  # packages bring some, which whoever loads them knows where to find
        wanted = set(known)
        for path in binaries:
            wanted |= _linked(Path("/") / path.relative_to(self.folder), brought)
        for library in sorted(wanted):
            self.file(library)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _linked(path: Path, brought: set[str]) -> set[Path]:
    """What the loader takes for a file, by full path; raises SystemExit where it would find nothing."""
    found = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    if missing := set(re.findall(r"(\S+) => not found", found)) - brought:
        sys.exit(f"{path} is linked to what neither the base image nor a package brings: {', '.join(missing)}")
    return {Path(name) for name in re.findall(r"(/\S+) \(0x", found)}


def interpreter(root: Root, prefix: Path) -> None:
    """The interpreter that the environment at `prefix` leads to, with its standard library."""
    root.file((prefix / "bin" / "python3").readlink())
    root.tree(Path(sysconfig.get_path("stdlib")), UNUSED)
    (root.folder / "usr/bin").mkdir(parents=True, exist_ok=True)
    for name in ("lib", "lib64", "bin"):  # as in the base image, where they lead into /usr
        base = Path("/") / name
        if base.is_symlink():
            (root.folder / name).symlink_to(base.readlink())


def loader_cache(root: Root) -> None:
    """Where the loader looks: the base image may keep libpython in a folder that it does not know by itself."""
    configuration = Path("/etc/ld.so.conf.d")
    if configuration.is_dir():
        root.tree(configuration)
    subprocess.run(["ldconfig", "-r", str(root.folder)], check=True)


def own_folders(root: Root, uid: int) -> None:
    """The user without a password or shell, and the folders that he may write."""
    account = f"root:x:0:0:root:/:/nologin\n{USER}:x:{uid}:{uid}::/var/lib/{USER}:/nologin\n"
    (root.folder / "etc/passwd").write_text(account)
    (root.folder / "etc/group").write_text(f"root:x:0:\n{USER}:x:{uid}:\n")
    for name in ("models", "proc", "sys", "dev", "run"):
        (root.folder / name).mkdir(exist_ok=True)
    (root.folder / "tmp").mkdir(mode=0o1777)
    (root.folder / "tmp").chmod(0o1777)
    state = root.folder / "var/lib" / USER
    state.mkdir(parents=True)
    os.chown(state, uid, uid)


def packages(root: Root) -> None:
    """A record and the licence of each Debian package that something was copied from."""
    target = root.folder / "var/lib/dpkg/status.d"
    target.mkdir(parents=True)
    for name in sorted(_owners(root.sources)):
        record = subprocess.run(["dpkg-query", "--status", name], capture_output=True, text=True, check=True).stdout
        (target / name.partition(":")[0]).write_text(record)
        licence = Path("/usr/share/doc") / name.partition(":")[0] / "copyright"
        if licence.exists():
            root.file(licence)


def _owners(paths: Iterable[Path]) -> set[str]:
    owners: set[str] = set()
    for path in paths:
        for form in (str(path), str(path).removeprefix("/usr")):  # dpkg knows a file as its package names it
            answer = subprocess.run(["dpkg-query", "--search", form], capture_output=True, text=True, check=False)
            owners.update(name for line in answer.stdout.splitlines() for name in line.partition(": ")[0].split(", "))
    return {name for name in owners if not name.startswith("diversion")}


def main() -> None:
    """collect_root.py PREFIX TARGET UID: from the environment at PREFIX to a root folder at TARGET."""
    prefix, target, uid = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    root = Root(target)
    target.mkdir(parents=True)
    interpreter(root, prefix)
    root.tree(prefix)
    for path in FILES:
        root.file(path)
    libraries = Path("/usr/lib") / sysconfig.get_config_var("MULTIARCH")
    root.libraries(libraries / name for name in LOADED_BY_NAME)
    loader_cache(root)
    own_folders(root, uid)
    packages(root)


if __name__ == "__main__":
    main()
