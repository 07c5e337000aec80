"""Opening a file that somebody else put there: only a regular one, for a pipe would keep its reader waiting."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path


def open_regular(path: Path) -> FileIO:
    """The file to read from, unbuffered; raises OSError, and ValueError for a path that can be none.

    Links are followed: the files of a mounted ConfigMap are links.
    """
    file = FileIO(path, "rb", opener=_without_waiting)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # of no effect on regular files
