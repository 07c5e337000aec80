"""The order of the steps; the steps do not know each other.

A message is accepted (1 ingest, 2 route, 3 schedule) as it arrives, and served (4 preprocess ... 9 publish) when a
place in flight is free. Whatever happens on the way, its ticket is settled exactly once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import structlog

from gateway.config import Settings
from gateway.errors import (
    BackendUnavailable,
    BrokerUnavailable,
    DeadlineExceeded,
    InternalError,
    ModelUnavailable,
    Outcome,
    PublishRefused,
    QueueFull,
    SnapshotError,
)
from gateway.flow.acks import AckLedger
from gateway.flow.compare import compare
from gateway.flow.infer import Inference
from gateway.flow.ingest import identify, open_message, take_snapshot
from gateway.flow.postprocess import postprocess
from gateway.flow.preprocess import prepare_image
from gateway.flow.publish import comparison_publication, error_publication, result_publication
from gateway.flow.route import reply_topics, route
from gateway.flow.schedule import Schedule
from gateway.flow.variants import choose
from gateway.messages import Comparison, Job, Message, Origin, Predicted, Prepared, Publication, ReplyTopics, Selection
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.ports import Broker, InferenceServer

log = structlog.get_logger(__name__)

DECODING_THREADS = min(4, os.cpu_count() or 1)
RETRY_S = 0.25
"""Until a snapshot whose Triton could not be reached may be asked again."""
EXPIRY_INTERVAL_S = 0.05
REFUSALS_WAITING = 1024
"""Error messages that may wait for the broker before intake stops reading."""


class Pipeline:
    """Carries every snapshot from the broker to Triton and back."""

    def __init__(
        self, settings: Settings, broker: Broker, server: InferenceServer, models: Models, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._models = models
        self._metrics = metrics
        self._patterns = settings.patterns
        self._inference = Inference(server, metrics, settings.infer_timeout_ms)
        self._threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="preprocess")
        self._refusals: asyncio.Queue[tuple[Origin, ReplyTopics, SnapshotError]] = asyncio.Queue(REFUSALS_WAITING)
        self.acks = AckLedger(broker.acknowledge, metrics)
        self.schedule = Schedule(settings.queue_max_messages, settings.queue_max_bytes, models.can_answer, metrics)
        self._busy = 0

    # --- as messages arrive -----------------------------------------------------------------------

    async def intake(self) -> None:
        """Accept messages until the broker session ends; never waits for an inference."""
        async for message in self._broker.messages():
            await self.accept(message)
            await asyncio.sleep(0)  # a full inbox must not keep the loop from those in flight

    async def accept(self, message: Message) -> None:
        """Steps 1 to 3; a message that cannot be accepted is answered with its error."""
        if message.retain:
            # An old picture that the broker keeps for newcomers: answering it would look like a fresh frame.
            self._metrics.ignored_messages.labels("retained").inc()
            self.acks.pass_by(message)
            return
        origin = identify(message, self._patterns, self._settings.place)
        if not self.acks.open(origin.result_id, message):
            return
        try:
            with self._timed("ingest"):
                envelope = open_message(message, origin, self._settings.max_payload_bytes)
                origin = envelope.origin
                snapshot = take_snapshot(envelope)
                expiry_s = message.properties.message_expiry_s
                job = route(snapshot, self._models.current, self._settings, expiry_s)
        except SnapshotError as error:
            await self._refuse(origin, reply_topics(origin, None, self._settings), error)
            return
        except Exception as error:  # noqa: BLE001 - one poisonous message must not take service from all others
            await self._refuse(origin, reply_topics(origin, None, self._settings), self._defect(origin, error))
            return
        await self._enqueue(job)

    async def _enqueue(self, job: Job, *, again: bool = False) -> None:
        for evicted in self.schedule.put(job, again=again):
            await self._refuse_job(evicted, QueueFull(f"the queue is full ({len(self.schedule)} snapshots wait)"))

    async def watch_models(self) -> None:
        """Let the queue look again whenever a model has come into service, for ever."""
        while True:
            await self._models.changed()
            self.schedule.look_again()

    async def watch_deadlines(self) -> None:
        """Answer the snapshots whose time runs out in the queue, for ever."""
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            now = time.monotonic()
            for job in self.schedule.expired(now):
                await self._refuse_job(job, self._too_late(job, now))

    def _too_late(self, job: Job, now: float) -> SnapshotError:
        model = self._models.current.named(job.model.spec.name)
        if not model.ready:
            return ModelUnavailable(f"no variant of '{model.spec.name}' serves ({model.why_not_ready()})")
        waited_s = now - job.snapshot.origin.received_at
        return DeadlineExceeded(f"the snapshot waited {waited_s:.1f} s, longer than its deadline")

    async def _refuse(self, origin: Origin, topics: ReplyTopics, error: SnapshotError) -> None:
        await self._refusals.put((origin, topics, error))

    async def _refuse_job(self, job: Job, error: SnapshotError) -> None:
        origin = replace(job.snapshot.origin, model_name=job.model.spec.name)
        await self._refuse(origin, job.topics, error)

    # --- as places in flight become free ----------------------------------------------------------

    async def work(self) -> None:
        """Serve one snapshot after the other, for ever."""
        while True:
            job = await self.schedule.get()
            with self._counted():
                await self._serve(job)

    async def answer_refusals(self) -> None:
        """Publish error messages of refused snapshots, for ever."""
        while True:
            origin, topics, error = await self._refusals.get()
            with self._counted():
                await self._answer_error(origin, topics, error)

    async def _serve(self, job: Job) -> None:
        origin = replace(job.snapshot.origin, model_name=job.model.spec.name)
        try:
            predicted = await self._predict(job)
            await self._publish(predicted)
        except BrokerUnavailable:
            return  # closing: the ticket stays open, the broker will send the snapshot again
        except (BackendUnavailable, ModelUnavailable) as error:
            await self._wait_for_triton(job, origin, error)
        except SnapshotError as error:
            await self._answer_error(origin, job.topics, error)
        except PublishRefused as error:
            refused = InternalError(f"the broker refused the result: {error.message}", fix=error.fix)
            await self._answer_error(origin, job.topics, refused)
        except Exception as error:  # noqa: BLE001 - one poisonous snapshot must not take service from all others
            await self._answer_error(origin, job.topics, self._defect(origin, error))

    async def _wait_for_triton(self, job: Job, origin: Origin, error: SnapshotError) -> None:
        """Back into the queue while the deadline allows: Triton may be away for a moment only."""
        refused = self._models.current.named(job.model.spec.name).refused
        if refused or time.monotonic() + RETRY_S >= job.deadline_at:
            await self._answer_error(origin, job.topics, error)
        else:
            await asyncio.sleep(RETRY_S)
            await self._enqueue(job, again=True)

    async def _predict(self, job: Job) -> Predicted:
        """Steps 4 to 7, with the entry of the catalogue that serves now."""
        model = self._models.current.named(job.model.spec.name)
        selection = choose(job.snapshot, model, self._settings)
        prepared = await self._prepare(replace(job, model=model))
        return await self._ask(prepared, selection)

    async def _ask(self, prepared: Prepared, selection: Selection) -> Predicted:
        """Steps 6 and 7, once more with the next variant when the first one's answer cannot be read."""
        model_name = prepared.job.model.spec.name
        while True:
            with self._timed("infer"):
                answered = await self._inference.infer(prepared, selection)
            with self._timed("postprocess"):
                predicted = postprocess(answered)
            for name, result in predicted.results.items():
                if result.error is not None and answered.answers[name].error is None:
                    self._metrics.inference_errors.labels(model_name, name, result.error.code).inc()
            if predicted.primary.error is None:
                return predicted
            selection = _without(answered.selection, predicted.primary.error, predicted)
            self._metrics.fallbacks.labels(model_name, selection.primary).inc()
            if selection.primary in predicted.results:
                return replace(predicted, selection=selection)

    async def _prepare(self, job: Job) -> Prepared:
        """Step 4, in a thread."""
        now = time.monotonic()
        if now >= job.deadline_at:
            raise self._too_late(job, now)
        queued_s = now - job.snapshot.origin.received_at
        self._metrics.step_duration_seconds.labels("queued").observe(queued_s)
        with self._timed("preprocess"):
            tensor, geometry = await asyncio.get_running_loop().run_in_executor(
                self._threads,
                prepare_image,
                job.snapshot.image,
                job.model.spec.preprocessing,
                self._settings.max_image_pixels,
            )
        return Prepared(job, tensor, geometry, queued_s * 1000, (time.monotonic() - now) * 1000)

    async def _publish(self, predicted: Predicted) -> None:
        """Steps 8 and 9, then the acknowledgement; the result alone decides the outcome."""
        publications = [result_publication(predicted)]
        with self._timed("compare"):
            comparison = compare(predicted)
        if comparison is not None:
            publications.append(comparison_publication(predicted, comparison))
        with self._timed("publish"):
            result, *others = await asyncio.gather(
                *(self._broker.publish(item) for item in publications), return_exceptions=True
            )
        if result is not None:
            raise result
        for failure in others:
            if isinstance(failure, PublishRefused):
                log.error("The broker refused a comparison", reason=failure.message, fix=failure.fix)
            elif failure is not None:
                raise failure
        self._count_published(predicted, comparison)
        self.acks.settle(predicted.job.snapshot.origin.result_id, Outcome.PUBLISHED)

    def _count_published(self, predicted: Predicted, comparison: Comparison | None) -> None:
        origin, model = predicted.job.snapshot.origin, predicted.job.model.spec
        if comparison is not None:
            match = "unknown" if comparison.agreement is None else str(comparison.agreement.match).lower()
            self._metrics.comparisons.labels(model.name, match).inc()
        for item in predicted.primary.predictions:
            self._metrics.predictions.labels(model.name, item.class_name).inc()
        if any(item.class_name in model.inference.alert_classes for item in predicted.primary.predictions):
            self._metrics.alerts.labels(model.name).inc()
        total_s = time.monotonic() - origin.received_at
        self._metrics.snapshot_duration_seconds.labels(model.name).observe(total_s)
        log.debug(
            "Published a result",
            result_id=origin.result_id,
            device_id=origin.device_id,
            model=model.name,
            variant=predicted.selection.primary,
            predictions=len(predicted.primary.predictions),
            total_ms=round(total_s * 1000, 1),
        )

    async def _answer_error(self, origin: Origin, topics: ReplyTopics, error: SnapshotError) -> None:
        """Publish why there is no result, then acknowledge."""
        publication: Publication = error_publication(topics, origin, error)
        try:
            await self._broker.publish(publication)
        except BrokerUnavailable:
            return  # closing: the ticket stays open, the broker will send the snapshot again
        except PublishRefused as refusal:
            # Nobody can be told; holding the message back would stop every later one, so it ends in the log.
            log.error(
                "The broker refused an error message", topic=topics.error, reason=refusal.message, fix=refusal.fix
            )
        self._metrics.snapshot_errors.labels(error.code).inc()
        log.warning(
            "No result for a snapshot",
            code=error.code,
            reason=error.message,
            fix=error.fix,
            result_id=origin.result_id,
            device_id=origin.device_id[:100],
            topic=origin.topic[:200],
            bytes=origin.payload_bytes,
        )
        self.acks.settle(origin.result_id, error.outcome)

    def _defect(self, origin: Origin, error: Exception) -> InternalError:
        log.error("A defect of the gateway", result_id=origin.result_id, topic=origin.topic[:200], exc_info=error)
        return InternalError(f"unexpected {type(error).__name__}")

    # --- at the end -------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True when nothing that was accepted can get its outcome now; what waits for a model is left to the broker."""
        return not self._busy and self.schedule.waiting_only and self._refusals.empty()

    def close(self) -> int:
        """Leave the rest to the broker; returns how many snapshots that are."""
        self.schedule.drain()
        self._threads.shutdown(wait=False, cancel_futures=True)
        return self.acks.abandon_rest()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._metrics.step_duration_seconds.labels(step).observe(time.monotonic() - started)


def _without(selection: Selection, error: SnapshotError, predicted: Predicted) -> Selection:
    """The selection with the next variant in place of a primary that failed; raises its error when none is left."""
    usable = [name for name, result in predicted.results.items() if result.error is None]
    left = usable or [name for name in selection.fallback if name not in predicted.results]
    if not left:
        raise error
    return replace(
        selection,
        policy="dual" if selection.compared else "fallback",
        reason=f"{selection.primary} failed: {error.code}",
        primary=left[0],
    )
