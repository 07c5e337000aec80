"""A small disk for what the gateway writes, which can be filled and emptied again."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE = 16 * 2**20
FILLER = "filler"
BLOCK = bytes(65_536)


class SmallDisk:
    """A tmpfs of 16 MiB at `folder` where this process may mount one; a context manager.

    Elsewhere the limit on the size of files is lowered for the gateway's process, whose writes then fail with EFBIG
    in place of ENOSPC. `how` says which of both it is.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._mounted = False

    @property
    def how(self) -> str:
        """For the report."""
        return f"tmpfs of {SIZE >> 20} MiB" if self._mounted else "RLIMIT_FSIZE of the gateway (no right to mount)"

    def fill(self, gateway: int) -> None:
        """Leave not a byte; `gateway` is the process that is to find it so."""
        if not self._mounted:
            resource.prlimit(gateway, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with (self.folder / FILLER).open("ab", buffering=0) as file:
            for block in (BLOCK, b"\0"):
                try:
                    while file.write(block):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self, gateway: int) -> None:
        """Give the space back."""
        if self._mounted:
            (self.folder / FILLER).unlink(missing_ok=True)
            return
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(gateway, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "edge-gateway-chaos", str(self.folder)]
            self._mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)
            self._mounted = False
