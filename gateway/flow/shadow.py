"""After a snapshot has its answer, the other version may be asked about it too: unpublished, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from gateway.errors import ModelUnavailable, SnapshotError
from gateway.flow.agreements import verdict_on
from gateway.flow.answering import Answering, fits
from gateway.flow.canary import NOBODYS_FAULT, Results, Tried, failure, own_fault, serves, tell
from gateway.flow.compare import agree
from gateway.flow.gallery import Gallery
from gateway.flow.publish import comparison_publication
from gateway.flow.turns import Turns
from gateway.live import Live
from gateway.messages import Comparison, Predicted, Selection, Snapshot, VariantResult
from gateway.models.catalog import Models, ServedModel, State, Trial

log = structlog.get_logger(__name__)

AT_LEAST_EVERY_S = 1.0
"""A snapshot is asked of both versions so often at least, however many wait: a trial has to come to its end."""


class Shadow:
    """Shows the jury every answered snapshot of a trial, some of them as both versions see them."""

    def __init__(
        self,
        answering: Answering,
        models: Models,
        live: Live,
        turns: Turns,
        waiting: Callable[[], int],
    ) -> None:
        self._answering = answering
        self._models = models
        self._live = live
        self._turns = turns
        self._waiting = waiting
        self._places = live.current.max_in_flight
        self._task: asyncio.Task[None] | None = None
        self._started_at = float("-inf")
        self._stopping = False

    def offer(self, tried: Tried, gallery: Gallery | None) -> None:
        """Take a snapshot whose answer is given; the other version is asked in the background, if at all.

        Called while the snapshot's turn lasts, so that what its version may need is still loaded. The two answers are
        shown in the `gallery`, if one is given.
        """
        trial = tried.model.trial
        if trial is None:
            return
        other, names = _to_ask(tried, trial)
        if not names or not self._may_ask(trial) or not fits(tried.predicted.job, other):
            tell(trial, tried.observation({}))
            return
        self._started_at = time.monotonic()
        self._turns.hold(other.spec.name, other.version)
        work = self._ask_other(tried, trial, other, names, gallery)
        self._task = asyncio.create_task(work, name="shadow")

    def stop(self) -> None:
        """Begin nothing more, for the gateway stops."""
        self._stopping = True

    def close(self) -> None:
        """Give up what is under way."""
        self.stop()
        if self._task is not None:
            self._task.cancel()

    def _may_ask(self, trial: Trial) -> bool:
        if self._stopping or self._task is not None or not self._goes_on(trial):
            return False
        crowded = self._waiting() > self._places
        if crowded and time.monotonic() - self._started_at < AT_LEAST_EVERY_S:
            return False
        try:
            return trial.jury.wants_pairs
        except Exception:
            log.exception("A defect in judging a new version", model=trial.candidate.spec.name)
            return False

    def _goes_on(self, trial: Trial) -> bool:
        """Whether the trial under which a snapshot was taken in is not over, and its candidate perhaps unloaded."""
        model = self._models.current.models.get(trial.candidate.spec.name)
        return model is not None and model.trial is not None and model.trial.jury is trial.jury

    async def _ask_other(
        self, tried: Tried, trial: Trial, other: ServedModel, names: tuple[str, ...], gallery: Gallery | None
    ) -> None:
        results: Results = {}
        try:
            results = await self._results(tried, trial, other, names)
        except NOBODYS_FAULT as error:
            log.info("A snapshot could not be shown to another version", model=other.spec.name, reason=error.message)
        finally:
            self._task = None
            self._turns.drop(other.spec.name, other.version)
        result = results.get(tried.predicted.primary.variant)
        if gallery is not None and result is not None:
            _show(gallery, tried.predicted, other, result)
        tell(trial, tried.observation(results))

    async def _results(self, tried: Tried, trial: Trial, other: ServedModel, names: tuple[str, ...]) -> Results:
        """What each variant says, asked alone as in production; raises what is not the version's fault."""
        job = replace(tried.predicted.job, model=other)
        started = time.monotonic()
        try:
            prepared = await self._answering.prepare(job, names)
        except Exception as error:  # noqa: BLE001 - raised again where it is not the version's
            fault = _fault(error)
            return {name: failure(name, started, fault) for name in names}
        results = {}
        for name in names:
            started = time.monotonic()
            deadline_at = started + self._live.current.snapshot_deadline_ms / 1000
            each = replace(prepared, job=replace(job, deadline_at=deadline_at))
            try:
                predicted = await self._answering.ask(each, Selection("shadow", "", name))
                results[name] = predicted.primary
            except Exception as error:  # noqa: BLE001 - raised again where it is not the version's
                fault = _fault(error)
                gone = isinstance(fault, ModelUnavailable)
                if not gone or (not tried.by_candidate and serves(self._models, trial, name)):
                    results[name] = failure(name, started, fault)
        return results


def _show(gallery: Gallery, predicted: Predicted, other: ServedModel, result: VariantResult) -> None:
    """Show the published answer beside that of the same variant of the other version."""
    job = predicted.job
    both = (predicted.primary, job.model.version), (result, other.version)
    first, second = (replace(each, variant=f"{each.variant} v{version}") for each, version in both)
    failed = first.error or second.error
    agreement = None if failed else agree(first, second, job.model.spec.inference.match_iou)
    comparison = Comparison(first, second, agreement)
    payload = comparison_publication(predicted, comparison).payload
    origin = replace(job.snapshot.origin, model_name=job.model.spec.name)
    picture = job.snapshot.image if isinstance(job.snapshot, Snapshot) else b""
    gallery.compare(origin, verdict_on(comparison), payload, "shadow", picture)


def _fault(error: Exception) -> SnapshotError:
    """The error as that of the version which was asked; raises it when it is not its fault."""
    fault = own_fault(error)
    if fault is None:
        raise error
    if fault is not error:
        log.error("A defect with a version that was asked in shadow", exc_info=error)
    return fault


def _to_ask(tried: Tried, trial: Trial) -> tuple[ServedModel, tuple[str, ...]]:
    """The other version and the variants of it to ask: the candidate's all, of the stable one the same."""
    if not tried.by_candidate:
        ready = _ready(trial.candidate) if trial.share == 0 and not tried.candidate else ()
        return trial.candidate, ready
    ready, variant = _ready(tried.model), tried.predicted.primary.variant
    return tried.model, (variant,) if variant in ready else ready[:1]


def _ready(model: ServedModel) -> tuple[str, ...]:
    return tuple(name for name, variant in model.variants.items() if variant.state is State.READY)
