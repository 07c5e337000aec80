"""5: which version answers. While one is tried, the stable version stands in where it fails."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog

from gateway.errors import (
    BackendUnavailable,
    ImageTooLarge,
    ImageUndecodable,
    InternalError,
    ModelUnavailable,
    PayloadInvalid,
    SnapshotError,
)
from gateway.flow.answering import Answering, asked_names, fits, refuse_if_changed
from gateway.flow.turns import Turn
from gateway.flow.variants import choose
from gateway.live import Live
from gateway.messages import Job, Predicted, Selection, VariantResult
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel, State, Trial
from gateway.models.trial import Observation

log = structlog.get_logger(__name__)

NOBODYS_FAULT = (BackendUnavailable, PayloadInvalid, ImageUndecodable, ImageTooLarge)
"""The picture's fault, or that of a Triton which is away; never that of the version that was asked."""
Results = Mapping[str, VariantResult]
PART = 0.5
"""Of the time that a snapshot has left: what a candidate may take, so that the stable version can still answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """An answer, and what each version showed on the way to it."""

    predicted: Predicted
    model: ServedModel
    """The stable version, with the trial under which this was answered, if there was one."""
    candidate: Results = field(default_factory=dict)
    stable: Results = field(default_factory=dict)

    @property
    def by_candidate(self) -> bool:
        """Whether the candidate's answer is the one that is published."""
        return self.predicted.job.model is not self.model

    def observation(self, other: Results) -> Observation:
        """What the jury is told; `other` is what the version showed that had not been asked before."""
        return Observation(
            device_id=self.predicted.job.snapshot.origin.device_id,
            candidate=self.candidate or other,
            stable=self.stable or other,
            published_by_candidate=self.by_candidate,
        )


def release_for(job: Job, model: ServedModel) -> ServedModel:
    """The version that answers: the candidate of the model's trial for the cameras of its share, if it can."""
    trial = model.trial
    if trial is None or not trial.takes(job.snapshot.origin.device_id):
        return model
    return trial.candidate if trial.candidate.ready and fits(job, trial.candidate) else model


def own_fault(error: Exception) -> SnapshotError | None:
    """The error as that of the version which was asked; None when it is not its fault."""
    if isinstance(error, NOBODYS_FAULT):
        return None
    return error if isinstance(error, SnapshotError) else InternalError(f"unexpected {type(error).__name__}")


