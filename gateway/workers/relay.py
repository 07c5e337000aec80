"""The front's side of the session: messages to the workers that own them, their answers and acknowledgements back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from gateway.errors import BrokerUnavailable, PublishRefused, RateLimited
from gateway.flow.rate_limits import RateLimits
from gateway.live import Live
from gateway.logs import LEVEL, configure_logging
from gateway.messages import Message, Publication
from gateway.ports import Broker
from gateway.workers.acknowledgements import Acknowledgements
from gateway.workers.frames import (
    Acknowledge,
    Channel,
    ChosenLevel,
    Deliver,
    Done,
    Family,
    FinishBy,
    Publish,
    Samples,
    Scrape,
    SessionState,
    Taken,
    ToFront,
    WorkerState,
)
from gateway.workers.owners import Owners, Senders

log = structlog.get_logger(__name__)

STARTING = "is starting"
FOLLOWED = ("rate_limit_per_topic", "drain_timeout_s", "log_level", "log_format")
"""Settings that the front, too, takes over from the configuration when the lead has read it again."""
LEAD = 0
"""The worker that gets the commands, and speaks for all about the models."""
HAND_OVER_S = 5.0
"""So long the cameras of a worker that is gone wait for the one in its place; then the others take them."""
SCRAPE_S = 2.0
WATCH_S = 0.1
SILENT_S = 2.0
"""Without a sign of life for so long, a worker whose window is full is not waited for any more; the others go on."""
HUNG_S = 10.0
"""One that has been silent for so long will not come back, and is killed."""
WINDOW_MESSAGES = 256
WINDOW_BYTES = 8 * 2**20
"""What a worker may have before it, in the channel and in its inbox; at most one message goes beyond."""


@dataclass(slots=True, eq=False)
class Seat:
    """The place of one worker, whichever process has it now."""

    index: int
    channel: Channel[ToFront] | None = None
    ahead: int = 0
    """Messages that it was sent and has not taken out of its inbox, as far as it has said."""
    ahead_bytes: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at each sign of life, and when the process goes: time to look again whether there is room."""
    silent_s: float = 0.0
    passed_over: bool = False
    """Whether it missed messages because it was silent."""
    kill: Callable[[], None] = lambda: None
    """Ends the process that hangs."""
    trouble: str = STARTING
    """Why nobody is here."""
    state: WorkerState | None = None
    away_since: float = 0.0
    handed_over: bool = False
    families: list[Family] | None = None
    """Its metrics when it was asked last."""
    asked: asyncio.Future[None] | None = None

    def has_room(self) -> bool:
        """Whether another message may be sent."""
        return self.ahead < WINDOW_MESSAGES and self.ahead_bytes < WINDOW_BYTES


