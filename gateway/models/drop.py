"""One version of a model as it lies in the repository: its files, their digests, and which variants it brings."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import ConfigError
from gateway.models.drop_files import FileStamp, list_files, scope_of, stamp_of, unreadable, version_in
from gateway.models.release import Placement, Release
from gateway.models.repository import LogicalModel
from gateway.regular_file import open_regular

CONFIG_FILE = "config.pbtxt"
MAX_CONFIG_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Drop:
    """What was found of one version at one moment; `files` by path in the repository, in the order of the paths."""

    name: str
    version: int
    model: LogicalModel
    repository: Path
    release: Release
    files: Mapping[str, FileStamp] = field(default_factory=dict)
    bytecode: tuple[str, ...] = ()
    """Folders of compiled Python, which no digest covers: Triton writes them, and others may."""


def versions_on_disk(model: LogicalModel, repository: Path) -> dict[int, tuple[str, ...]]:
    """The variants that bring each version, the lowest version first; empty when no folder of theirs can be seen.

    A link counts as the folder that it may lead to: `take_drop` judges that. Never raises.
    """
    found: dict[int, list[str]] = {}
    for variant, triton_model in model.spec.variants.items():
        for version in _versions_in(repository / triton_model):
            found.setdefault(version, []).append(variant)
    return {version: tuple(found[version]) for version in sorted(found)}


def _versions_in(folder: Path) -> list[int]:
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        return [
            version
            for entry in entries
            if (version := version_in(entry.name)) is not None and (entry.is_symlink() or entry.is_dir())
        ]
    return []


def take_drop(model: LogicalModel, repository: Path, version: int, max_bytes: int) -> Drop:
    """Look at all files of one version; raises ConfigError for what cannot be served as it lies there.

    `max_bytes` is the most that all files may have together. Whether they fit each other is not looked at.
    """
    bringing = versions_on_disk(model, repository).get(version, ())
    if not bringing:
        raise ConfigError(
            f"version {version} has no folder at {' or '.join(dict.fromkeys(model.spec.variants.values()))}",
            where=str(repository),
            fix=f"Put the model into {next(iter(model.spec.variants.values()))}/{version}/",
        )
    scope = scope_of(model, repository, version)
    files, bytecode = list_files(scope, repository, max_bytes)
    placements = {name: Placement(model.spec.variants[name], version) for name in bringing}
    release = Release(
        version=version,
        model=model,
        placements=placements,
        missing={
            name: f"version {version} has no folder at {triton_model}"
            for name, triton_model in model.spec.variants.items()
            if name not in placements
        },
        configs=_configs(repository, [each.triton_model for each in placements.values()], files),
        file_bytes=sum(stamp[3] for path, stamp in files.items() if scope.in_version_folder(path)),
    )
    return Drop(model.spec.name, version, model, repository, release, files, bytecode)


def _configs(repository: Path, triton_models: list[str], files: Mapping[str, FileStamp]) -> dict[str, str]:
    """The text of each config.pbtxt there is."""
    paths = {name: f"{name}/{CONFIG_FILE}" for name in triton_models}
    return {name: _text(repository / path) for name, path in paths.items() if path in files}


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError("the file is larger than 1 MiB", where=str(path), fix="A configuration is a few lines")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"is not UTF-8 in line {line}", where=str(path), fix="Save the file as UTF-8") from error


def digests_of(
    drop: Drop, known: Mapping[str, tuple[FileStamp, str]] | None = None, advance: Callable[[int], None] | None = None
) -> dict[str, str]:
    """SHA-256 of each file, in hex, by path; takes about a second for each GB, so not on the event loop.

    A file that `known` has under the same stamp is not read again. `advance` is told of the bytes as they are read.
    Raises ConfigError for a file that is no longer the one that `drop` was taken from, or changes while it is read.
    """
    known = known or {}
    digests = {}
    for path, stamp in drop.files.items():
        before = known.get(path)
        is_known = before is not None and tuple(before[0]) == stamp
        digests[path] = (
            before[1] if before is not None and is_known else _digest(drop.repository / path, stamp, advance)
        )
    return digests


def _digest(path: Path, stamp: FileStamp, advance: Callable[[int], None] | None) -> str:
    digest, left, chunk = hashlib.sha256(), stamp[3], memoryview(bytearray(min(CHUNK_BYTES, stamp[3] + 1)))
    try:
        with open_regular(path) as file:
            same = stamp_of(os.fstat(file.fileno())) == stamp
            while same and left >= 0 and (count := file.readinto(chunk)):
                digest.update(chunk[:count])
                left -= count
                if advance is not None:
                    advance(count)
            same = same and left == 0 and stamp_of(os.fstat(file.fileno())) == stamp
    except OSError as error:
        raise unreadable(path, error) from error
    if not same:
        raise ConfigError(
            "has changed while it was read, so the drop is not complete",
            where=str(path),
            fix="Let nothing write into a version that is there; put other weights into the next version",
        )
    return digest.hexdigest()


def digest_of_all(digests: Mapping[str, str]) -> str:
    """One SHA-256 in hex over the paths and digests of all files, whatever their order."""
    digest = hashlib.sha256()
    for path in sorted(digests):
        digest.update(f"{path}\0{digests[path]}\n".encode())  # no path has a NUL in it
    return digest.hexdigest()