class Canary:
    """Has each snapshot answered by the version whose turn it is."""

    def __init__(self, stable: Answering, candidate: Answering, models: Models, live: Live, metrics: Metrics) -> None:
        self._stable = stable
        self._candidate = candidate
        self._models = models
        self._live = live
        self._metrics = metrics

    async def answer(self, turn: Turn, queued_ms: float) -> Tried:
        """Steps 4 to 7; raises the picture's errors, and those of the stable version."""
        trial = turn.model.trial
        if trial is None or turn.release is turn.model:
            return await self._by_stable(turn, queued_ms, {}, _passed_over(turn))
        selection = choose(turn.job.snapshot, turn.release, self._live.current)
        job, started = replace(turn.job, model=turn.release), time.monotonic()
        try:
            prepared = await self._candidate.prepare(job, asked_names(selection), queued_ms)
            started = time.monotonic()
            job = replace(job, deadline_at=started + PART * (job.deadline_at - started))
            predicted = await self._candidate.ask(replace(prepared, job=job), selection)
        except Exception as error:
            fault = own_fault(error)
            if fault is None:
                raise
            if fault is not error:
                log.exception("A defect with a new version", result_id=turn.job.snapshot.origin.result_id)
        else:
            predicted = replace(predicted, selection=_as_canary(predicted.selection, trial))
            return Tried(predicted, turn.model, candidate=predicted.results)
        return await self._in_its_place(turn, trial, queued_ms, failure(selection.primary, started, fault))

    async def _by_stable(self, turn: Turn, queued_ms: float, failed: Results, why: str) -> Tried:
        """The stable version's answer; `failed` is what the candidate has shown before, `why` it does not answer."""
        model = turn.model
        job = turn.job if turn.job.model is model else replace(turn.job, model=model)
        refuse_if_changed(job, model)
        selection = choose(job.snapshot, model, self._live.current, self._stable.withheld(model))
        prepared = await self._stable.prepare(job, asked_names(selection), queued_ms)
        started = time.monotonic()
        try:
            predicted = await self._stable.ask(prepared, selection, turn.place)
        except Exception as error:
            fault = own_fault(error)
            if model.trial is not None and fault is not None and not isinstance(fault, ModelUnavailable):
                stable = {selection.primary: failure(selection.primary, started, fault)}
                tell(model.trial, Observation(turn.device_id, failed, stable))
            raise
        if selection.passed_over and predicted.selection.primary == selection.primary:
            self._metrics.fallbacks.labels(model.spec.name, selection.primary).inc()
        if why:
            predicted = replace(predicted, selection=_as_fallback(predicted.selection, why))
        return Tried(predicted, model, failed, predicted.results)

    async def _in_its_place(self, turn: Turn, trial: Trial, queued_ms: float, failed: VariantResult) -> Tried:
        """The stable version's answer to a snapshot on which the candidate has failed."""
        name, error = turn.model.spec.name, failed.error
        assert error is not None
        why = f"version {turn.release.version} failed: {error.code}"
        log.warning(
            "A new version failed on a snapshot, the stable one answers it",
            model=name,
            version=turn.release.version,
            variant=failed.variant,
            code=error.code,
            reason=error.message,
            result_id=turn.job.snapshot.origin.result_id,
        )
        own = not isinstance(error, ModelUnavailable) or serves(self._models, trial, failed.variant)
        tried = await self._by_stable(turn, queued_ms, {failed.variant: failed} if own else {}, why)
        self._metrics.fallbacks.labels(name, tried.predicted.primary.variant).inc()
        return tried


def serves(models: Models, trial: Trial, variant: str) -> bool:
    """Whether the candidate is said to serve a variant; one that is gone from Triton is not at fault."""
    name = trial.candidate.spec.name
    model = models.current.models.get(name)
    if model is None or model.trial is None or model.trial.candidate.version != trial.candidate.version:
        return False
    entry = model.trial.candidate.variants.get(variant)
    return entry is not None and entry.state is State.READY


def tell(trial: Trial, observation: Observation) -> None:
    """Show the jury what was seen; a defect of its own must not cost a snapshot its answer."""
    try:
        trial.jury.saw(observation)
    except Exception:
        log.exception("A defect in judging a new version", model=trial.candidate.spec.name)


def _passed_over(turn: Turn) -> str:
    """Why a candidate does not answer a camera that is one of its own; empty where it should not."""
    trial = turn.model.trial
    if trial is None or not trial.takes(turn.device_id):
        return ""
    candidate = trial.candidate
    why = "it takes something else" if candidate.ready else candidate.why_not_ready()
    return f"version {candidate.version} does not serve: {why}"


def _as_canary(selection: Selection, trial: Trial) -> Selection:
    said = f"version {trial.candidate.version} answers {trial.percent} % of the cameras"
    if selection.policy == "single":
        return replace(selection, policy="canary", reason=said)
    return replace(selection, reason=f"{selection.reason}; {said}")


def _as_fallback(selection: Selection, why: str) -> Selection:
    reason = f"{why}; {selection.reason}" if selection.policy == "fallback" else why
    return replace(selection, policy="dual" if selection.policy == "dual" else "fallback", reason=reason)


def failure(variant: str, started: float, error: SnapshotError) -> VariantResult:
    """The result of a variant that failed, asked at `started` of `time.monotonic()`."""
    return VariantResult(variant, "", (time.monotonic() - started) * 1000, error=error)
