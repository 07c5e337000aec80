"""Steps 1 to 3: what arrives is opened, routed and queued, or refused; never waits for an inference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from gateway.config import Settings
from gateway.config_broker import DEFAULT_INPUT_TOPICS
from gateway.errors import (
    DeadlineExceeded,
    InternalError,
    ModelUnavailable,
    ModelUnknown,
    Outcome,
    PayloadInvalid,
    QueueFull,
    SnapshotError,
)
from gateway.flow.acks import AckLedger
from gateway.flow.breakers import Breakers
from gateway.flow.identify import identify
from gateway.flow.ingest import open_message, sender_of, take_contents
from gateway.flow.limiter import Limiter
from gateway.flow.rate_limits import RateLimits
from gateway.flow.repeats import Repeats
from gateway.flow.replies import Replies, Reply, refusal
from gateway.flow.route import model_for, refuse_unknown_variant, reply_topics, route
from gateway.flow.schedule import Schedule
from gateway.flow.variants import not_serving
from gateway.flow.windows import Windows
from gateway.live import Live
from gateway.messages import Job, Message, Origin, Reading, ReplyTopics, Snapshot, Window
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel
from gateway.ports import Broker
from gateway.topics import TopicPattern
from gateway.traces import Traces

log = structlog.get_logger(__name__)

EXPIRY_INTERVAL_S = 0.05
ASK_MARGIN_S = 2.0
"""Beyond the deadline, until one who asks directly is told that there is no answer."""
ANSWERS_WAITING = 1024
"""Error messages and repeated answers that may wait for the broker before intake stops reading."""


class Intake:
    """Takes messages in; every one gets a ticket, and a place in the queue or its error."""

    def __init__(
        self,
        live: Live,
        broker: Broker,
        models: Models,
        metrics: Metrics,
        acks: AckLedger,
        repeats: Repeats,
        replies: Replies,
        breakers: Breakers,
        limiter: Limiter,
        traces: Traces | None = None,
    ) -> None:
        settings = live.current
        self._live = live
        self._broker = broker
        self._models = models
        self._metrics = metrics
        self._acks = acks
        self._repeats = repeats
        self._replies = replies
        self._breakers = breakers
        self._limiter = limiter
        self._traces = traces
        self._patterns = settings.patterns
        self._usual = tuple(TopicPattern(text) for text in DEFAULT_INPUT_TOPICS)
        self._windows = Windows()
        self._limits = RateLimits(live)
        self._answers: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]] = asyncio.Queue(ANSWERS_WAITING)
        self._answering = 0
        self._taking: asyncio.Task[None] | None = None
        self.handlers: dict[str, Callable[[Message], None]] = {}
        """Who takes the messages of a topic that are no snapshots; it must not wait."""
        self.schedule = Schedule(
            settings.queue_max_messages, settings.queue_max_bytes, self.can_serve, metrics, limiter.room
        )
        limiter.room_made = self.schedule.look_again

    async def run(self) -> None:
        """Accept messages until the broker session ends; never waits for an inference."""
        async for message in self._broker.messages():
            await self.accept(message)
            del message  # it can be megabytes, and the next one may be hours away
            await asyncio.sleep(0)  # a full inbox must not keep the loop from those in flight

    async def accept(self, message: Message) -> None:
        """Steps 1 to 3; a message that cannot be accepted is answered with its error."""
        if (take := self.handlers.get(message.topic)) is not None:
            take(message)
            self._acks.pass_by(message)
            return
        if message.retain:
            # An old picture that the broker keeps for newcomers: answering it would look like a fresh frame.
            self._metrics.ignored_messages.labels("retained").inc()
            self._acks.pass_by(message)
            return
        await self._accept(message, self._identify(message))

    async def ask(self, message: Message) -> Reply:
        """Carry one message through the same steps, its answer for the caller alone, within the usual deadline."""
        origin = self._identify(message)
        limit_s = self._live.current.snapshot_deadline_ms / 1000 + ASK_MARGIN_S
        try:
            async with asyncio.timeout(limit_s):
                return await self._ask(message, origin)
        except TimeoutError:
            return refusal(origin, DeadlineExceeded(f"no answer within {limit_s:.0f} s"))

    async def _ask(self, message: Message, origin: Origin) -> Reply:
        while self._taking is not None and not self._taking.done():
            await asyncio.wait([self._taking])  # or those that outlast their limit would add up
        reply = self._replies.expect(origin)
        if reply is None:
            return refusal(origin, ModelUnavailable("the gateway is stopping", fix="Try again soon"))
        # It outlasts the limit: snapshots of others may have gone for this one, and wait in it for their errors' turn.
        self._taking = taking = asyncio.create_task(self._accept(message, origin))
        first: list[asyncio.Future[Any]] = [taking, reply]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if taking.done():
            taking.result()  # raises what is a defect
        await asyncio.wait([reply])
        return reply.result()

    def _identify(self, message: Message) -> Origin:
        return identify(message, self._patterns, self._live.current.place, self._usual)

    async def _accept(self, message: Message, origin: Origin) -> None:
        if not self._acks.open(origin.result_id, message):
            return
        if self._traces is not None:
            origin = self._traces.begin(origin, asked_directly=self._replies.awaited(origin.result_id))
        settings, unopened, model = self._live.current, origin, None
        try:
            self._limits.check_topic(message)
            if (repeat := self._repeats.find(message, origin)) is not None:
                await self._answers.put(partial(self._replies.repeat, origin, repeat))
                return
            with self._metrics.timed("ingest"):
                envelope = open_message(message, origin, settings.max_payload_bytes)
                origin = envelope.origin
                self._limits.check_device(message, origin)
                contents = take_contents(envelope)
                model = model_for(contents, self._models.current, message.topic)
                refuse_unknown_variant(contents, model)
                asked = self._join(contents, model) if isinstance(contents, Reading) else contents
            if asked is None:
                self._repeats.keep(_named(origin, model), Outcome.WINDOWED)
                self._acks.settle(origin.result_id, Outcome.WINDOWED, origin.device_id)
                if origin.span is not None:
                    origin.span.end(_named(origin, model), Outcome.WINDOWED)
                return
            job = route(asked, model, settings, message.properties.message_expiry_s)
        except SnapshotError as error:
            if origin is unopened and isinstance(error, PayloadInvalid):
                origin = sender_of(message, origin)
            origin = _named(origin, model)
            await self._refuse(origin, reply_topics(origin, None, settings), error, message.payload)
            return
        except Exception as error:  # noqa: BLE001 - one poisonous message must not take service from all others
            origin = _named(origin, model)
            await self._refuse(origin, reply_topics(origin, None, settings), defect(origin, error), message.payload)
            return
        await self.enqueue(job)

    def _join(self, reading: Reading, model: ServedModel) -> Window | None:
        """The window that a reading completes; one who asks directly has to bring a whole one."""
        name, spec = model.spec.name, model.spec.sensor
        if not self._replies.awaited(reading.origin.result_id):
            before = self._windows.forgotten
            window = self._windows.join(reading, name, spec)
            self._metrics.forgotten.labels("window").inc(self._windows.forgotten - before)
            return window
        window = Windows().join(reading, name, spec)
        if window is None:
            raise PayloadInvalid(
                f"model '{name}' is asked about {spec.window} readings of {spec.channels} values, "
                f"the message has {len(reading.values)} numbers",
                fix="Send all numbers of the window, oldest reading first",
            )
        return window

    async def enqueue(self, job: Job, *, again: bool = False) -> None:
        """Step 3; `again` puts one back that could not be answered. A model that is asleep is woken for it."""
        settings = self._live.current
        self._wake(job.model.spec.name)
        self.schedule.limit(settings.queue_max_messages, settings.queue_max_bytes)
        for evicted in self.schedule.put(job, again=again):
            too_large = evicted is job and job.size > settings.queue_max_bytes
            await self._refuse_job(evicted, _no_place(job.size, settings) if too_large else self._too_many())

    def _too_many(self) -> QueueFull:
        return QueueFull(f"more snapshots come than can be answered ({len(self.schedule)} wait)")

    def can_serve(self, name: str) -> bool:
        """Whether a snapshot for this model need not wait in the queue: some variant is asked, or none will serve."""
        return self._models.can_answer(name) and not self._breakers.blocked(name)

    async def watch_models(self) -> None:
        """Let the queue look again whenever a model has come into service, for ever."""
        while True:
            self._breakers.follow(self._models.current)
            self._limiter.follow(self._models.current)
            for name in self.schedule.model_names:  # one may have been put to sleep while snapshots wait for it
                self._wake(name)
            self.schedule.look_again()
            await self._models.changed()

    def _wake(self, name: str) -> None:
        model = self._models.current.models.get(name)
        if model is not None and model.asleep:
            self._models.wake(name)

    async def watch_deadlines(self) -> None:
        """Answer the snapshots whose time runs out in the queue, for ever."""
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            now = time.monotonic()
            for job in self.schedule.expired(now):
                await self._refuse_job(job, self.too_late(job, now))
            for job in self.schedule.outpaced(now):
                await self._refuse_job(job, self._too_many())

    def too_late(self, job: Job, now: float) -> SnapshotError:
        """Why a snapshot has no result whose time has run out."""
        try:
            model = self._models.current.named(job.model.spec.name)
        except ModelUnknown as removed:
            return removed
        if not model.ready:
            return not_serving(model)
        if (last := self._breakers.last_error(model)) is not None:
            return last
        waited_s = now - job.snapshot.origin.received_at
        return DeadlineExceeded(f"the snapshot waited {waited_s:.1f} s, longer than its deadline")

    async def _refuse(self, origin: Origin, topics: ReplyTopics, error: SnapshotError, content: bytes) -> None:
        if self._replies.awaited(origin.result_id):  # needs no broker, which may be away
            await self._replies.answer_error(origin, topics, error)
            return
        letter = self._replies.dead_letter(origin, error, content)
        await self._answers.put(partial(self._replies.answer_error, origin, topics, error.forget_frames(), letter))

    async def _refuse_job(self, job: Job, error: SnapshotError) -> None:
        origin = _named(job.snapshot.origin, job.model)
        if origin.span is not None:
            origin.span.queued(time.monotonic())
        await self._refuse(origin, job.topics, error, picture_of(job))

    async def answer_at_once(self) -> None:
        """Publish the errors of refused snapshots, and the answers of those that came again, for ever."""
        while True:
            answer = await self._answers.get()
            self._answering += 1
            try:
                await self._replies.outgoing.carry(answer())
            finally:
                self._answering -= 1
                del answer  # and with it what it may hold of a payload

    @property
    def idle(self) -> bool:
        """True when nothing that was taken in can go on; what waits for a model is left to the broker."""
        return self.schedule.waiting_only and self._answers.empty() and not self._answering


def _no_place(size: int, settings: Settings) -> QueueFull:
    """Of a snapshot of `size` bytes, for which there would be no room in an empty queue."""
    limit = settings.queue_max_bytes
    fix = f"Send a smaller or more compressed picture, or raise QUEUE_MAX_BYTES to {size} at least"
    return QueueFull(f"the picture has {size} bytes, QUEUE_MAX_BYTES is {limit}", fix=fix)


def _named(origin: Origin, model: ServedModel | None) -> Origin:
    """With the name of the model that was found, if there was one."""
    return origin if model is None else replace(origin, model_name=model.spec.name)


def picture_of(job: Job) -> bytes:
    """What is left of the message: its picture, which is all of it unless it came in JSON; of readings nothing."""
    return job.snapshot.image if isinstance(job.snapshot, Snapshot) else b""


def defect(origin: Origin, error: Exception) -> InternalError:
    """An exception that nobody foresaw, logged with its traceback, as the snapshot's error."""
    log.error(
        "A defect of the gateway",
        result_id=origin.result_id,
        device_id=origin.device_id[:100],
        topic=origin.topic[:200],
        exc_info=error,
    )
    failure = InternalError(f"unexpected {type(error).__name__}")
    failure.logged = True
    return failure
