"""What is remembered of models, on the volume: one JSON file a model, and the small files of releases that may return.

Files are replaced as a whole and reach the disk before they count, so a gateway that is killed, or a volume that is
full, leaves what was there. Only the gateway that holds the lease writes; all others read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import threading
from collections.abc import Container, Iterator, Mapping
from io import BufferedReader
from pathlib import Path, PurePosixPath

import msgspec
import structlog

from gateway.errors import ConfigError
from gateway.regular_file import open_regular
from gateway.rollout.state import ModelState

log = structlog.get_logger(__name__)

MAX_STATE_BYTES = 8 * 2**20
MAX_RELEASE_BYTES = 32 * 2**20
SUFFIX = ".json"
DAMAGED = ".damaged"
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
SET_ASIDE = re.compile(r"\.([0-9]+)\.old")
"""A release's copy that is being replaced; it counts until the new one is in its place."""
RELEASES = "releases"
FILE_MODE, FOLDER_MODE = 0o644, 0o755
FIXES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Make room on the volume")
FIXES |= dict.fromkeys(
    (errno.EROFS, errno.EACCES, errno.EPERM), "Set MODEL_STATE_DIR to a folder that the gateway may write"
)
FIXES |= dict.fromkeys((errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS), "Set MODEL_STATE_DIR to a volume with file locks")
FIXES[errno.ENOENT] = "Mount the volume, or set MODEL_STATE_DIR to a folder that exists"
NO_SYNC_OF_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}

Stamp = tuple[int, int, int]
"""mtime_ns, inode and size."""
Fingerprint = tuple[tuple[str, Stamp], ...]


class StateNotKept(ConfigError):
    """The volume did not take what should be remembered; what it held before is still there."""


