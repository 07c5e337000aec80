"""An archive of model folders, unpacked into a hidden folder of the repository and put where the gateway finds it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from gateway.commands.models.staging import CHUNK_BYTES, Staging
from gateway.errors import ConfigError

GZIP = b"\x1f\x8b"
HEADERS_BYTES = 64 << 20
"""What headers and padding of all files may take, beside the files themselves."""
MAX_HEADERS_BYTES = 64 << 10
"""Of what stands before one member: long names, times, owners. tarfile holds all of it in memory."""
FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""Names of models: they stand in paths, topics and on terminals."""
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


class _Member(tarfile.TarInfo):
    """A header that is looked at before tarfile reads what it announces."""

    def _proc_member(self, archive: _Archive) -> tarfile.TarInfo:
        if self.size < 0 or self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("it has a sparse file in it, or a header of a negative size")
        if self.type in _EXTENDED:
            archive.headers_bytes += tarfile.BLOCKSIZE + self.size
            if archive.headers_bytes > MAX_HEADERS_BYTES:
                raise tarfile.ReadError(f"a member has more than {MAX_HEADERS_BYTES // 1024} KiB of headers")
        return cast("tarfile.TarInfo", super()._proc_member(archive))  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: Any) -> None:
        raise tarfile.ReadError("it has a sparse file in it")  # its map has no limit


_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip


class _Archive(tarfile.TarFile):
    tarinfo = _Member
    members: list[tarfile.TarInfo]
    headers_bytes = 0
    """Of the member that is read now."""

    def each(self) -> Iterator[tarfile.TarInfo]:
        """The members, none of which is kept; ReadError when there are more than a drop has files."""
        from gateway.models.drop_files import MAX_FILES

        count = 0
        while (member := self.next()) is not None:
            count += 1
            if member.size < 0:
                raise tarfile.ReadError("it has a file of a negative size")
            if count > MAX_FILES:
                raise tarfile.ReadError(f"it has more than {MAX_FILES} files and folders")
            yield member
            self.headers_bytes = 0
            self.members, self.pax_headers = [], {}  # tarfile would keep all of them to the end


