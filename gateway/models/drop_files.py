"""Which files make up one version of a model, and what each looks like on disk; nothing is read of them here."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gateway.errors import ConfigError
from gateway.models.repository import LogicalModel
from gateway.regular_file import open_regular

SUMS_FILE = "SHA256SUMS"
SIGNATURE_FILE = "model.sig"
BYTECODE_FOLDER = "__pycache__"
"""Written by Triton's Python backend into the folders that it runs code from, so it comes and goes."""
MAX_FILES = 10_000
MAX_DEPTH = 32
"""Folders inside each other; a link that leads back into its own folder goes on for ever."""
VOLUME_NAMES = ("..", ".nfs")
"""Beginnings of names that a volume makes by itself: of a mounted ConfigMap, and of a file deleted while in use."""

FileStamp = tuple[int, int, int, int]
"""mtime_ns, ctime_ns, inode and size: while they are the same, so is the file."""


def stamp_of(status: os.stat_result) -> FileStamp:
    """What tells a file from another one, or from itself after a change."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def version_in(name: str) -> int | None:
    """The version that a folder of this name holds, as Triton reads it; None when it is no version folder."""
    is_number = name.isascii() and name.isdigit() and name[0] != "0"
    return int(name) if is_number and len(name) < 19 else None  # Triton counts in 64 bits


@dataclass(frozen=True, slots=True)
class Scope:
    """Where the files of one version of a model lie, as paths in the repository.

    `logical` is the folder of its model.yaml, None where that is no folder of the repository: then it is part of the
    configuration of this gateway rather than of the drop.
    """

    version: int
    logical: PurePosixPath | None
    triton_models: tuple[str, ...]

    def holds(self, path: str) -> bool:
        """Whether a file or folder of this name belongs to the version; what lies in one that does not, does not."""
        parts = PurePosixPath(path).parts
        if len(parts) > 1 and parts[0] in self.triton_models:
            return self._of_triton(parts[1:]) and not self._about_the_drop(path)
        return (
            self.logical is not None
            and PurePosixPath(path).is_relative_to(self.logical)
            and not self._about_the_drop(path)
            and not any(_is_hidden(part) for part in parts[len(self.logical.parts) :])
        )

    def in_version_folder(self, path: str) -> bool:
        """Whether it lies in the version folder of a Triton model."""
        parts = PurePosixPath(path).parts
        return len(parts) > 2 and parts[0] in self.triton_models and parts[1] == str(self.version)

    def _of_triton(self, parts: tuple[str, ...]) -> bool:
        """All of its own version folder, and of what lies beside it all but the other version folders."""
        if version_in(parts[0]) is None:
            return not any(_is_hidden(part) for part in parts)
        return parts[0] == str(self.version) and not any(_is_of_the_volume(part) for part in parts)

    def _about_the_drop(self, path: str) -> bool:
        return self.logical is not None and path in {
            str(self.logical / SUMS_FILE),
            str(self.logical / SIGNATURE_FILE),
        }


def scope_of(model: LogicalModel, repository: Path, version: int) -> Scope:
    """The scope of one version; raises ConfigError when the folder of model.yaml cannot be looked up."""
    try:
        folder = Path(os.path.abspath(model.path)).parent  # noqa: PTH100 - without following links
        root = Path(os.path.abspath(repository))  # noqa: PTH100
    except (OSError, ValueError) as error:  # the working directory is gone
        raise unreadable(model.path, error) from error
    inside = folder.is_relative_to(root) and folder != root
    return Scope(
        version,
        PurePosixPath(folder.relative_to(root).as_posix()) if inside else None,
        tuple(dict.fromkeys(model.spec.variants.values())),
    )


def list_files(scope: Scope, repository: Path, max_bytes: int) -> tuple[dict[str, FileStamp], tuple[str, ...]]:
    """The stamps of all files of the scope by path, in order, and the files of compiled Python beside them.

    Raises ConfigError for a file that is none, cannot be read, or lies outside of the repository, for a model file
    without content, and when there are more than MAX_FILES or more than `max_bytes` in all.
    """
    walk = _Walk(scope, repository)
    folders = {name: None for name in scope.triton_models if os.path.lexists(repository / name)}
    if scope.logical is not None:
        folders[str(scope.logical)] = None
    for folder in folders:
        walk.enter(folder, 0)
    total = sum(size for *_, size in walk.files.values())
    if total > max_bytes:
        raise ConfigError(
            f"version {scope.version} takes {total / 2**20:.1f} MiB, the limit is {max_bytes / 2**20:.1f} MiB",
            where=str(repository / (scope.logical or scope.triton_models[0])),
            fix="Make the model smaller, or raise MAX_MODEL_BYTES",
        )
    return dict(sorted(walk.files.items())), tuple(sorted(walk.bytecode))


@dataclass(slots=True)
class _Walk:
    """One pass over the folders of a scope."""

    scope: Scope
    repository: Path
    files: dict[str, FileStamp] = field(default_factory=dict)
    bytecode: list[str] = field(default_factory=list)
    entries: int = 0

    def enter(self, folder: str, depth: int) -> None:
        """Take in what lies in the folder, which may be a link."""
        path = self.repository / folder
        if depth == 0:
            self._refuse_outside(path)
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"folders lie in each other more than {MAX_DEPTH} deep",
                where=str(path),
                fix="Remove the link that leads back",
            )
        for name, is_link in self._names(path):
            inner = f"{folder}/{name}"
            if name == BYTECODE_FOLDER:
                self.bytecode.append(inner)
            elif self.scope.holds(inner):
                self._take(inner, depth, is_link=is_link)

    def _names(self, path: Path) -> Iterator[tuple[str, bool]]:
        """Name of each entry, and whether it is a link."""
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    self.entries += 1
                    if self.entries > MAX_FILES:
                        raise ConfigError(
                            f"there are more than {MAX_FILES} files",
                            where=str(path),
                            fix="Remove from the folder what is not needed to serve the model",
                        )
                    yield entry.name, entry.is_symlink()
        except OSError as error:
            raise unreadable(path, error) from error

    def _take(self, relative: str, depth: int, *, is_link: bool) -> None:
        path = self.repository / relative
        if is_link:
            self._refuse_outside(path)
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                self.enter(relative, depth + 1)
            else:
                self.files[_in_utf8(relative)] = self._stamp(path, relative)
        except OSError as error:
            raise unreadable(path, error) from error

    def _stamp(self, path: Path, relative: str) -> FileStamp:
        """Of a file that can be opened: only so it is known that it may be read."""
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a device may act on that
            raise ConfigError(
                "is no regular file", where=str(path), fix="Remove it; a model consists of files and folders"
            )
        with open_regular(path) as file:
            stamp = stamp_of(os.fstat(file.fileno()))
        if stamp[3] == 0 and path.name.startswith("model.") and self.scope.in_version_folder(relative):
            raise ConfigError("the model file is empty (0 bytes)", where=str(path), fix="Copy it again, completely")
        return stamp

    def _refuse_outside(self, path: Path) -> None:
        try:
            root, real = self.repository.resolve(), path.resolve()
        except (OSError, RuntimeError) as error:  # links in a circle
            raise ConfigError(
                "is a link that leads to itself", where=str(path), fix="Put the file itself there"
            ) from error
        if not real.is_relative_to(root):
            raise ConfigError(
                f"is a link out of the repository, to {real}",
                where=str(path),
                fix="Copy the file itself into the repository",
            )


def _is_of_the_volume(name: str) -> bool:
    return name == BYTECODE_FOLDER or name.startswith(VOLUME_NAMES)


def _is_hidden(name: str) -> bool:
    return name == BYTECODE_FOLDER or name.startswith(".")


def _in_utf8(relative: str) -> str:
    if not relative.isascii():
        try:
            relative.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                "has a name that is not UTF-8", where=ascii(relative), fix="Rename it; use letters, digits, '-' and '_'"
            ) from error
    return relative


def unreadable(path: Path, error: OSError | ValueError) -> ConfigError:
    """Why a file of a drop cannot be read, for people."""
    if isinstance(error, FileNotFoundError):
        what = (
            "is a link to nothing" if path.is_symlink() else "has gone while it was read, so the drop is not complete"
        )
        return ConfigError(what, where=str(path), fix="Copy it again, completely")
    fix = "Allow the user that the gateway runs as to read it" if isinstance(error, PermissionError) else ""
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot be read: {reason}", where=str(path), fix=fix or "Check the path and the volume")