class StateStore:
    """The folder MODEL_STATE_DIR; it is made when something is first written. May be used by several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = threading.Lock()
        self._sound: dict[str, Stamp] = {}
        self._reported: dict[str, Stamp | None] = {}

    def read_all(self) -> dict[str, ModelState]:
        """By model; a file that cannot be used is logged once and left out."""
        found = {name: self.read(name) for name, _ in self.fingerprint()}
        return {name: state for name, state in found.items() if state is not None}

    def read(self, model: str) -> ModelState | None:
        """What is remembered; None where nothing is, or nothing that can be used, which is logged once."""
        path = self._path(model)
        stamp = _stamp(path)
        try:
            state = _decode(path, model)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:  # those of msgspec are ValueErrors
            if self._reported.get(model, ()) != stamp:
                self._reported[model] = stamp
                log.error(
                    "What was remembered of a model cannot be used",
                    model=model,
                    file=str(path),
                    reason=reason_and_fix(error)[0],
                    fix=f"Repair it or delete it; before it is written anew it is renamed to {path.name}{DAMAGED}",
                )
            return None
        if stamp is not None:
            self._sound[model] = stamp
        return state

    def fingerprint(self) -> Fingerprint:
        """Changes when any state changes; looks at the folder only, so it may be asked every second."""
        try:
            with os.scandir(self._folder) as entries:
                names = sorted(entry.name.removesuffix(SUFFIX) for entry in entries if entry.name.endswith(SUFFIX))
        except FileNotFoundError:
            names = []
        except OSError as error:
            self._complain_of_folder(error)
            return ()
        self._reported.pop("", None)
        stamps = [(name, _stamp(self._path(name))) for name in names if _is_name(name)]
        return tuple((name, stamp) for name, stamp in stamps if stamp is not None)

    def write(self, state: ModelState) -> None:
        """Replace what is remembered of a model; raises StateNotKept, and then the state before holds."""
        data = msgspec.json.encode(state)
        path = self._path(state.model)
        if len(data) > MAX_STATE_BYTES:
            raise StateNotKept(
                f"the state of '{state.model}' takes {len(data)} bytes, more than {MAX_STATE_BYTES}",
                where=str(path),
                fix="Serve the model from fewer files",
            )
        with self._changing(f"the state of '{state.model}' cannot be kept"):
            self._make_folder()
            _discard_unfinished(self._folder)
            self._move_damaged_aside(state.model, path)
            _replace(path, data)
            if stamp := _stamp(path):
                self._sound[state.model] = stamp

    def keep_release(self, model: str, version: int, files: Mapping[str, bytes]) -> None:
        """Keep copies of a release's small files, by their path in the repository; replaces an older copy.

        All or nothing. Raises StateNotKept, also for paths that lead out of the folder and beyond 32 MiB.
        """
        where = f"version {version} of '{model}'"
        if (size := sum(map(len, files.values()))) > MAX_RELEASE_BYTES:
            raise StateNotKept(
                f"the small files of {where} take {size} bytes, more than {MAX_RELEASE_BYTES}",
                where=str(self._folder),
                fix="Take fewer or smaller golden examples",
            )
        for name in files:
            _require_inside(name)
        target = self._release(model, version)
        with self._changing(f"the files of {where} cannot be kept"):
            self._make_folder()
            for folder in (target.parent.parent, target.parent):
                folder.mkdir(FOLDER_MODE, exist_ok=True)
            _finish_swap(target.parent)
            _discard_unfinished(target.parent)
            fresh = _unfinished(target)
            try:
                _write_tree(fresh, files)
                _swap(fresh, target)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise

    def kept(self, model: str, version: int) -> Path | None:
        """The folder with the kept files of a release, laid out as a small repository; None when there is none."""
        target = self._release(model, version)
        places = (target, _aside(target))
        return next((place for place in places if place.is_dir()), None)

    def drop_releases(self, model: str, keep: Container[int]) -> None:
        """Remove the kept files of all other versions; raises StateNotKept."""
        folder = self._release(model, 0).parent
        with self._changing(f"old files of '{model}' cannot be removed"):
            if not folder.is_dir():
                return
            _finish_swap(folder)
            _discard_unfinished(folder)
            for path in folder.iterdir():
                if path.name.isascii() and path.name.isdecimal() and int(path.name) not in keep:
                    _remove_tree(path)

    def forget(self, model: str) -> None:
        """Remove all that is kept of a model; raises StateNotKept."""
        path = self._path(model)
        with self._changing(f"what is remembered of '{model}' cannot be removed"):
            for each in (path, path.with_name(path.name + DAMAGED)):
                each.unlink(missing_ok=True)
            if (folder := self._release(model, 0).parent).is_dir():
                _discard_unfinished(folder.parent)
                _remove_tree(folder)
            self._sound.pop(model, None)
            self._reported.pop(model, None)

    def _path(self, model: str) -> Path:
        if not _is_name(model):
            raise StateNotKept(f"'{model[:80]}' is no name of a model", where=str(self._folder), fix="Correct the name")
        return self._folder / f"{model}{SUFFIX}"

    def _release(self, model: str, version: int) -> Path:
        return self._path(model).parent / RELEASES / model / str(version)

    def _make_folder(self) -> None:
        """Not those above it: when the volume is not mounted, nothing may be written in its place."""
        self._folder.mkdir(FOLDER_MODE, exist_ok=True)

    def _move_damaged_aside(self, model: str, path: Path) -> None:
        """A person may still read in it which version served; only the one writer does this, so nothing is lost."""
        stamp = _stamp(path)
        if stamp is None or self._sound.get(model) == stamp or self.read(model) is not None:
            return
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_name(path.name + DAMAGED))

    def _complain_of_folder(self, error: OSError) -> None:
        if "" not in self._reported:
            self._reported[""] = None
            log.error(
                "What is remembered of models cannot be read",
                folder=str(self._folder),
                reason=reason_and_fix(error)[0],
                fix="Let the gateway read the folder, or set MODEL_STATE_DIR",
            )

    @contextlib.contextmanager
    def _changing(self, failure: str) -> Iterator[None]:
        """One change at a time, and the reason of the system in our words when it fails."""
        try:
            with self._writing:
                yield
        except (OSError, ValueError) as error:
            reason, fix = reason_and_fix(error)
            raise StateNotKept(f"{failure}: {reason}", where=str(self._folder), fix=fix) from error


def _is_name(model: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", model) is not None


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _decode(path: Path, model: str) -> ModelState:
    """Keys of a newer gateway are passed over; raises OSError and ValueError."""
    with BufferedReader(open_regular(path)) as file:
        if os.fstat(file.fileno()).st_size > MAX_STATE_BYTES:
            raise ValueError(f"it is larger than {MAX_STATE_BYTES} bytes")
        data = file.read(MAX_STATE_BYTES + 1)
    state = msgspec.json.decode(data, type=ModelState)
    if state.model != model:
        raise ValueError("it is the state of another model")
    return state


def _require_inside(name: str) -> None:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise StateNotKept(f"'{name[:80]}' is no path in the repository", where=name[:80], fix="Rename the file")


def _unfinished(path: Path) -> Path:
    """A new name each time: a writer that has lost the lease must not rename the file of the one after it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _discard_unfinished(folder: Path) -> None:
    """Remove what a writer that was killed, or has lost the lease, left half done; there is no other writer."""
    for path in folder.iterdir():
        if UNFINISHED.fullmatch(path.name):
            _discard(path)


def _finish_swap(folder: Path) -> None:
    """After a writer was killed between the two renames of `_swap`, or before it had tidied up."""
    for path in folder.iterdir():
        if found := SET_ASIDE.fullmatch(path.name):
            final = path.with_name(found[1])
            if final.exists():
                _discard(path)
            else:
                path.rename(final)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    fresh = _unfinished(path)
    try:
        _write_new(fresh, data)
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    _sync_folder(path.parent)


def _write_new(path: Path, data: bytes) -> None:
    """On the disk when it returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(FOLDER_MODE)
    folders = {folder}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(path, data)
        folders.update(parent for parent in path.parents if parent.is_relative_to(folder))
    for each in folders:
        _sync_folder(each)


def _swap(fresh: Path, target: Path) -> None:
    """Put a folder in its place; at each moment either the copy before or the new one is there."""
    aside = _aside(target)
    with contextlib.suppress(FileNotFoundError):
        target.rename(aside)
    fresh.rename(target)
    _sync_folder(target.parent)
    _discard(aside)


def _remove_tree(path: Path) -> None:
    """Renamed first, so that what is half removed never looks whole."""
    going = _unfinished(path)
    path.rename(going)
    shutil.rmtree(going)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC_OF_FOLDERS:  # network file systems that know no such thing
            raise
    finally:
        os.close(descriptor)


def reason_and_fix(error: OSError | ValueError | RecursionError) -> tuple[str, str]:
    """Why the volume, or what lies on it, cannot be used, and what a person can do about it."""
    reason = getattr(error, "strerror", None) or str(error)
    return reason, FIXES.get(getattr(error, "errno", None) or 0, "Check the volume, or set MODEL_STATE_DIR to another")
