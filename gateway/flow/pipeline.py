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
from typing import Any

import structlog

from gateway.errors import (
    BackendInvalidResponse,
    BackendUnavailable,
    BrokerUnavailable,
    InternalError,
    ModelUnavailable,
    Outcome,
    PayloadInvalid,
    PublishRefused,
    SnapshotError,
)
from gateway.flow.acks import AckLedger
from gateway.flow.alerts import Alert, AlertBook, alert_publication
from gateway.flow.compare import compare
from gateway.flow.infer import Inference
from gateway.flow.intake import Intake, defect
from gateway.flow.postprocess import postprocess
from gateway.flow.preprocess import prepare_picture, prepare_window
from gateway.flow.publish import comparison_publication, result_publication
from gateway.flow.replies import Replies
from gateway.flow.variants import choose
from gateway.live import Live
from gateway.messages import (
    Answered,
    Comparison,
    Job,
    Origin,
    Predicted,
    Prepared,
    PreparedInput,
    Selection,
    Window,
)
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel, ServedVariant, State
from gateway.models.input_plan import InputPlan, WindowPlan
from gateway.ports import Broker, InferenceServer

log = structlog.get_logger(__name__)

DECODING_THREADS = min(4, os.cpu_count() or 1)
RETRY_S = 0.25
"""Until a snapshot whose Triton could not be reached may be asked again."""
ALERT_INTERVAL_S = 0.5
ALERTS_AT_ONCE = 64
HEAVY_TASKS = frozenset(("instance-segmentation", "anomaly-detection"))
"""Tasks whose answers are outlines, which take milliseconds to draw."""


