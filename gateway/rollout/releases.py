"""Releases that may serve again: their small files are kept on the volume, whatever becomes of the drop."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import replace
from pathlib import Path

from gateway.errors import ConfigError
from gateway.models.drop import CONFIG_FILE, Drop
from gateway.models.drop_files import SIGNATURE_FILE, stamp_of
from gateway.models.release import Placement, Release
from gateway.models.repository import read_model
from gateway.regular_file import open_regular
from gateway.rollout.state import ModelState, ReleaseRecord
from gateway.rollout.store import StateStore
from gateway.rollout.verify import Checks, weights_of

MAX_KEPT_BYTES = 4 << 20
"""Of one kept file; model.yaml, labels and config.pbtxt have limits of their own below it."""


def keep(store: StateStore, drop: Drop) -> None:
    """Keep what else a later drop would replace: model.yaml, labels, config.pbtxt, the signature. Blocking.

    Raises StateNotKept when the volume does not take it.
    """
    logical, labels = drop.model.path.parent, drop.model.spec.labels
    names = ["model.yaml", SIGNATURE_FILE, *([labels] if isinstance(labels, str) else [])]
    paths = [logical / name for name in names]
    paths += [drop.repository / name / CONFIG_FILE for name in drop.release.configs]
    files = {}
    for path in paths:
        if path.exists():
            with open_regular(path) as file:
                files[path.relative_to(drop.repository).as_posix()] = file.read(MAX_KEPT_BYTES)
    store.keep_release(drop.name, drop.version, files)


def kept_release(
    store: StateStore, name: str, record: ReleaseRecord, path: Path, repository: Path, checks: Checks
) -> Release:
    """A release as it served, for the model.yaml that lies at `path`. Blocking.

    Raises ConfigError when it cannot serve again as it did: its files are gone, or others, or no longer signed by a key
    that is trusted.
    """
    folder = store.kept(name, record.version)
    if folder is None:
        raise ConfigError(
            f"what was kept of version {record.version} is gone",
            where=f"model '{name}'",
            fix="Drop it again under the next number",
        )
    logical = folder / path.parent.name
    model = replace(read_model(logical / "model.yaml", repository, record.version), path=path)
    placements = {variant: Placement(*place) for variant, place in record.placements.items()}
    refuse_other_weights(name, record, repository, trust_stamps=checks.verify_signature is None)
    if checks.verify_signature is not None:
        checks.verify_signature(logical / SIGNATURE_FILE, record.digests, (), record.promoted_at or None)
    configs = {place.triton_model: folder / place.triton_model / CONFIG_FILE for place in placements.values()}
    return Release(
        version=record.version,
        model=model,
        placements=placements,
        missing={
            variant: f"version {record.version} does not bring it"
            for variant in model.spec.variants
            if variant not in placements
        },
        configs={triton: _text(config) for triton, config in configs.items() if config.exists()},
        file_bytes=sum(record.stamps[weights][3] for weights in weights_of(record)),
    )


def forget_old(store: StateStore, state: ModelState) -> None:
    """Remove what is kept of versions that will not serve again. Blocking."""
    wanted = {record.version for record in (state.stable, state.previous) if record is not None}
    with contextlib.suppress(ConfigError):  # it costs a few bytes only
        store.drop_releases(state.model, wanted)


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read(MAX_KEPT_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"what was kept cannot be read: {error}", where=str(path), fix="Drop it again under the next number"
        ) from error


def refuse_other_weights(name: str, record: ReleaseRecord, repository: Path, *, trust_stamps: bool = True) -> None:
    """Raise ConfigError when Triton would load other files than those that were verified. Blocking."""
    for path in weights_of(record):
        try:
            with open_regular(repository / path) as file:
                stamp = stamp_of(os.fstat(file.fileno()))
                if trust_stamps and stamp == tuple(record.stamps[path]):
                    continue
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(
                f"version {record.version} cannot be loaded again: {error.strerror}",
                where=str(repository / path),
                fix="Put the file back",
            ) from error
        if digest != record.digests[path]:
            raise ConfigError(
                f"version {record.version} has other weights than those that were verified",
                where=str(repository / path),
                fix=f"Put them into a version of their own: {record.version + 1}/; and the ones before back here",
            )
