"""An archive of model folders, unpacked into a hidden folder of the repository and put where the gateway finds it."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from gateway.commands.models.staging import CHUNK_BYTES, Staging
from gateway.errors import ConfigError

GZIP = b"\x1f\x8b"
HEADERS_BYTES = 64 << 20
"""What headers and padding of all files may take, beside the files themselves."""
LAST = ("SHA256SUMS", "model.sig", "model.yaml")
"""Of the files of a model, in this order: a drop is read when its model.yaml fits."""
HOW = "Make it with `tar -C model_repository -czf drop.tar.gz NAME NAME-onnx ...`"


class _Bounded(io.RawIOBase):
    """A stream of which no more is read than a limit, whatever it unpacks to."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """As a file's; raises tarfile.ReadError beyond the limit, and for what cannot be unpacked."""
        if size < 0 or size > self._left:
            raise tarfile.ReadError("it is larger than MAX_MODEL_BYTES allows")
        try:
            content = self._stream.read(size)
        except OSError as error:  # of gzip: a wrong checksum
            raise tarfile.ReadError(str(error)) from error
        self._left -= len(content)
        return content

    def finish(self) -> None:
        """Read what comes after the last file, so that a checksum at the end is compared too."""
        while self.read(min(CHUNK_BYTES, self._left) or 1):
            pass


def unpack(file: IO[bytes], staging: Staging, name: str, max_bytes: int) -> list[str]:
    """Unpack a tar, compressed by gzip or not, of folders as they lie in the repository; the top folders, in order.

    Folders whose names begin with a dot are left out. Raises ConfigError, in words that begin with `name`, for what is
    no such archive, is larger than `max_bytes`, or has anything but files and folders in it.
    """
    from gateway.models.drop_files import MAX_FILES

    begin = file.read(len(GZIP))
    file.seek(0)
    stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if begin == GZIP else file
    folders: dict[str, None] = {}
    files = total = 0
    try:
        bounded = _Bounded(stream, max_bytes + HEADERS_BYTES)
        with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r|", errorlevel=2) as archive:
            for member in archive:
                path = _checked(member, name)
                if path is None:
                    continue
                files, total = files + 1, total + member.size
                if total > max_bytes or files > MAX_FILES:
                    raise _wrong(name, f"has more than {max_bytes / 2**20:.0f} MiB or {MAX_FILES} files")
                content = archive.extractfile(member)
                assert content is not None  # of a file
                staging.save(content, str(path), lambda _: None)
                folders.setdefault(path.parts[0])
        bounded.finish()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise _wrong(name, f"cannot be unpacked: {error}") from error
    if not folders:
        raise _wrong(name, "has no folder of a model in it")
    return list(folders)


def _checked(member: tarfile.TarInfo, name: str) -> PurePosixPath | None:
    """Where a file belongs; None for what is left out."""
    from gateway.models.drop_files import MAX_DEPTH

    path = PurePosixPath(member.name)
    shown = ascii(member.name)[:200]
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or len(path.parts) > MAX_DEPTH:
        raise _wrong(name, f"has {shown} in it, which leads elsewhere")
    if member.isdir() or (path.parts and path.parts[0].startswith(".")):
        return None
    if not member.isreg() or member.issparse():
        raise _wrong(name, f"has {shown} in it, which is neither a file nor a folder")
    if len(path.parts) < 2:
        raise _wrong(name, f"has {shown} in it, which lies in no folder of a model")
    return path


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(what, where=name, fix=HOW)


def put_in_place(staging: Staging, folders: list[str], repository: Path) -> list[str]:
    """Move what is new into the repository, each model.yaml last; what is there already stays. Says what was moved.

    Raises ConfigError for a version folder that is there with another content: nothing is moved then.
    """
    ordered = sorted(folders, key=lambda folder: (staging.root / folder / "model.yaml").exists())
    moves = [move for folder in ordered for move in _moves(staging.root, folder, repository)]
    for move in moves:
        staging.put(move)
    return moves


def _moves(root: Path, folder: str, repository: Path) -> Iterator[str]:
    """What of a folder is not there yet, as paths in the repository, in order."""
    if not (repository / folder).exists():
        yield folder
        return
    entries = sorted((root / folder).iterdir(), key=lambda entry: (entry.name in LAST, _rank(entry.name), entry.name))
    for entry in entries:
        there = repository / folder / entry.name
        if not there.exists():
            yield f"{folder}/{entry.name}"
        elif not _same(entry, there):
            if entry.is_dir() and entry.name.isdigit():
                raise ConfigError(
                    "is there already with another content",
                    where=str(there),
                    fix="Give new weights a new version number: a number stands for its weights for ever",
                )
            yield f"{folder}/{entry.name}"


def _rank(name: str) -> int:
    return LAST.index(name) if name in LAST else -1


def _same(one: Path, other: Path) -> bool:
    """Whether two files, or all files of two folders, are equal."""
    if one.is_dir() != other.is_dir():
        return False
    if not one.is_dir():
        return one.stat().st_size == other.stat().st_size and _equal(one, other)
    names = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    others = {str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()}
    return names == others and all(_same(one / name, other / name) for name in sorted(names))


def _equal(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while chunk := first.read(CHUNK_BYTES):
            if chunk != second.read(CHUNK_BYTES):
                return False
    return True
