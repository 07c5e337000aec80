"""Steps 4, 6 and 7: one version of a model answers one snapshot.

A variant whose circuit breaker is open is tried beside the variant that answers: in the background, with the same
snapshot, so that nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import replace

from gateway.errors import PayloadInvalid, SnapshotError
from gateway.flow.breakers import Attempt, Breakers, Suspended
from gateway.flow.infer import Inference
from gateway.flow.limiter import Limiter, Place
from gateway.flow.preprocess import prepare
from gateway.flow.reading import Reader
from gateway.live import Live
from gateway.messages import Answered, Job, Predicted, Prepared, Selection, Window
from gateway.metrics import Metrics
from gateway.models.catalog import ServedModel, State
from gateway.traces import SnapshotSpan


class Answering:
    """Carries a snapshot through the version of the model that its job names; counts nothing without `metrics`.

    With `breakers` a variant that fails is not asked for a while, and with `limiter` what is tried beside the answer is
    counted in flight; both are for the version that serves.
    """

    def __init__(
        self,
        inference: Inference,
        reader: Reader,
        threads: Executor,
        live: Live,
        metrics: Metrics | None,
        breakers: Breakers | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self._inference = inference
        self._reader = reader
        self._threads = threads
        self._live = live
        self._metrics = metrics
        self._breakers = breakers
        self._limiter = limiter
        self._probes: set[asyncio.Task[None]] = set()

    def withheld(self, model: ServedModel) -> Callable[[str], str] | None:
        """Why a variant of the model is not to be asked now, "" where it is; None where nothing is wrong with any."""
        return None if self._breakers is None else self._breakers.withheld(model)

    def close(self) -> None:
        """Give up what is tried in the background."""
        for task in self._probes:
            task.cancel()

    async def prepare(self, job: Job, names: Iterable[str], queued_ms: float = 0.0) -> Prepared:
        """Step 4 for these variants, those of them that serve, in a thread; raises what is the picture's fault."""
        started, span = time.monotonic(), job.snapshot.origin.span
        variants = [variant for name in names if (variant := job.model.variants[name]).state is State.READY]
        try:
            with self._timed("preprocess"):
                inputs = await asyncio.get_running_loop().run_in_executor(
                    self._threads, prepare, job.snapshot, job.model.spec, variants,
                    self._live.current.max_image_pixels, self._inference.allocate,
                )  # fmt: skip
        except SnapshotError as error:
            if span is not None:
                span.step("preprocess", started, time.monotonic(), error=error)
            raise
        now = time.monotonic()
        if span is not None:
            span.step("preprocess", started, now)
        return Prepared(job, inputs, queued_ms, (now - started) * 1000)

    async def ask(self, prepared: Prepared, selection: Selection, place: Place | None = None) -> Predicted:
        """Steps 6 and 7, again with the next variant as long as an answer cannot be read; each is asked once.

        Each variant has room again in the snapshot's `place` as soon as it has answered.

        In the returned selection `primary` names a variant whose answer was read; raises a variant's error when there
        is none.
        """
        self._probe_due(prepared, selection)
        with Attempt(self._breakers, prepared.job.model, place) as attempt:
            while True:
                with self._timed("infer"):
                    answered = await self._inference.infer(prepared, selection, attempt)
                with self._timed("postprocess"):
                    predicted = await self._read(answered, attempt)
                if predicted.primary.error is None:
                    return predicted
                selection = _without(answered.selection, predicted.primary.error, predicted)
                if self._metrics is not None:
                    self._metrics.fallbacks.labels(prepared.job.model.spec.name, selection.primary).inc()
                if selection.primary in predicted.results and predicted.results[selection.primary].error is None:
                    return replace(predicted, selection=selection)

    async def _read(self, answered: Answered, attempt: Attempt) -> Predicted:
        predicted = await self._reader.read(answered)
        if (span := answered.job.snapshot.origin.span) is not None:
            _add_reading(span, predicted)
        for name, result in predicted.results.items():
            if answered.answers[name].error is None:
                attempt.came(name, result.error)
                if result.error is not None:
                    self._count_error(predicted, name, result.error)
        return predicted

    def _probe_due(self, prepared: Prepared, selection: Selection) -> None:
        """Begin to try the variants whose turn to be tried has come, while another one answers."""
        model = prepared.job.model
        for name in () if self._breakers is None else self._breakers.due(model):
            if name != selection.primary and name in prepared.inputs:
                task = asyncio.create_task(self._probe(prepared, name), name=f"probe {name}")
                self._probes.add(task)
                task.add_done_callback(self._probes.discard)

    async def _probe(self, prepared: Prepared, name: str) -> None:
        """Ask one variant with all the time that it may take; only its breaker is told."""
        deadline_at = time.monotonic() + self._live.current.infer_timeout_ms / 1000
        prepared = replace(prepared, job=replace(prepared.job, deadline_at=deadline_at))
        model = prepared.job.model
        beside = contextlib.nullcontext() if self._limiter is None else self._limiter.beside(model.spec.name)
        with contextlib.suppress(SnapshotError), beside as place, Attempt(self._breakers, model, place) as attempt:
            await self._read(await self._inference.infer(prepared, Selection("probe", "", name), attempt), attempt)

    def _timed(self, step: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self._metrics is None else self._metrics.timed(step)

    def _count_error(self, predicted: Predicted, variant: str, error: SnapshotError) -> None:
        if self._metrics is not None:
            self._metrics.inference_errors.labels(predicted.job.model.spec.name, variant, error.code).inc()


def _add_reading(span: SnapshotSpan, predicted: Predicted) -> None:
    """Add the step, as long as it took by itself; what it waited for a thread before that is a gap."""
    now = time.monotonic()
    span.step("postprocess", now - predicted.postprocess_ms / 1000, now, error=predicted.primary.error)


def asked_names(selection: Selection) -> tuple[str, ...]:
    """Every variant that may be asked."""
    return (selection.primary, *selection.fallback, *selection.compared)


def fits(job: Job, model: ServedModel) -> bool:
    """Whether this entry of the model takes what the job holds: another version may want something else."""
    snapshot, sensor = job.snapshot, model.spec.sensor
    if isinstance(snapshot, Window):
        shape = (sensor.window, sensor.channels)
        return not model.spec.takes_pictures and snapshot.readings.shape == shape
    return model.spec.takes_pictures


def refuse_if_changed(job: Job, model: ServedModel) -> None:
    """Raise PayloadInvalid when the model's model.yaml was replaced while the snapshot waited, and asks for others."""
    if not fits(job, model):
        text = f"model '{model.spec.name}' takes something else since its model.yaml has changed"
        raise PayloadInvalid(text, fix="Send it again, in the form that the model takes now")


def _without(selection: Selection, error: SnapshotError, predicted: Predicted) -> Selection:
    """The selection with the next variant in place of a primary that failed; raises its error when none is left.

    Those that were asked are left out of it for good, or two that cannot be read would take turns until the deadline.
    """
    usable = [name for name, result in predicted.results.items() if result.error is None]
    left = usable or [
        name
        for name in (*selection.fallback, *selection.compared)
        if name not in predicted.results or isinstance(predicted.results[name].error, Suspended)
    ]
    if not left:
        raise error
    return replace(
        selection,
        policy="dual" if selection.compared else "fallback",
        reason=f"{selection.primary} failed: {error.code}",
        primary=left[0],
        fallback=selection.fallback if usable else tuple(left[1:]),
        compared=selection.compared if usable else (),
    )
