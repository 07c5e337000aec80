"""Which version of a model on disk is to be tried next."""

from __future__ import annotations

import time
from pathlib import Path

from gateway.errors import ConfigError
from gateway.models.drop import take_drop, versions_on_disk
from gateway.models.release import Release
from gateway.models.repository import LogicalModel
from gateway.rollout.refusals import REFUSALS_KEPT, is_another
from gateway.rollout.transaction import Tools


def rest_in_s(tools: Tools, model: LogicalModel, version: int) -> float:
    """Seconds until the files of a version have been left alone for DROP_QUIET_S; 0 when they have. Blocking.

    The watcher tells of changes a moment later only, and somebody may look sooner. A volume whose clock is another one
    is left to the watcher.
    """
    settings = tools.live.current
    try:
        drop = take_drop(model, settings.model_repository, version, settings.max_model_bytes)
    except ConfigError:
        return 0.0  # who tries it says what is wrong
    age_s = time.time() - max((stamp[1] for stamp in drop.files.values()), default=0) / 1e9
    return settings.drop_quiet_s - age_s if 0 <= age_s < settings.drop_quiet_s else 0.0


def newest(tools: Tools, path: Path, model: LogicalModel, stable: Release | None) -> int:
    """The highest version beyond the one that serves that has not been refused as it is, or 0. Blocking."""
    state = tools.ledger.get(model.spec.name)
    floor = max(stable.version, state.floor) if stable else 0
    refused = {each.version: each for each in state.refused}
    forgotten = min(refused) if len(refused) >= REFUSALS_KEPT else 0
    on_disk = sorted(versions_on_disk(model, tools.live.current.model_repository), reverse=True)
    for place, version in enumerate(on_disk):
        if version <= floor or version < forgotten:
            return 0
        refusal = refused.get(version)
        # What lies below a refused one and was refused itself is old: what has changed beside it is not for it.
        due = place == 0 or stable is None
        if refusal is None or (due and is_another(tools, path, refusal)):
            return version
    return 0
