"""9: where an answer goes: to the broker, or to whoever asked over HTTP; acknowledged when it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from gateway.errors import BrokerUnavailable, ModelUnavailable, Outcome, PublishRefused, SnapshotError
from gateway.flow.acks import AckLedger
from gateway.flow.dead_letters import DeadLetters
from gateway.flow.observer import Observer
from gateway.flow.outgoing import Outgoing
from gateway.flow.publish import error_publication
from gateway.flow.repeats import Repeat, Repeats
from gateway.messages import Origin, Publication, ReplyTopics
from gateway.metrics import Metrics
from gateway.ports import Broker

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """The answer to one who waits for it, a JSON message; with the error when it is none."""

    payload: bytes
    error: SnapshotError | None = None


class Replies:
    """Delivers answers; one who has asked directly gets his, and nothing of it goes to the broker.

    That holds too for one who has left meanwhile: his future is done, and stays until the answer comes.
    """

    def __init__(
        self,
        broker: Broker,
        acks: AckLedger,
        repeats: Repeats,
        dead_letters: DeadLetters,
        metrics: Metrics,
        observer: Observer,
    ) -> None:
        self._broker = broker
        self.outgoing = Outgoing(broker)
        """Sees through what is published here, whether or not the broker is there."""
        self._acks = acks
        self._repeats = repeats
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._observer = observer
        self._waiting: dict[str, tuple[Origin, asyncio.Future[Reply]]] = {}
        self._closed = False

    def expect(self, origin: Origin) -> asyncio.Future[Reply] | None:
        """Have the answer to this snapshot, which has not been accepted yet, given to the caller; None at the end."""
        if self._closed:
            return None
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[origin.result_id] = origin, future
        return future

    def close(self) -> None:
        """Tell everybody who still waits here that the gateway stops."""
        self._closed = True
        self.outgoing.close()
        for origin, future in self._waiting.values():
            if not future.done():
                future.set_result(refusal(origin, ModelUnavailable("the gateway is stopping", fix="Try again soon")))

    def awaited(self, result_id: str) -> bool:
        """Whether somebody waits for this answer here, rather than at the broker."""
        return result_id in self._waiting

    def camera_of(self, origin: Origin) -> str | None:
        """The device to count an answer for that is still to be given; None for one who asks here, who is no camera."""
        return None if origin.result_id in self._waiting else origin.device_id

    async def deliver(
        self,
        origin: Origin,
        topics: ReplyTopics,
        result: Publication,
        comparison: Publication | None = None,
        alerts: Sequence[Publication] = (),
    ) -> None:
        """Return when the result is with its receiver; the comparison and the alerts are for the broker alone.

        All but the alerts is kept for a snapshot that comes again. Raises PublishRefused for the result,
        BrokerUnavailable at the end.
        """
        if self._given(origin, Reply(result.payload)):
            return
        beside = [] if comparison is None else [comparison]
        if topics.response is not None:
            beside.append(replace(result, topic=topics.response))
        others = [*beside, *alerts]
        if not others:
            await self._broker.publish(result)
            self._repeats.keep(origin, Outcome.PUBLISHED, (result,))
            return
        first, *rest = await asyncio.gather(
            *(self._broker.publish(item) for item in (result, *others)), return_exceptions=True
        )
        if first is not None:
            raise first
        for publication, failure in zip(others, rest, strict=True):
            if isinstance(failure, PublishRefused):
                log.error(
                    "The broker refused a message",
                    what="a comparison or an alert",
                    topic=publication.topic,
                    reason=failure.message,
                    fix=failure.fix,
                )
            elif failure is not None:
                raise failure
        self._repeats.keep(origin, Outcome.PUBLISHED, (result, *beside))

    async def repeat(self, origin: Origin, repeat: Repeat) -> None:
        """Answer a snapshot that came again with the very same messages, then acknowledge."""
        if not await self._publish_all(repeat.answers, "a repeated answer"):
            return  # closing: the ticket stays open, the broker will send the snapshot again
        self._metrics.repeats.inc()
        log.debug("Answered as before", result_id=origin.result_id, topic=origin.topic[:200], outcome=repeat.outcome)
        self._acks.settle(origin.result_id, repeat.outcome, self.camera_of(origin))
        if origin.span is not None:
            origin.span.end(origin, repeat.outcome, repeated=True)

    def dead_letter(self, origin: Origin, error: SnapshotError, content: bytes) -> Publication | None:
        """The dead letter that goes with this error, where there is to be one; made early, so as to hold no others."""
        return None if self.awaited(origin.result_id) else self._dead_letters.write(origin, error, content)

    async def answer_error(
        self, origin: Origin, topics: ReplyTopics, error: SnapshotError, letter: Publication | None = None
    ) -> None:
        """Say why there is no result, send its dead letter, then acknowledge."""
        camera = self.camera_of(origin)
        message: Publication | None = None
        try:
            message = error_publication(topics, origin, error)
            if not await self._tell(origin, topics, message, error, letter):
                return  # closing: the ticket stays open, the broker will send the snapshot again
        except Exception as defect:  # its ticket would hold back all acknowledgements
            log.error("A defect of the gateway", result_id=origin.result_id, exc_info=defect)
        self._metrics.snapshot_errors.labels(error.code).inc()
        if not error.logged:
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
        self._acks.settle(origin.result_id, error.outcome, camera)
        if origin.span is not None:
            origin.span.end(origin, error.outcome, error)
        if camera is not None and message is not None:
            self._observer.failed(origin, message)

    async def _tell(
        self,
        origin: Origin,
        topics: ReplyTopics,
        publication: Publication,
        error: SnapshotError,
        letter: Publication | None,
    ) -> bool:
        """False when the broker is gone for good."""
        if self._given(origin, Reply(publication.payload, error)):
            return True
        answers = [publication]
        if topics.response is not None:
            answers.append(replace(publication, topic=topics.response))
        if not await self._publish_all(answers, "an error message"):
            return False
        if letter is not None:
            await self._dead_letters.send(letter)
        self._repeats.keep(origin, error.outcome, answers)
        return True

    def _given(self, origin: Origin, reply: Reply) -> bool:
        """False when nobody has asked for it directly."""
        _, future = self._waiting.pop(origin.result_id, (origin, None))
        if future is not None and not future.done():
            future.set_result(reply)
        return future is not None

    async def _publish_all(self, answers: Sequence[Publication], what: str) -> bool:
        """False when the broker is gone for good; one that it refuses is logged as `what`."""
        for each in answers:
            try:
                await self._broker.publish(each)
            except BrokerUnavailable:
                return False
            except PublishRefused as refusal:
                # Nobody can be told; holding the message back would stop every later one, so it ends in the log.
                log.error(
                    "The broker refused a message",
                    what=what,
                    topic=each.topic,
                    reason=refusal.message,
                    fix=refusal.fix,
                )
            except Exception as defect:  # as above, whatever it is
                log.error("A defect of the gateway", topic=each.topic[:200], exc_info=defect)
        return True


def refusal(origin: Origin, error: SnapshotError) -> Reply:
    """An error as the answer to one who asks directly."""
    return Reply(error_publication(ReplyTopics("", "", ""), origin, error).payload, error)
