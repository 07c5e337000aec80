"""The order of the steps; the steps do not know each other.

A message is accepted (1 ingest, 2 route, 3 schedule) as it arrives, and served (4 preprocess ... 9 publish) when a
place in flight is free. Whatever happens on the way, its ticket is settled exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from gateway.affinity import cores_for
from gateway.errors import (
    BackendUnavailable,
    BrokerUnavailable,
    InternalError,
    ModelUnavailable,
    ModelUnknown,
    Outcome,
    PublishRefused,
    SnapshotError,
)
from gateway.flow.acks import AckLedger
from gateway.flow.agreements import verdict_on
from gateway.flow.alerting import Alerting
from gateway.flow.alerts import alert_publication
from gateway.flow.answering import Answering
from gateway.flow.breakers import Breakers, Suspended
from gateway.flow.canary import Canary, release_for
from gateway.flow.compare import compare
from gateway.flow.dead_letters import DeadLetters
from gateway.flow.gallery import Gallery
from gateway.flow.infer import Inference
from gateway.flow.intake import Intake, defect, picture_of
from gateway.flow.lanes import lane_of
from gateway.flow.limiter import Limiter, Place
from gateway.flow.observer import Answer, Observer, Observers
from gateway.flow.order import Order, Rank
from gateway.flow.publish import comparison_publication, result_publication
from gateway.flow.reading import Reader
from gateway.flow.repeats import Repeats
from gateway.flow.replies import Replies
from gateway.flow.shadow import Shadow
from gateway.flow.turns import Turn, Turns
from gateway.live import Live
from gateway.messages import Job, Predicted
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.ports import Broker, InferenceServer
from gateway.traces import Kind, Traces, messaging

log = structlog.get_logger(__name__)
_stdlib_log = logging.getLogger(__name__)

RETRY_S = 0.25
"""Until a snapshot whose Triton could not be reached may be asked again."""


class Pipeline:
    """Carries every snapshot from the broker to Triton and back."""

    def __init__(
        self,
        live: Live,
        broker: Broker,
        server: InferenceServer,
        models: Models,
        metrics: Metrics,
        decoders: ThreadPoolExecutor | None = None,
        traces: Traces | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`observers` are told of what is published, beside the gallery."""
        self._live = live
        self._models = models
        self._metrics = metrics
        self._traces = traces
        self._threads = decoders or cores_for(live.current).decoding_pool()
        self.acks = AckLedger(broker.acknowledge, broker.awaits, metrics)
        repeats = Repeats(live, models)
        shows = live.current.console
        self.gallery = None if shows == "off" else Gallery(pictures=shows == "pictures")
        """What the console shows; None where there is none."""
        self._observer = Observers(*observers, *(() if self.gallery is None else (self.gallery,)))
        letters = DeadLetters(live, broker, metrics)
        self.replies = Replies(broker, self.acks, repeats, letters, metrics, self._observer)
        self._alerting = Alerting(broker, self.replies.outgoing, metrics, self._observer)
        breakers = Breakers(live, models, metrics)
        self._limiter = Limiter(live, models, metrics, breakers.withheld)
        self.intake = Intake(
            live, broker, models, metrics, self.acks, repeats, self.replies, breakers, self._limiter, traces
        )
        self._schedule = self.intake.schedule
        self._turns = Turns()
        self._order = Order()
        # A layout that comes with a new version and never ends takes no thread from the stable version's.
        self._readers = Reader(self._threads), Reader(self._threads)
        inference, unseen = Inference(server, metrics, live), Inference(server, None, live)
        self._stable = Answering(inference, self._readers[0], self._threads, live, metrics, breakers, self._limiter)
        candidate = Answering(inference, self._readers[1], self._threads, live, metrics)
        self.aside = Answering(unseen, self._readers[1], self._threads, live, None)
        """Asks a version as a snapshot would, counted nowhere."""
        self._canary = Canary(self._stable, candidate, models, live, metrics)
        self._shadow = Shadow(self.aside, models, live, self._turns, self._schedule.__len__)
        self._busy = 0

    # --- as places in flight become free ----------------------------------------------------------

    async def work(self) -> None:
        """Serve one snapshot after the other, for ever."""
        while True:
            job = await self._schedule.get()
            self._busy += 1
            try:
                with self._limiter.enter(job) as place:
                    await self._serve(job, place)
            finally:
                self._busy -= 1
            del job, place  # its picture, until the next one comes

    async def _serve(self, job: Job, place: Place) -> None:
        try:
            with self._order.join(lane_of(job)) as rank:
                turn = await self._turn(job, place)
                await self._take(turn, rank)
        except (BackendUnavailable, ModelUnavailable) as error:
            await self._wait_for_triton(job, error)
        except SnapshotError as error:
            await self._fail(job, error)
        except Exception as error:  # noqa: BLE001 - one poisonous snapshot must not take service from all others
            await self._fail(job, defect(job.snapshot.origin, error))

    async def _fail(self, job: Job, error: SnapshotError) -> None:
        origin = replace(job.snapshot.origin, model_name=job.model.spec.name)
        letter = self.replies.dead_letter(origin, error, picture_of(job))
        answer = self.replies.answer_error(origin, job.topics, error.forget_frames(), letter)
        await self.replies.outgoing.carry(answer)

    async def _wait_for_triton(self, job: Job, error: SnapshotError) -> None:
        """Back into the queue while the deadline allows: Triton may be away for a moment only."""
        name = job.model.spec.name
        try:
            refused = self._models.current.named(name).refused
        except ModelUnknown as removed:
            refused, error = True, removed
        in_queue = not refused and not self.intake.can_serve(name)  # where it holds no place in flight
        if in_queue or (not refused and time.monotonic() + RETRY_S < job.deadline_at):
            if not in_queue:
                await asyncio.sleep(RETRY_S)
            await self.intake.enqueue(job, again=True)
        else:
            last = error.last if isinstance(error, Suspended) else None
            await self._fail(job, last or error)

    async def _turn(self, job: Job, place: Place) -> Turn:
        """Step 5: the version that serves now, as soon as no other one is answering this camera.

        Raises ModelUnknown for a model that is gone, and what `too_late` says at the deadline.
        """
        name, device_id = job.model.spec.name, job.snapshot.origin.device_id
        while True:
            now = time.monotonic()
            if now >= job.deadline_at:
                if (span := job.snapshot.origin.span) is not None:
                    span.queued(now)
                raise self.intake.too_late(job, now)
            model = self._models.current.named(name)
            release = release_for(job, model)
            if self._turns.take(name, device_id, release.version):
                return Turn(job, model, release, place)
            await self._turns.changed(name, device_id, job.deadline_at)

    async def _take(self, turn: Turn, rank: Rank) -> None:
        """A snapshot that goes to a candidate may need the stable version as well."""
        name = turn.model.spec.name
        both = turn.release is not turn.model
        if both:
            self._turns.hold(name, turn.model.version)
        try:
            await self._answer(turn, rank)
        finally:
            if both:
                self._turns.drop(name, turn.model.version)
            self._turns.leave(name, turn.device_id, turn.release.version)

    @property
    def decoders(self) -> ThreadPoolExecutor:
        """The threads that decode."""
        return self._threads

    def in_flight(self, model: str, version: int) -> int:
        """How many snapshots, shadow ones included, are being asked of a version or may have to be.

        At 0, and with the version gone from the catalogue, nobody asks it any more.
        """
        return self._turns.in_flight(model, version)

    async def _answer(self, turn: Turn, rank: Rank) -> None:
        """Steps 4 to 9."""
        origin, now = turn.job.snapshot.origin, time.monotonic()
        queued_s = now - origin.received_at
        if origin.span is not None:
            origin.span.queued(now)
        self._metrics.step("queued").observe(queued_s)
        tried = await self._canary.answer(turn, queued_s * 1000)
        await rank.reached()
        shown = None if self.replies.awaited(origin.result_id) else self.gallery
        await self._publish(tried.predicted)
        self._shadow.offer(tried, shown)

    async def _publish(self, predicted: Predicted) -> None:
        """Steps 8 and 9, then the acknowledgement; the result alone decides the outcome."""
        job = predicted.job
        origin = replace(job.snapshot.origin, model_name=job.model.spec.name)
        started = time.monotonic()
        with self._metrics.timed("compare"):
            comparison = compare(predicted)
        if origin.span is not None and comparison is not None:
            origin.span.step("compare", started, time.monotonic())
        beside = None if comparison is None else comparison_publication(predicted, comparison)
        result = result_publication(predicted)
        if self.replies.awaited(origin.result_id):
            alerts = []
        else:
            alerts = self._alerting.see(predicted)
            if self.gallery is not None and self.gallery.pictures.watched:
                self.gallery.pictures.hold(origin.result_id, picture_of(job))
        given = Answer(
            origin, job.topics, predicted.primary.variant, result, beside, tuple(alerts),
            tuple(item.class_name for item in predicted.primary.predictions),
            None if comparison is None else verdict_on(comparison),
        )  # fmt: skip
        await self.replies.outgoing.carry(self._deliver(given))

    async def _deliver(self, given: Answer) -> None:
        """See an answer through to its acknowledgement; by then its snapshot may have left its place in flight."""
        origin, started = given.origin, time.monotonic()
        camera = self.replies.camera_of(origin)
        try:
            with self._metrics.timed("publish"):
                alerts = [alert_publication(alert) for alert in given.alerts]
                await self.replies.deliver(origin, given.topics, given.result, given.comparison, alerts)
        except BrokerUnavailable:
            return  # closing: the ticket stays open, the broker will send the snapshot again
        except PublishRefused as error:
            failure = InternalError(f"the broker refused the result: {error.message}", fix=error.fix)
        except Exception as error:  # noqa: BLE001 - its ticket would hold back all acknowledgements
            failure = defect(origin, error)
        else:
            self._count_published(given)
            self.acks.settle(origin.result_id, Outcome.PUBLISHED, camera)
            if origin.span is not None:
                _end(given, started)
            for alert, message in zip(given.alerts, alerts, strict=True):
                self._alerting.said(alert, message)
            if camera is not None:
                self._observer.answered(given)
            return
        await self.replies.answer_error(origin, given.topics, failure)

    def _count_published(self, given: Answer) -> None:
        origin, model = given.origin, given.origin.model_name or ""
        if given.verdict is not None:
            self._metrics.comparisons.labels(model, given.verdict.label).inc()
        for name in given.classes:
            self._metrics.predictions.labels(model, name).inc()
        total_s = time.monotonic() - origin.received_at
        self._metrics.snapshot_duration_seconds.labels(model).observe(total_s)
        if not _stdlib_log.isEnabledFor(logging.DEBUG):  # structlog finds that out on a longer way, for each snapshot
            return
        log.debug(
            "Published a result",
            result_id=origin.result_id,
            device_id=origin.device_id,
            model=model,
            variant=given.variant,
            predictions=len(given.classes),
            total_ms=round(total_s * 1000, 1),
        )

    # --- alerts ---------------------------------------------------------------------------------------

    async def watch_alerts(self) -> None:
        """End the alerts whose class has not been seen for long, for ever."""
        await self._alerting.watch()

    @property
    def alerts_pending(self) -> int:
        """Alerts whose end is still to be said."""
        return self._alerting.pending

    async def end_alerts(self) -> None:
        """End every alert, for nobody will see how it goes on."""
        await self._alerting.end_all()

    async def end_model(self, model: str) -> None:
        """End every alert of a model that has been taken out of the catalogue."""
        await self._alerting.end_model(model)

    # --- at the end -------------------------------------------------------------------------------

    @property
    def stuck(self) -> bool:
        """Whether a layout of the user's has not come back."""
        return any(reader.stuck for reader in self._readers)

    @property
    def under_way(self) -> int:
        """Answers on their way to the broker, or not acknowledged in their turn yet; they need it to go on."""
        return self.replies.outgoing.under_way

    @property
    def idle(self) -> bool:
        """True when nothing that was accepted can get its outcome now; what waits for a model is left to the broker."""
        return not self._busy and self.intake.idle

    def finished(self, since: float) -> bool:
        """Whether nothing that came up to that moment can get its outcome now; what came later may be under way."""
        return self.acks.finished(since) or (self.idle and not self.under_way)

    def wind_down(self) -> None:
        """Begin nothing that no snapshot waits for, for the gateway stops."""
        self._shadow.stop()

    def close(self) -> int:
        """Leave the rest to the broker; returns how many snapshots that are."""
        self._shadow.close()
        self._stable.close()
        self._schedule.drain()
        self.replies.close()
        if self._traces is not None:
            self._traces.abandon()
        for reader in self._readers:
            reader.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        return self.acks.abandon_rest()


def _end(given: Answer, started: float) -> None:
    """End the span of a snapshot whose answer is with its receiver; it was handed over at `started`."""
    span, result = given.origin.span, given.result
    assert span is not None
    direct = span.kind is Kind.SERVER
    about = {} if direct else messaging("publish", "send", result.topic, len(result.payload))
    kind = Kind.INTERNAL if direct else Kind.PRODUCER
    span.step("publish", started, time.monotonic(), kind=kind, conventions=about)
    span.end(given.origin, Outcome.PUBLISHED, variant=given.variant)