class Relay:
    """Between one session and several workers. `ask_again` has the broker send again all that is unacknowledged.

    A message whose worker is gone or hangs is held in no memory: it stays unacknowledged, and the broker is asked for
    it when the worker, or another in its place, is there. One with QoS 0 is lost; `lost` is called for each.
    """

    def __init__(
        self,
        live: Live,
        broker: Broker,
        workers: int,
        commands: tuple[str, ...],
        ask_again: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        self.seats = [Seat(index) for index in range(workers)]
        self.ended: list[Family] = []
        """What processes that have ended had counted."""
        self.was_ready = False
        """Whether any worker ever was: then the configuration was right once."""
        self._live = live
        self._broker = broker
        self._commands = frozenset(commands)
        self._ask_again = ask_again
        self._lost = lost
        self._senders = Senders(live.current)
        self._owners = Owners(workers)
        self._limits = RateLimits(live)
        self._acks = Acknowledgements(broker)
        self._publishing: set[asyncio.Task[None]] = set()
        self._all_there = asyncio.Event()
        self._dispatching = True

    # --- workers come and go ----------------------------------------------------------------------

    def attach(self, index: int, kill: Callable[[], None]) -> Channel[ToFront]:
        """The channel of a new process in this seat; the caller opens it and calls `greet`. `kill` ends a hung one."""
        seat = self.seats[index]
        seat.kill = kill
        channel: Channel[ToFront] = Channel(
            ToFront,
            lambda record, content: self._take(seat, channel, record, content),
            lambda: self._leave(seat, channel),
            index + 1,
        )
        return channel

    def greet(self, channel: Channel[ToFront]) -> None:
        """Tell a new process what it would have heard of the session."""
        channel.send(SessionState(self._broker.connected, self._broker.trouble))
        if LEVEL.chosen is not None:
            channel.send(ChosenLevel(LEVEL.chosen))

    def tell_level(self, chosen: str | None) -> None:
        """Have the workers' logs follow this level; None: the configured one."""
        for seat in self.seats:
            if seat.channel is not None:
                seat.channel.send(ChosenLevel(chosen))

    def _arrive(self, seat: Seat, channel: Channel[ToFront]) -> None:
        """A worker runs: its cameras are its own again, and what waits for it is asked for."""
        seat.channel, seat.handed_over, seat.away_since = channel, False, 0.0
        seat.ahead = seat.ahead_bytes = 0
        seat.passed_over, seat.trouble = False, STARTING
        self.greet(channel)  # what has changed while it started
        if self._acks.owed_by(seat.index):
            self._ask_again(f"worker {seat.index + 1} has started again")
        if all(each.channel is not None for each in self.seats):
            self._all_there.set()

    def _leave(self, seat: Seat, channel: Channel[ToFront]) -> None:
        if seat.channel is not channel:
            return
        seat.channel, seat.state, seat.away_since = None, None, time.monotonic()
        seat.room.set()
        if seat.asked is not None and not seat.asked.done():
            seat.asked.set_result(None)

    async def all_there(self) -> None:
        """Return when each worker has been there once; before that the broker need not send anything."""
        await self._all_there.wait()

    async def watch_seats(self) -> None:
        """Notice silence, and let the others take the cameras of a worker that stays away, for ever.

        Silence is counted in turns of this loop, not by the clock: when the front itself, or the machine, stood still,
        nobody was silent.
        """
        while True:
            await asyncio.sleep(WATCH_S)
            for seat in self.seats:
                if seat.channel is None:
                    self._look_at_absent(seat)
                    continue
                seat.silent_s += WATCH_S
                if seat.silent_s >= SILENT_S:
                    seat.room.set()
                if seat.silent_s >= HUNG_S:
                    log.error("A worker hangs", worker=seat.index + 1, silent_s=HUNG_S)
                    seat.trouble = "hung and is being killed"
                    seat.channel.abort()  # by itself: what the kernel is busy with is not killed at once
                    seat.kill()

    def _look_at_absent(self, seat: Seat) -> None:
        if not seat.away_since or seat.handed_over or time.monotonic() - seat.away_since < HAND_OVER_S:
            return
        if any(each.channel for each in self.seats):
            seat.handed_over = True
            log.warning("A worker stays away, the others take its cameras", worker=seat.index + 1)
            if self._acks.owed_by(seat.index):
                self._ask_again(f"worker {seat.index + 1} stays away")

    # --- from the broker --------------------------------------------------------------------------

    async def run(self) -> None:
        """Pass on the messages of the broker until its session ends."""
        async for message in self._broker.messages():
            if self._dispatching:
                await self._pass_on(message)
            del message

    def stop(self, finish_by: float) -> None:
        """Pass on nothing more; what comes stays with the broker. The workers hear until when they may finish."""
        self._dispatching = False
        for seat in self.seats:
            if seat.channel is not None:
                seat.channel.send(FinishBy(finish_by))

    def finished(self, since: float) -> bool:
        """Whether the broker waits for no acknowledgement of what came up to that moment."""
        return self._acks.finished(since)

    async def tell_sessions(self) -> None:
        """Tell the workers how the session stands, at each change, for ever."""
        async for up in self._broker.sessions():
            for seat in self.seats:
                if seat.channel is not None:
                    seat.channel.send(SessionState(up, self._broker.trouble))

    def owner(self, message: Message) -> int:
        """The worker that a message is for."""
        if message.topic in self._commands:
            return LEAD
        present = {seat.index for seat in self.seats if not seat.handed_over}
        return self._owners.of(self._senders.of(message), present)

    async def _pass_on(self, message: Message) -> None:
        index = self.owner(message)
        number = self._acks.open(message, index)
        seat = self.seats[index]
        channel = await self._with_room(seat)
        if channel is None:
            if not message.qos:
                self._lost()
            return
        frame = Deliver(
            number,
            message.topic,
            message.received_at,
            message.qos,
            message.retain,
            message.duplicate,
            message.properties,
            message.oversize,
            self._within_limit(message),
        )
        seat.ahead += 1
        seat.ahead_bytes += len(message.payload)
        channel.send(frame, message.payload)

    async def _with_room(self, seat: Seat) -> Channel[ToFront] | None:
        """Wait for a worker that is behind, as long as it shows signs of life; None for one that is not there."""
        while seat.channel is not None and not seat.has_room():
            if seat.silent_s >= SILENT_S:
                seat.passed_over = True
                return None
            seat.room.clear()
            await seat.room.wait()
        return seat.channel

    def _within_limit(self, message: Message) -> bool:
        """Counted here, for the cameras of one topic may be with several workers."""
        if message.topic in self._commands or message.retain:
            return True
        try:
            self._limits.check_topic(message)
        except RateLimited:
            return False
        return True

    # --- from the workers -------------------------------------------------------------------------

    def _take(self, seat: Seat, channel: Channel[ToFront], record: ToFront, content: bytes) -> None:
        seat.silent_s = 0.0
        match record:
            case Taken():
                seat.ahead -= record.messages
                seat.ahead_bytes -= record.size
                seat.room.set()
            case Acknowledge():
                self._acks.settle(record.number)
            case Publish():
                task = asyncio.create_task(self._publish(channel, record, content), name="publish for a worker")
                self._publishing.add(task)
                task.add_done_callback(self._publishing.discard)
            case WorkerState():
                seat.state = record
                self.was_ready = self.was_ready or record.ready
                if seat.channel is not channel:
                    self._arrive(seat, channel)
                elif seat.passed_over:
                    seat.passed_over = False
                    self._ask_again(f"worker {seat.index + 1} was silent")
                self._follow(seat, record)
            case Samples():
                seat.families = record.families
                if seat.asked is not None and not seat.asked.done():
                    seat.asked.set_result(None)

    def _follow(self, seat: Seat, state: WorkerState) -> None:
        """What the lead has read again holds here too, as far as it is needed here."""
        if seat.index == LEAD:
            again = {name: getattr(state, name) for name in FOLLOWED}
            before, after = self._live.current, self._live.current.model_copy(update=again)
            self._live.replace(after)
            if (before.log_level, before.log_format) != (after.log_level, after.log_format):
                configure_logging(after.log_level, after.log_format)

    async def _publish(self, channel: Channel[ToFront], record: Publish, payload: bytes) -> None:
        publication = Publication(
            record.topic, payload, record.qos, record.retain, record.content_type,
            record.correlation_data, record.user_properties,
        )  # fmt: skip
        try:
            await self._broker.publish(publication)
        except PublishRefused as refused:
            channel.send(Done(record.number, (refused.message, refused.where, refused.fix)))
        except BrokerUnavailable:
            return  # at the end; the worker ends too
        except Exception as defect:  # its snapshot would never get its outcome
            log.error("A defect of the gateway", topic=record.topic[:200], exc_info=defect)
            channel.send(Done(record.number, (f"unexpected {type(defect).__name__}", record.topic, "")))
        else:
            channel.send(Done(record.number))

    # --- metrics ----------------------------------------------------------------------------------

    async def scrape(self) -> list[list[Family]]:
        """The metrics of all workers; of one that does not answer in time, those of the time before."""
        asked = [self._ask(seat) for seat in self.seats if seat.channel is not None]
        if asked:
            await asyncio.wait(asked, timeout=SCRAPE_S)
        return [seat.families for seat in self.seats if seat.families is not None] + [self.ended]

    def _ask(self, seat: Seat) -> asyncio.Future[None]:
        if seat.asked is None or seat.asked.done():
            seat.asked = asyncio.get_running_loop().create_future()
            assert seat.channel is not None
            seat.channel.send(Scrape())
        return seat.asked

    def keep_counts(self, index: int) -> None:
        """A process has ended: what it had counted when it was asked last goes on to count."""
        seat = self.seats[index]
        self.ended = add_counts(self.ended, seat.families or [])
        seat.families = None


def add_counts(before: list[Family], more: list[Family]) -> list[Family]:
    """Counters and histograms of processes that have ended, one family each."""
    from gateway.workers.aggregation import Merged, counted

    merged = Merged([], [before, counted(more)])
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(each.name, dict(each.labels), each.value) for each in metric.samples],
        )
        for metric in merged.collect()
    ]
