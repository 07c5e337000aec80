"""Which version of which model a command is about, and writing the small files that lie beside model.yaml."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.models.reading import load_layouts, read_models
from gateway.config import Settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.models.drop import Drop
    from gateway.models.repository import LogicalModel

MODEL = click.argument("model", metavar="NAME_OR_DIR")
VERSION = click.argument("version", required=False, type=click.IntRange(min=1))


@dataclass(frozen=True, slots=True)
class Target:
    """One version of a model, and where it lies."""

    model: LogicalModel
    repository: Path
    version: int
    max_bytes: int

    def take(self) -> Drop:
        """Its files; raises ConfigError."""
        from gateway.models.drop import take_drop

        return take_drop(self.model, self.repository, self.version, self.max_bytes)


def find_target(named: str, version: int | None, settings: Settings) -> Target:
    """The version, without one the highest, of a model of MODEL_REPOSITORY or in the folder of a model.yaml.

    Raises ConfigError for a model that is not there, or has no version.
    """
    from gateway.models.drop import versions_on_disk
    from gateway.models.repository import read_model

    model, repository = _find_model(named, settings)
    versions = versions_on_disk(model, repository)
    if not versions:
        folders = ", ".join(dict.fromkeys(model.spec.variants.values()))
        fix = f"Put the model into a version folder of {folders}"
        raise ConfigError(f"'{model.spec.name}' has no version there", where=str(repository), fix=fix)
    version = version or max(versions)
    return Target(read_model(model.path, repository, version), repository, version, settings.max_model_bytes)


def _find_model(named: str, settings: Settings) -> tuple[LogicalModel, Path]:
    from gateway.models.repository import read_model

    folder = Path(os.path.abspath(named))  # noqa: PTH100 - without following links; `.` has no parent
    if (folder / "model.yaml").is_file():
        load_layouts(settings)
        return read_model(folder / "model.yaml"), folder.parent
    models, errors = read_models(settings)
    for model in models:
        if model.spec.name == named:
            return model, settings.model_repository
    for error in errors:
        if Path(error.where).parent.name == named:
            raise error
    nearest = difflib.get_close_matches(named, [model.spec.name for model in models], n=1)
    meant = f"Did you mean '{nearest[0]}'? " if nearest else ""
    fix = f"{meant}Name a model of MODEL_REPOSITORY, or the folder of a model.yaml"
    raise ConfigError(f"there is no model '{named[:80]}'", where=str(settings.model_repository), fix=fix)


def files_in_words(drop: Drop) -> str:
    """Such as `helmets version 2: 7 files, 12.1 MB`."""
    megabytes = sum(size for *_, size in drop.files.values()) / 1e6
    return f"{drop.name} version {drop.version}: {len(drop.files)} files, {megabytes:.1f} MB"


def written_json(drop: Drop, **paths: Path) -> str:
    """What a command has written about a version, and over which files, as one JSON object."""
    places = {name: str(path) for name, path in paths.items()}
    body = {"ok": True, "model": drop.name, "version": drop.version, **places, "files": list(drop.files)}
    return json.dumps(body, indent=2, ensure_ascii=False)


def read_digests(drop: Drop, *, quiet: bool) -> dict[str, str]:
    """The digest of each file, as `digests_of` has them, with a bar where somebody waits for it."""
    from gateway.models.drop import digests_of
    from gateway.terminal.progress import progress

    total = sum(size for *_, size in drop.files.values())
    with progress(f"Reading {drop.name} {drop.version}", total, "bytes", quiet=quiet) as bar:
        return digests_of(drop, advance=bar.advance)


def require_replaceable(path: Path, fix: str) -> None:
    """Raise ConfigError where no file can be written; what is none (a device, a folder) is not replaced by one."""
    try:
        replaceable = not os.path.lexists(path) or stat.S_ISREG(path.lstat().st_mode)
        parent = path.absolute().parent.is_dir()
    except (OSError, ValueError) as error:
        raise _unwritable(path, error, fix) from error
    if not parent or not replaceable:
        what = "is no regular file" if parent else "there is no such folder"
        raise ConfigError(f"cannot be written: {what}", where=str(path), fix=fix)


def replace_file(path: Path, content: bytes, fix: str) -> None:
    """A gateway that watches the folder sees the file before or this one, and no half of it; raises ConfigError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise _unwritable(path, error, fix) from error


def _unwritable(path: Path, error: OSError | ValueError, fix: str) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot be written: {reason}", where=str(path), fix=fix)
