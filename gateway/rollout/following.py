"""What a gateway does that does not run the rollouts: it serves what the one that does has published."""

from __future__ import annotations

import asyncio

import structlog

from gateway.errors import ConfigError
from gateway.models.catalog import State
from gateway.models.loader import AWAY
from gateway.models.trial import Observation
from gateway.rollout.caretaker import Caretaker
from gateway.rollout.state import ReleaseRecord, RolloutRecord
from gateway.rollout.steps import Ending, Step
from gateway.rollout.transaction import unload

log = structlog.get_logger(__name__)

TRIED = (Step.LOADED, Step.SIGNATURE, Step.WARMED, Step.GOLDEN, Step.SHADOW, Step.CANARY)


class Bystander:
    """The jury of a gateway that does not judge."""

    wants_pairs = False

    def saw(self, observation: Observation) -> None:
        """Nothing: who runs the rollout judges by what he sees himself."""


async def follow(caretaker: Caretaker, roller: str) -> bool:
    """Let this gateway serve a model as its state says now; False when that has to be tried again.

    `roller` is the gateway that runs the rollouts; "" where that is not known.
    """
    tools, name = caretaker.tools, caretaker.name
    state = tools.ledger.get(name)
    if state.stable is None:
        _say_why_not(caretaker, state.rollout, roller)
        return True
    try:
        await _serve(caretaker, state.stable, state.rollout)
        await _try_out(caretaker, state.rollout)
    except ConfigError as error:
        if caretaker.problem != error.message:
            log.error("What another gateway rolls out cannot be followed", model=name, reason=str(error))
        caretaker.problem = error.message
        return False
    caretaker.problem = ""
    if state.unloaded:
        tools.fleet.take_out(name, State.UNLOADED)
    else:
        tools.fleet.bring_back(name)
    return True


def begin_anew(caretaker: Caretaker) -> None:
    """Who runs the rollouts has changed: what a model of which nothing serves was said to wait for holds no more."""
    caretaker.said = ""
    if caretaker.stable is None and caretaker.on_disk is not None and not _is_refused(_rollout_of(caretaker)):
        caretaker.tools.fleet.announce(caretaker.on_disk, "being checked")


def _rollout_of(caretaker: Caretaker) -> RolloutRecord | None:
    return caretaker.tools.ledger.get(caretaker.name).rollout


def _is_refused(rollout: RolloutRecord | None) -> bool:
    return rollout is not None and rollout.ending is Ending.REFUSED


def _say_why_not(caretaker: Caretaker, rollout: RolloutRecord | None, roller: str) -> None:
    """Of a model of which nothing serves yet: it has been refused, or the roller is still to check it."""
    model = caretaker.on_disk
    if model is None or caretaker.stable is not None:
        return
    refused = _is_refused(rollout)
    if rollout is not None and refused:
        why = rollout.reason
    elif not caretaker.tools.loader.triton_ready:
        why = AWAY
    else:
        who = f"gateway '{roller}', which runs the rollouts," if roller else "the gateway that runs the rollouts"
        why = f"waits for {who} to check it"
    if why == caretaker.said:
        return
    caretaker.said = why
    caretaker.tools.fleet.announce(model, why, refused=refused)
    if roller and not refused and why != AWAY:
        log.info("A model waits for the gateway that runs the rollouts", model=caretaker.name, gateway=roller)


async def _serve(caretaker: Caretaker, record: ReleaseRecord, rollout: RolloutRecord | None) -> None:
    """Let the stable release answer; the one before stays loaded until the rollout has ended."""
    stable = await asyncio.to_thread(caretaker.kept_release, record)
    before = caretaker.stable
    if before is None or (before.version, before.model) != (stable.version, stable.model):
        kept = before if before and before.version not in (0, stable.version) else None
        caretaker.tools.fleet.serve(stable, kept)
        caretaker.stable, caretaker.kept = stable, kept
        log.info("Another gateway has rolled a version out", model=caretaker.name, version=stable.version)
    if caretaker.kept is not None and (rollout is None or rollout.ended_at is not None):
        kept, caretaker.kept = caretaker.kept, None
        await unload(caretaker.tools, caretaker.name, kept)


async def _try_out(caretaker: Caretaker, rollout: RolloutRecord | None) -> None:
    """Load what is tried, and let it answer its share of the cameras; unload what is tried no more."""
    tools, name = caretaker.tools, caretaker.name
    if name not in tools.fleet.shelves:
        return  # removed meanwhile
    tried = rollout if rollout and rollout.ending is Ending.UNDER_WAY and rollout.step in TRIED else None
    shelf = tools.fleet.shelves[name]
    staying = {each.version for each in (caretaker.stable, caretaker.kept) if each is not None}
    for version in set(shelf.releases) - staying - ({tried.version} if tried else set()):
        tools.fleet.drop(name, version)
    if tried is None:
        return
    if tried.version not in shelf.releases:
        drop, _ = await asyncio.to_thread(tools.read_drop, caretaker.path, tried.version)
        tools.fleet.also(drop.release)
    if tried.step is Step.CANARY and tried.share:
        tools.fleet.try_out(name, tried.version, Bystander(), tried.share, tried.percent)
    else:
        tools.fleet.end_trial(name)
