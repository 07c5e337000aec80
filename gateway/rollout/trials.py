"""Shadow and canary: a candidate is asked beside the stable version until there is a verdict."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.metrics import Metrics
from gateway.models.catalog import bucket
from gateway.models.trial import Observation
from gateway.rollout.evidence import Evidence
from gateway.rollout.steps import Step, StepFailed

if TYPE_CHECKING:
    from gateway.rollout.transaction import Transaction

LOOK_S = 0.1
LOSSES = 2
"""How often Triton may lose a candidate while it is tried; a Triton that is away loses nothing."""
OUTAGES = 3
"""How often Triton may go away meanwhile: the candidate may be what ends it."""
JUST_ABOVE = 2.0**-31
"""Added to the place of a camera, so that it lies below the share."""


@dataclass(slots=True, eq=False)
class Lookout:
    """The jury of one trial: collects evidence, counts it, and knows which cameras there are."""

    model: str
    evidence: Evidence
    metrics: Metrics
    nearest: float = field(default=1.0)
    """The lowest place of a camera that was seen; some camera answers when the share lies above it."""

    @property
    def wants_pairs(self) -> bool:
        """As the evidence does."""
        return self.evidence.wants_pairs

    def saw(self, observation: Observation) -> None:
        """Take one observation in."""
        self.nearest = min(self.nearest, bucket(self.model, observation.device_id))
        self.evidence.saw(observation)
        for result in observation.candidate.values():
            self.metrics.trial_answers.labels(self.model).inc()
            if result.error is not None:
                self.metrics.trial_errors.labels(self.model, result.error.code).inc()


async def run_trial(transaction: Transaction, step: Step, percent: int, hold_s: float) -> str:
    """Try a candidate until it passes, for at least `hold_s`; returns the figures, raises StepFailed.

    The share of a canary is at least so large that one of the cameras that are there falls into it.
    """
    tools, name, version = transaction.tools, transaction.name, transaction.version
    evidence = Evidence(transaction.release.model.spec, step)
    lookout = Lookout(name, evidence, tools.metrics)
    share, started = transaction.record.share if percent else 0.0, time.monotonic()
    outages = tools.loader.outages
    tools.fleet.try_out(name, version, lookout, share, percent)
    while True:
        if transaction.skip_trials.is_set():
            return f"ended by command after {evidence.progress}"
        verdict, passed_s = evidence.verdict, time.monotonic() - started
        if verdict.passed is False:
            raise StepFailed(verdict.reason, fix=verdict.fix)
        if verdict.passed and passed_s >= hold_s:
            return evidence.progress
        _refuse_lost(transaction, tools.loader.outages - outages)
        _refuse_endless(transaction, evidence)
        if percent and share <= lookout.nearest < 1.0 and passed_s >= LOOK_S:
            share = lookout.nearest + JUST_ABOVE
            await transaction.save(share=share)
            tools.fleet.try_out(name, version, lookout, share, percent)
        tools.ledger.progress(name, evidence.progress)
        await asyncio.sleep(LOOK_S)


def _refuse_lost(transaction: Transaction, outages: int) -> None:
    if outages >= OUTAGES:
        raise StepFailed(f"Triton has gone away {outages} times since", fix="See Triton's log for what ended it")
    losses = transaction.tools.fleet.losses(transaction.name, transaction.version)
    if losses >= LOSSES:
        raise StepFailed(f"Triton lost it {losses} times", fix="See Triton's log for why it does not stay loaded")


def _refuse_endless(transaction: Transaction, evidence: Evidence) -> None:
    limit_s = transaction.release.model.spec.rollout.give_up
    if time.time() - transaction.record.started_at > limit_s:
        raise StepFailed(
            f"no verdict within {limit_s:.0f} s: {evidence.progress}",
            fix="Send it more snapshots, ask for fewer (rollout.shadow, rollout.min_samples), or promote it by command",
        )