class _Digested:
    """A stream and the digest of what has been read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self.digest.update(content)
        return content


def unpack(file: IO[bytes], staging: Staging, name: str, max_bytes: int, sums: IO[str]) -> list[str]:
    """Unpack a tar, compressed by gzip or not, of folders as they lie in the repository; the top folders, in order.

    Folders whose names begin with a dot, and compiled Python, are left out. `sums` takes a line for each file, as
    sha256sum writes it. No more than a few MiB of memory are taken for any archive. Raises ConfigError, in words that
    begin with `name`, for what is no such archive, is larger than `max_bytes`, or has anything but files and folders
    in it.
    """
    begin = file.read(len(GZIP))
    file.seek(0)
    stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if begin == GZIP else file
    folders: dict[str, None] = {}
    total = 0
    try:
        bounded = _Bounded(stream, max_bytes + HEADERS_BYTES)
        with _Archive.open(fileobj=cast("IO[bytes]", bounded), mode="r|", errorlevel=2) as archive:
            for member in archive.each():
                total += member.size  # of what is left out too: tarfile reads until its end
                if total > max_bytes:
                    raise _wrong(name, f"has more than {max_bytes / 2**20:.0f} MiB")
                path = _checked(member, name)
                if path is None:
                    continue
                content = archive.extractfile(member)
                assert content is not None  # of a file
                digested = _Digested(content)
                staging.save(cast("IO[bytes]", digested), str(path), lambda _: None)
                sums.write(f"{digested.digest.hexdigest()}  {path}\n")
                folders.setdefault(path.parts[0])
        bounded.finish()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise _wrong(name, f"cannot be unpacked: {error}") from error
    if not folders:
        raise _wrong(name, "has no folder of a model in it")
    return list(folders)


def _checked(member: tarfile.TarInfo, name: str) -> PurePosixPath | None:
    """Where a file belongs; None for what is left out."""
    from gateway.models.drop_files import BYTECODE_FOLDER, MAX_DEPTH

    path = PurePosixPath(member.name)
    shown = ascii(member.name)[:200]
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or len(path.parts) > MAX_DEPTH:
        raise _wrong(name, f"has {shown} in it, which leads elsewhere")
    if member.isdir() or BYTECODE_FOLDER in path.parts or (path.parts and path.parts[0].startswith(".")):
        return None
    if not member.isreg() or member.issparse():
        raise _wrong(name, f"has {shown} in it, which is neither a file nor a folder")
    if len(path.parts) < 2:
        raise _wrong(name, f"has {shown} in it, which lies in no folder of a model")
    if not (FOLDER.fullmatch(path.parts[0]) and member.name.isprintable()):
        raise _wrong(name, f"has {shown} in it; names of models are of letters, digits, '.', '_' and '-'")
    if len(path.parts) == 2 and path.name.isdigit():
        raise _wrong(name, f"has the file {shown} in it, where a version has a folder")
    return path


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(what, where=name, fix=HOW)


def put_in_place(staging: Staging, folders: list[str], repository: Path) -> list[str]:
    """Move what is new into the repository, each model.yaml last; what is there already stays. Says what was moved.

    Raises ConfigError for a version folder that is there with another content, and where a link or something of another
    kind lies: nothing is moved then. Nobody else may fetch meanwhile.
    """
    ordered = sorted(folders, key=lambda folder: (staging.root / folder / "model.yaml").exists())
    moves = [move for folder in ordered for move in _moves(staging.root, folder, repository)]
    for path, is_new in moves:
        if is_new:
            staging.place([path])
        else:
            staging.replace(path)
    return [path for path, _ in moves]


def _moves(root: Path, folder: str, repository: Path) -> Iterator[tuple[str, bool]]:
    """What of a folder is not there as it is in the archive: paths in the repository, in order; whether each is new."""
    if not _has_one(repository / folder, root / folder):
        yield folder, True
        return
    entries = sorted((root / folder).iterdir(), key=lambda entry: (entry.name in LAST, _rank(entry.name), entry.name))
    for entry in entries:
        there = repository / folder / entry.name
        if not _has_one(there, entry):
            yield f"{folder}/{entry.name}", True
        elif not _same(entry, there):
            if entry.is_dir() and entry.name.isdigit():
                raise ConfigError(
                    "is there already with another content",
                    where=str(there),
                    fix="Give new weights a new version number: a number stands for its weights for ever",
                )
            yield f"{folder}/{entry.name}", False


def _has_one(there: Path, entry: Path) -> bool:
    """Whether something lies there; raises ConfigError when it is of another kind than the entry of the archive."""
    if not os.path.lexists(there):
        return False
    if there.is_symlink() or not (there.is_dir() if entry.is_dir() else there.is_file()):
        kind = "folder" if entry.is_dir() else "file"
        raise ConfigError(
            f"is no {kind}, as it is in the archive", where=str(there), fix="Move it away, then fetch again"
        )
    return True


def _rank(name: str) -> int:
    return LAST.index(name) if name in LAST else -1


def _same(one: Path, other: Path) -> bool:
    """Whether two files, or all files of two folders, are equal."""
    if one.is_dir() != other.is_dir():
        return False
    if not one.is_dir():
        return one.stat().st_size == other.stat().st_size and _equal(one, other)
    names = set(_files_of(one))
    return names == set(_files_of(other)) and all(_same(one / name, other / name) for name in sorted(names))


def _files_of(folder: Path) -> Iterator[str]:
    """Paths in the folder, without what Triton and the volume make there by themselves."""
    from gateway.models.drop_files import BYTECODE_FOLDER, VOLUME_NAMES

    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and not any(
            part == BYTECODE_FOLDER or part.startswith(VOLUME_NAMES) for part in relative.parts
        ):
            yield str(relative)


def _equal(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while chunk := first.read(CHUNK_BYTES):
            if chunk != second.read(CHUNK_BYTES):
                return False
    return True
