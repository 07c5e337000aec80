"""One piece of POSIX shared memory of ours, under a name in /dev/shm that nobody can guess."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import stat
import weakref
from pathlib import Path

import numpy as np

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory  # nosec B108
PREFIX = "edge-gateway-tensors-"
ATTEMPTS = 3


class Segment:
    """`size` bytes of address space, of which only what is committed takes memory.

    The file is locked for as long as this process lives, whatever ends it; that is how the next gateway knows which
    ones have been left behind. Process ids would not do: containers that share /dev/shm count them each for themselves.
    File and mapping end when the last one who holds the segment lets it go; a removed one can be used until then. Safe
    to use from any thread. Raises OSError.
    """

    def __init__(self, size: int, folder: Path = SHARED_MEMORY) -> None:
        self.size = size
        self._file, self.path = _create(folder)
        # Not with `remove`: another thread may be committing, and by then the number may be of somebody else's file.
        weakref.finalize(self, os.close, self._file).atexit = False
        try:
            os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, size)
        except (OSError, ValueError) as error:
            self.remove()
            raise error if isinstance(error, OSError) else OSError(str(error)) from error
        self.address: int = np.frombuffer(self._map, np.uint8).__array_interface__["data"][0]

    @property
    def name(self) -> str:
        """What Triton shall know it as, too."""
        return self.path.name

    def exists(self) -> bool:
        """Whether its file is still the one under its name."""
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except OSError:
            return False

    def commit(self, offset: int, size: int) -> None:
        """Take the memory now: without that a full /dev/shm would end the process at the first write (SIGBUS)."""
        os.posix_fallocate(self._file, offset, size)

    def discard(self, offset: int, size: int) -> None:
        """Give the memory back; Triton may not be reading it any more."""
        with contextlib.suppress(OSError):  # a file system that cannot: then it stays
            self._map.madvise(mmap.MADV_REMOVE, offset, size)

    def remove(self) -> None:
        """Take its name away; whoever has mapped it goes on."""
        if self.exists():
            self.path.unlink(missing_ok=True)


def remove_leftovers(folder: Path = SHARED_MEMORY) -> None:
    """Remove the segments of gateways that have ended without doing so themselves."""
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # locked: its gateway lives; gone: another start was faster; not ours
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(file)


def _create(folder: Path) -> tuple[int, Path]:
    for _ in range(ATTEMPTS):
        path = folder / f"{PREFIX}{secrets.token_hex(16)}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            if folder.stat().st_mode & stat.S_ISGID:  # a folder that hands its group on is meant for that group
                os.fchmod(file, 0o660)  # nosec B103 - the group of this folder, nobody else
            return file, path
        os.close(file)  # another start took it for left behind, before it was locked
    raise OSError(f"a segment in {folder} is removed as soon as it is made")
