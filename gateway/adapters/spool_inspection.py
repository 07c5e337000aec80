"""What can be told of a spool from outside, for `edge-gateway doctor`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from gateway.adapters.spool import SpoolFailed, spool_file


def waiting_in(folder: Path, gateway_id: str) -> int | None:
    """How many publications wait in the spool of a gateway that does not run; None while it runs.

    Raises SpoolFailed when that cannot be told.
    """
    file = spool_file(folder, gateway_id)
    if not file.exists():
        return 0
    try:
        with contextlib.ExitStack() as cleanup:
            lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_NOFOLLOW)
            cleanup.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            database = sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=0)
            cleanup.callback(database.close)
            database.execute("pragma locking_mode = exclusive")
            return int(database.execute("select count(*) from publications").fetchone()[0])
    except BlockingIOError:
        return None
    except (OSError, sqlite3.Error) as error:
        raise SpoolFailed(str(error)) from error


def set_aside_in(folder: Path, gateway_id: str) -> list[Path]:
    """The damaged files of a gateway that were set aside and that nobody has deleted yet."""
    return sorted(folder.glob(f"{spool_file(folder, gateway_id).name}.damaged-*"))
