"""What all folders of the model repository look like at one moment, so that two looks tell which have changed."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.models.drop_files import BYTECODE_FOLDER, stamp_of

MAX_ENTRIES = 50_000
"""Files and folders of one folder of the repository; what comes after them is not looked at."""
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Look:
    """The folders of the repository by name, each as a digest over the names and stamps of all that is in it."""

    folders: Mapping[str, bytes] = field(default_factory=dict)
    newest: Mapping[str, float] = field(default_factory=dict)
    """When a file of the folder last changed, in seconds since 1970 by the clock of the volume."""
    directories: frozenset[str] = frozenset()
    """The repository and all folders in which something was looked at, all links followed; none: it cannot be read."""
    reason: str = ""
    """Why it cannot be read."""
    too_large: tuple[str, ...] = ()
    """Folders with more than MAX_ENTRIES."""
    started: float = 0.0
    ended: float = 0.0
    """By the monotonic clock."""


def look_at(repository: Path, state_dir: Path, *, reopen: bool = False) -> Look:
    """Look at all files of all folders, but hidden ones and `state_dir`; never raises OSError.

    `reopen` opens each file: a volume of the network then asks its server, in place of telling what it remembers.
    """
    started = time.monotonic()
    try:
        walk = _Walk(repository.resolve(), str(state_dir.resolve()), reopen)
        with os.scandir(walk.root) as found:
            entries = [entry for entry in found if entry.name[0] != "." and entry.is_dir()]
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Look(reason=reason, started=started, ended=time.monotonic())
    return Look(
        {entry.name: walk.digest(entry) for entry in entries if entry.path != walk.state_dir},
        walk.newest,
        frozenset({str(walk.root), *walk.directories}),
        too_large=tuple(walk.too_large),
        started=started,
        ended=time.monotonic(),
    )


@dataclass(slots=True)
class _Walk:
    """One pass over the repository."""

    root: Path
    state_dir: str
    reopen: bool
    newest: dict[str, float] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    too_large: list[str] = field(default_factory=list)
    _top: str = ""
    _left: int = 0
    _entered: set[tuple[int, int]] = field(default_factory=set)

    def digest(self, entry: os.DirEntry[str]) -> bytes:
        """Of one folder of the repository."""
        self._top, self._left, self._entered = entry.name, MAX_ENTRIES, set()
        self.newest[entry.name] = 0.0
        digest = hashlib.blake2b(digest_size=16)
        for text in self._of_entry(entry, 0):
            digest.update(text.encode(errors="surrogateescape"))
        if self._left < 0:
            self.too_large.append(entry.name)
        return digest.digest()

    def _of_entry(self, entry: os.DirEntry[str], depth: int) -> list[str]:
        """One line for it, and for each entry in it when it is a folder."""
        try:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return [f"{entry.path}\0{os.sep}\n", *self._of_folder(entry.path, status, depth)]
            line = f"{entry.path}\0{self._stamp(entry, status)}\n"
            return [line, *self._behind(entry.path, depth)] if stat.S_ISLNK(status.st_mode) else [line]
        except (OSError, RuntimeError) as error:  # gone meanwhile; a link to nothing, or to itself
            return [f"{entry.path}\0{type(error).__name__}\n"]

    def _behind(self, link: str, depth: int) -> list[str]:
        """What a link leads to; of a folder outside of the repository nothing, for it may be all of the disk."""
        target = Path(link).resolve()
        status = target.stat()
        if not stat.S_ISDIR(status.st_mode):
            return [f"{target}\0{stamp_of(status)}\n"]
        return self._of_folder(str(target), status, depth) if target.is_relative_to(self.root) else []

    def _of_folder(self, folder: str, status: os.stat_result, depth: int) -> list[str]:
        """The lines of its entries; each folder is entered once, for links may lead in circles."""
        identity = (status.st_dev, status.st_ino)
        if folder == self.state_dir or identity in self._entered or depth > MAX_DEPTH:
            return []
        self._entered.add(identity)
        self.directories.add(folder)
        try:
            with os.scandir(folder) as found:
                entries = sorted(itertools.islice(found, MAX_ENTRIES), key=lambda entry: entry.name)
        except OSError as error:
            return [f"{folder}\0{error.errno}\n"]
        lines = []
        for entry in entries:
            self._left -= 1
            if self._left < 0:
                break
            if entry.name != BYTECODE_FOLDER:
                lines += self._of_entry(entry, depth + 1)
        return lines

    def _stamp(self, entry: os.DirEntry[str], status: os.stat_result) -> tuple[int, ...]:
        if self.reopen and stat.S_ISREG(status.st_mode):
            status = _reopened(entry.path) or status
        self.newest[self._top] = max(self.newest[self._top], status.st_ctime)
        return stamp_of(status)


def _reopened(path: str) -> os.stat_result | None:
    """None for a file that may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
