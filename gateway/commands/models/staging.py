"""A drop put together in a hidden folder of the repository and moved into place, so that nobody sees half of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from gateway.errors import ConfigError
from gateway.regular_file import open_regular

CHUNK_BYTES = 1 << 20
PREFIX = ".new-"
"""Hidden folders are no models, neither for the gateway nor for Triton."""
FETCH = ".fetch"
"""Name of the stagings of `models fetch`; no model has one that begins with a dot."""


class Staging:
    """A context: what has not been placed at its end is gone, whatever ended it but a kill.

    Files that cannot be read, and a volume that cannot be written, raise ConfigError.
    """

    def __init__(self, repository: Path, name: str) -> None:
        self._repository = repository
        with _told(repository):
            self.root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-", dir=repository))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def write(self, relative: str, text: str) -> None:
        """A small file."""
        with _told(self._repository / relative), self._new(relative) as number:
            _write_all(number, text.encode())

    def copy(self, source: Path, relative: str, advance: Callable[[int], None]) -> None:
        """The content of a regular file; `advance` is told of the bytes as they are copied."""
        try:
            file = open_regular(source)
        except (OSError, ValueError) as error:
            raise _unreadable(source, error) from error
        with file:
            self.save(file, relative, advance)

    def save(self, stream: IO[bytes], relative: str, advance: Callable[[int], None]) -> None:
        """What is left of a stream; what reading it raises is passed on, but for OSError."""
        with _told(self._repository / relative), self._new(relative) as number:
            while chunk := stream.read(CHUNK_BYTES):
                _write_all(number, chunk)
                advance(len(chunk))

    @contextlib.contextmanager
    def _new(self, relative: str) -> Iterator[int]:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            yield number
            os.fsync(number)
        finally:
            os.close(number)

    def place(self, folders: Iterable[str]) -> None:
        """Move these folders to the same place in the repository, in order; all of them or none."""
        done: list[str] = []
        try:
            for folder in folders:
                self._place(folder)
                done.append(folder)
        except BaseException:
            for folder in reversed(done):
                with contextlib.suppress(OSError):
                    (self._repository / folder).rename(self.root / folder)
            raise

    def replace(self, path: str) -> None:
        """Move one file or folder to the same place in the repository, where one of its kind lies.

        A file is there at every moment; a folder is away for one, and comes back when the new one cannot be moved.
        """
        new, target = self.root / path, self._repository / path
        with _told(target, "run it again"):
            if not new.is_dir():
                new.replace(target)
            else:
                _sync_folders(new)
                before = Path(tempfile.mkdtemp(dir=self.root)) / "before"
                try:
                    target.rename(before)
                    new.rename(target)
                except BaseException:
                    with contextlib.suppress(OSError):
                        before.rename(target)
                    raise
            _sync(target.parent)

    def _place(self, folder: str) -> None:
        target = self._repository / folder
        with _told(target):
            if os.path.lexists(target):
                raise ConfigError("is there already", where=str(target), fix="Take another name or version")
            _sync_folders(self.root / folder)
            (self.root / folder).rename(target)
            _sync(target.parent)


def remove_leftovers(repository: Path) -> None:
    """Remove what fetches that were killed have left; only for who knows that no other fetch is at work."""
    for folder in repository.glob(f"{PREFIX}{FETCH}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _write_all(number: int, content: bytes) -> None:
    left = memoryview(content)
    while left:  # a volume that is nearly full takes a part
        left = left[os.write(number, left) :]


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        _sync(Path(folder))


def _sync(folder: Path) -> None:
    """So that names survive a power failure as the contents do."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network volumes know no fsync of folders
            os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def _told(where: Path, after: str = "nothing was put into the repository") -> Iterator[None]:
    """OSError as ConfigError: what could not be written, and how it stands after that."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror or error}; {after}",
            where=str(where),
            fix="Check the free space of the volume, and that this user may write there",
        ) from error


def _unreadable(source: Path, error: OSError | ValueError) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot be read: {reason}", where=str(source), fix="Check the path and its permissions")
