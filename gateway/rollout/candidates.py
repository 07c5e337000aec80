"""Which version of a model on disk is to be tried next."""

from __future__ import annotations

from pathlib import Path

from gateway.models.drop import versions_on_disk
from gateway.models.release import Release
from gateway.models.repository import LogicalModel
from gateway.rollout.refusals import REFUSALS_KEPT, is_another
from gateway.rollout.transaction import Tools


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
