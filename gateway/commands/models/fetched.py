"""What `models fetch` remembers of the archives in a repository, and the lock by which one works there at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import click

from gateway.regular_file import open_regular

REMEMBERED = ".fetched"
"""Hidden folder of the repository: a file for the digest of each archive, with the digests of its files."""
LOCK = "lock"
MAX_LINE = 1 << 16
"""Characters; a path is shorter by far."""


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Wait until no other fetch works in the repository; raises OSError where the volume has no locks.

    The lock goes with its process, however that ends. It holds between processes and nodes as far as the volume's
    flock does (NFS from version 4 on, not with `nolock`), and against fetches alone: not against `cp` or another tool.
    """
    (root / REMEMBERED).mkdir(exist_ok=True)
    number = os.open(root / REMEMBERED / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo("Another fetch works in this repository; this one waits for its end", err=True)
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def is_there(root: Path, sha256: str) -> bool:
    """Whether an archive with this digest was unpacked here, and all its files are still as they were in it."""
    any_file = False
    try:
        with io.TextIOWrapper(io.BufferedReader(open_regular(root / REMEMBERED / sha256)), encoding="utf-8") as lines:
            while line := lines.readline(MAX_LINE):
                digest, _, path = line.removesuffix("\n").partition("  ")
                with open_regular(root / path) as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        return False
                any_file = True
    except (OSError, ValueError):
        return False
    return any_file