class Pipeline:
    """Carries every snapshot from the broker to Triton and back."""

    def __init__(self, live: Live, broker: Broker, server: InferenceServer, models: Models, metrics: Metrics) -> None:
        self._live = live
        self._broker = broker
        self._models = models
        self._metrics = metrics
        self._inference = Inference(server, metrics, live)
        self._alerts = AlertBook()
        self._threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="preprocess")
        self._custom_threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="custom-layout")
        self._overdue = 0
        self.acks = AckLedger(broker.acknowledge, metrics)
        self.replies = Replies(broker, self.acks, metrics)
        self.intake = Intake(live, broker, models, metrics, self.acks, self.replies)
        self._schedule = self.intake.schedule
        self._busy = 0

    # --- as places in flight become free ----------------------------------------------------------

    async def work(self) -> None:
        """Serve one snapshot after the other, for ever."""
        while True:
            job = await self._schedule.get()
            with self._counted():
                await self._serve(job)

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
            await self.replies.answer_error(origin, job.topics, error)
        except PublishRefused as error:
            refused = InternalError(f"the broker refused the result: {error.message}", fix=error.fix)
            await self.replies.answer_error(origin, job.topics, refused)
        except Exception as error:  # noqa: BLE001 - one poisonous snapshot must not take service from all others
            await self.replies.answer_error(origin, job.topics, defect(origin, error))

    async def _wait_for_triton(self, job: Job, origin: Origin, error: SnapshotError) -> None:
        """Back into the queue while the deadline allows: Triton may be away for a moment only."""
        refused = self._models.current.named(job.model.spec.name).refused
        if refused or time.monotonic() + RETRY_S >= job.deadline_at:
            await self.replies.answer_error(origin, job.topics, error)
        else:
            await asyncio.sleep(RETRY_S)
            await self.intake.enqueue(job, again=True)

    async def _predict(self, job: Job) -> Predicted:
        """Steps 4 to 7, with the entry of the catalogue that serves now."""
        model = self._models.current.named(job.model.spec.name)
        _refuse_if_changed(job, model)
        selection = choose(job.snapshot, model, self._live.current)
        prepared = await self._prepare(replace(job, model=model), selection)
        return await self._ask(prepared, selection)

    async def _ask(self, prepared: Prepared, selection: Selection) -> Predicted:
        """Steps 6 and 7, once more with the next variant when the first one's answer cannot be read."""
        model_name = prepared.job.model.spec.name
        while True:
            with self._metrics.timed("infer"):
                answered = await self._inference.infer(prepared, selection)
            with self._metrics.timed("postprocess"):
                predicted = await self._read(answered)
            for name, result in predicted.results.items():
                if result.error is not None and answered.answers[name].error is None:
                    self._metrics.inference_errors.labels(model_name, name, result.error.code).inc()
            if predicted.primary.error is None:
                return predicted
            selection = _without(answered.selection, predicted.primary.error, predicted)
            self._metrics.fallbacks.labels(model_name, selection.primary).inc()
            if selection.primary in predicted.results:
                return replace(predicted, selection=selection)

    async def _read(self, answered: Answered) -> Predicted:
        """Step 7; in a thread where outlines or many tiles would keep the loop from everything else."""
        model = answered.job.model.spec
        if model.layout.custom:
            return await self._read_custom(answered)
        if model.layout.task in HEAVY_TASKS or any(given.count > 1 for given in answered.inputs.values()):
            return await asyncio.get_running_loop().run_in_executor(self._threads, postprocess, answered)
        return postprocess(answered)

    async def _read_custom(self, answered: Answered) -> Predicted:
        """In threads of their own, which a layout that never ends may hold without holding anything else."""
        name = answered.job.model.spec.layout.name
        fix = "Make it faster, or choose another one in inference.output"
        if self._overdue >= DECODING_THREADS:
            raise BackendInvalidResponse(f"layout '{name}' cannot run: others have not come back", fix=fix)
        loop = asyncio.get_running_loop()
        work = self._custom_threads.submit(postprocess, _without_pictures(answered))
        reading = asyncio.wrap_future(work)
        done, _ = await asyncio.wait([reading], timeout=max(0.0, answered.job.deadline_at - time.monotonic()))
        if done:
            return reading.result()
        if not work.cancel():
            self._overdue += 1
            work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._come_back))
        raise BackendInvalidResponse(f"layout '{name}' was not done within the deadline", fix=fix)

    def _come_back(self) -> None:
        self._overdue -= 1

    @property
    def stuck(self) -> bool:
        """Whether a layout of the user's has not come back."""
        return self._overdue > 0

    async def _prepare(self, job: Job, selection: Selection) -> Prepared:
        """Step 4, in a thread; variants that want the same input share it."""
        now = time.monotonic()
        if now >= job.deadline_at:
            raise self.intake.too_late(job, now)
        queued_s = now - job.snapshot.origin.received_at
        self._metrics.step_duration_seconds.labels("queued").observe(queued_s)
        names = (selection.primary, *selection.fallback, *selection.compared)
        variants = [variant for name in names if (variant := job.model.variants[name]).state is State.READY]
        with self._metrics.timed("preprocess"):
            inputs = await asyncio.get_running_loop().run_in_executor(
                self._threads, _prepared, job, variants, self._live.current.max_image_pixels
            )
        return Prepared(job, inputs, queued_s * 1000, (time.monotonic() - now) * 1000)

    async def _publish(self, predicted: Predicted) -> None:
        """Steps 8 and 9, then the acknowledgement; the result alone decides the outcome."""
        job, origin = predicted.job, predicted.job.snapshot.origin
        others = []
        with self._metrics.timed("compare"):
            comparison = compare(predicted)
        if comparison is not None:
            others.append(comparison_publication(predicted, comparison))
        alerts = [] if self.replies.awaited(origin.result_id) else self._raise_alerts(predicted)
        others += [alert_publication(alert) for alert in alerts]
        with self._metrics.timed("publish"):
            await self.replies.deliver(origin, job.topics, result_publication(predicted), others)
        for alert in alerts:
            self._said(alert)
        self._count_published(predicted, comparison)
        self.acks.settle(origin.result_id, Outcome.PUBLISHED)

    def _count_published(self, predicted: Predicted, comparison: Comparison | None) -> None:
        origin, model = predicted.job.snapshot.origin, predicted.job.model.spec
        if comparison is not None:
            match = "unknown" if comparison.agreement is None else str(comparison.agreement.match).lower()
            self._metrics.comparisons.labels(model.name, match).inc()
        for item in predicted.primary.predictions:
            self._metrics.predictions.labels(model.name, item.class_name).inc()
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

    # --- alerts ---------------------------------------------------------------------------------------

    def _raise_alerts(self, predicted: Predicted) -> list[Alert]:
        """The alerts that start with this result; some that its camera has not shown for long end."""
        job, model = predicted.job, predicted.job.model.spec
        origin, now = job.snapshot.origin, time.monotonic()
        classes = model.inference.alert_classes
        if not classes:
            return []
        before = self._alerts.forgotten
        alerts = self._alerts.see(
            origin, model.name, job.topics.alert, model.alerts, classes, predicted.primary.predictions, now
        )
        self._metrics.forgotten.labels("alert").inc(self._alerts.forgotten - before)
        return alerts

    async def watch_alerts(self) -> None:
        """End the alerts whose class has not been seen for long, for ever."""
        while True:
            await asyncio.sleep(ALERT_INTERVAL_S)
            await self._publish_alerts(self._alerts.expire(time.monotonic()))

    @property
    def alerts_pending(self) -> int:
        """Alerts whose end is still to be said."""
        return self._alerts.pending

    async def end_alerts(self) -> None:
        """End every alert, for nobody will see how it goes on."""
        await self._publish_alerts(self._alerts.end_all("gateway_stopped"))

    async def _publish_alerts(self, alerts: list[Alert]) -> None:
        for start in range(0, len(alerts), ALERTS_AT_ONCE):
            await asyncio.gather(*(self._publish_alert(alert) for alert in alerts[start : start + ALERTS_AT_ONCE]))

    async def _publish_alert(self, alert: Alert) -> None:
        try:
            await self._broker.publish(alert_publication(alert))
        except PublishRefused as refusal:
            log.error("The broker refused an alert", topic=alert.topic, reason=refusal.message, fix=refusal.fix)
            self._alerts.said(alert)  # it would be refused again
        except BrokerUnavailable:
            return  # closing; `end_alerts` says it again
        else:
            self._said(alert)

    def _said(self, alert: Alert) -> None:
        self._alerts.said(alert)
        self._metrics.alerts.labels(alert.model_name, alert.event).inc()

    # --- at the end -------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True when nothing that was accepted can get its outcome now; what waits for a model is left to the broker."""
        return not self._busy and self.intake.idle

    def close(self) -> int:
        """Leave the rest to the broker; returns how many snapshots that are."""
        self._schedule.drain()
        self.replies.close()
        for threads in (self._threads, self._custom_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        return self.acks.abandon_rest()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1


def _without_pictures(answered: Answered) -> Answered:
    """Without the input tensors, which a layout that never comes back would keep in memory."""
    if isinstance(answered.job.snapshot, Window):
        return answered
    inputs = {name: PreparedInput({}, given.geometries) for name, given in answered.inputs.items()}
    return replace(answered, inputs=inputs)


def _refuse_if_changed(job: Job, model: ServedModel) -> None:
    """Raise PayloadInvalid when the model's model.yaml was replaced while the snapshot waited, and asks for others."""
    snapshot, sensor = job.snapshot, model.spec.sensor
    fits = model.spec.takes_pictures
    if isinstance(snapshot, Window):
        fits = not fits and snapshot.readings.shape == (sensor.window, sensor.channels)
    if not fits:
        text = f"model '{model.spec.name}' takes something else since its model.yaml has changed"
        raise PayloadInvalid(text, fix="Send it again, in the form that the model takes now")


def _prepared(job: Job, variants: list[ServedVariant], max_image_pixels: int) -> dict[str, PreparedInput]:
    """Step 4 for each of these variants; equal inputs are made once."""
    snapshot, spec = job.snapshot, job.model.spec
    made: dict[Any, PreparedInput] = {}
    if isinstance(snapshot, Window):
        windows = {variant.plan for variant in variants if isinstance(variant.plan, WindowPlan)}
        made.update(prepare_window(snapshot.readings, spec.sensor, windows))
    else:
        pictures = {variant.plan for variant in variants if isinstance(variant.plan, InputPlan)}
        made.update(prepare_picture(snapshot.image, spec.preprocessing, pictures, max_image_pixels))
    return {variant.name: made[variant.plan] for variant in variants if variant.plan in made}


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
