"""The shared-memory segments of Triton's stub processes, which a killed Triton leaves in /dev/shm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory  # nosec B108


class SegmentOwner:
    """Owns all segments that begin with `prefix`, as long as this process lives.

    The claim is a lock on a file, which the kernel lifts at any death; a later owner finds such a file
    unlocked and removes what it stands for. Process ids would not do: other containers may share /dev/shm.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for claim in folder.glob("edge_gateway_*"):
            _remove_if_abandoned(claim)
        self.prefix = f"edge_gateway_{uuid.uuid4().hex[:12]}_"
        self._claim = folder / self.prefix
        self._lock: int | None = os.open(self._claim, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def release(self) -> None:
        """Remove the segments; to be called when Triton and its stubs have ended."""
        if self._lock is not None:
            _remove_segments(self.prefix)
            self._claim.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def _remove_if_abandoned(claim: Path) -> None:
    with contextlib.suppress(OSError):  # locked: its Triton runs; gone: another start was faster
        lock = os.open(claim, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_segments(claim.name)
            claim.unlink()
        finally:
            os.close(lock)


def _remove_segments(prefix: str) -> None:
    for segment in SHARED_MEMORY.glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)
