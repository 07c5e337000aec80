"""Back to a version that served before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.rollout.refusals import note_refusal, now, refusal_of_serving
from gateway.rollout.state import ReleaseRecord
from gateway.rollout.steps import Ending, StepFailed

if TYPE_CHECKING:
    from gateway.rollout.caretaker import Caretaker

log = structlog.get_logger(__name__)


async def return_to(caretaker: Caretaker, record: ReleaseRecord, by: str) -> None:
    """Serve a release that served before: at once when it is still loaded. Raises GatewayError."""
    caretaker.returning = True
    try:
        await _return_to(caretaker, record, by)
    finally:
        caretaker.returning = False
        caretaker.nudge()


async def _return_to(caretaker: Caretaker, record: ReleaseRecord, by: str) -> None:
    tools, name = caretaker.tools, caretaker.name
    release = await asyncio.to_thread(caretaker.kept_release, record)
    known = tools.fleet.served(name, record.version)
    if known is None or not known.ready:
        tools.fleet.also(release)
        known = await tools.fleet.settled(name, record.version)
    if not known.ready:
        tools.fleet.drop(name, record.version)
        raise StepFailed(f"version {record.version} cannot be loaded: {known.why_not_ready()}")
    caretaker.end(StepFailed("rolled back"))  # a drain that would let it go
    state, old = tools.ledger.get(name), caretaker.stable  # only now: a promotion may just have ended
    rollout = state.rollout
    if rollout is not None:
        rollout = msgspec.structs.replace(
            rollout, ending=Ending.ROLLED_BACK, reason=f"rolled back by {by}", ended_at=now(), progress=""
        )
    floor = max(state.floor, old.version if old else 0)
    await tools.ledger.note(name, stable=record, previous=None, rollout=rollout, floor=floor)
    tools.fleet.serve(release, old)
    caretaker.stable, caretaker.kept = release, old if old and old.version != release.version else None
    log.warning("Rolled back", model=name, version=record.version, by=by)
    tools.metrics.rollouts.labels(name, Ending.ROLLED_BACK).inc()
    if state.stable is not None:
        await note_refusal(tools.ledger, name, refusal_of_serving(name, state.stable, by))
