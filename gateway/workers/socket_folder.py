"""Where the workers' sockets are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gateway.errors import ConfigError

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the folder in it is private  # nosec B108
PREFIX = "edge-gateway-workers-"
LONGEST_FOLDER = 90
"""Characters; Linux takes 107 for a socket."""
RANDOM_CHARACTERS = 8
"""In the name that tempfile gives."""
ATTEMPTS = 3


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for this user alone; raises ConfigError where there is no room for one.

    A container may have no other place to write than shared memory, and a socket's name cannot be long. The folder is
    locked for as long as this process lives, whatever ends it; that is how the next front knows which are left behind.
    """
    for where in (None, SHARED_MEMORY):
        try:
            place = Path(where or tempfile.gettempdir())
            if len(str(place)) + 1 + len(PREFIX) + RANDOM_CHARACTERS > LONGEST_FOLDER:
                continue
            _remove_leftovers(place)
            lock, folder = _create(place)
        except OSError:
            continue
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):  # somebody has put a file of his own there
                _remove(lock, folder)
            os.close(lock)
        return
    fix = "Set TMPDIR to a folder with a short name that may be written to"
    raise ConfigError("there is no place for the sockets of the workers", where="TMPDIR", fix=fix)


def _create(place: Path) -> tuple[int, Path]:
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        with contextlib.suppress(FileNotFoundError):  # another start took it for left behind, before it was locked
            lock = _open(folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return lock, folder
            os.close(lock)
    raise OSError(f"a folder in {place} is removed as soon as it is made")


def _remove_leftovers(place: Path) -> None:
    """Remove the folders of fronts that have ended without doing so themselves."""
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # no folder, not ours, or with more in it than sockets
            lock = _open(folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its front lives
                if os.fstat(lock).st_uid == os.geteuid():
                    _remove(lock, folder)
            finally:
                os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _remove(lock: int, folder: Path) -> None:
    """Remove it and the sockets in it, nothing else."""
    for name in os.listdir(lock):
        if name.startswith("worker-"):
            os.unlink(name, dir_fd=lock)
    folder.rmdir()
