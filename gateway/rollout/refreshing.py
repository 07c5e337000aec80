"""Files of the version that serves that change on disk: a model.yaml is taken over, weights are not."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from gateway.errors import ConfigError
from gateway.models.drop import versions_on_disk
from gateway.models.repository import LogicalModel
from gateway.rollout.refusals import note_refusal, now, said
from gateway.rollout.releases import keep, refuse_other_weights
from gateway.rollout.state import RefusalRecord
from gateway.rollout.steps import Step
from gateway.rollout.verify import verify

if TYPE_CHECKING:
    from gateway.rollout.caretaker import Caretaker

log = structlog.get_logger(__name__)


async def refresh(caretaker: Caretaker, model: LogicalModel) -> None:
    """Take over a model.yaml that has changed, unless it belongs to a version that is not to serve."""
    stable, state = caretaker.stable, caretaker.tools.ledger.get(caretaker.name)
    if stable is None or state.stable is None:
        return
    settings = caretaker.tools.live.current
    try:
        await asyncio.to_thread(refuse_other_weights, caretaker.name, state.stable, settings.model_repository)
    except ConfigError as error:
        await _complain(caretaker, error, state.stable.version)
        return

    def newer_lies_there() -> bool:
        return max(versions_on_disk(model, settings.model_repository), default=0) > stable.version

    if newer_lies_there():
        return
    try:
        drop, digests = await asyncio.to_thread(caretaker.tools.read_drop, caretaker.path, stable.version, state.stable)
        if digests == state.stable.digests and drop.model == stable.model:
            caretaker.problem = ""
            return
        verified = await asyncio.to_thread(verify, drop, digests, caretaker.tools.checks, tolerant=True)
        if newer_lies_there():  # it has come while this was read: the model.yaml may be its own
            return
        changed = replace(drop.release, configs=stable.configs)  # those take effect with the next version
        caretaker.tools.fleet.serve(changed, caretaker.kept)
    except ConfigError as error:
        await _complain(caretaker, error, None)
        return
    caretaker.stable, caretaker.problem = changed, ""
    record = verified.record(state.stable.promoted_at)
    with contextlib.suppress(ConfigError):
        await asyncio.to_thread(keep, caretaker.tools.ledger.store, drop)
    await caretaker.tools.ledger.note(caretaker.name, stable=record)
    log.info("A changed model.yaml holds", model=caretaker.name, version=stable.version)


async def _complain(caretaker: Caretaker, error: ConfigError, version: int | None) -> None:
    """The files of what serves are no good any more; it goes on serving from Triton's memory."""
    if caretaker.problem != error.message:
        log.error("What lies on disk is not taken over", model=caretaker.name, reason=str(error))
    caretaker.problem = error.message
    if version is not None:
        at = RefusalRecord(version, Step.VERIFIED, said(error), error.fix, now())
        known = {(each.version, each.reason) for each in caretaker.tools.ledger.get(caretaker.name).refused}
        if (version, at.reason) not in known:
            await note_refusal(caretaker.tools.ledger, caretaker.name, at)
