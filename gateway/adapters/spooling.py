"""A Broker whose answers outlive an outage on disk: what cannot be sent goes into a spool, and from it behind the rest.

Where an answer is:
    with the broker beneath      while there is a session, and for GRACE_S after it is lost
    on disk                      from then on; its memory is free, whoever waits for it still waits
    with the broker beneath      one at a time, when there is a session and nothing fresh is on its way
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from gateway.adapters.spool import Kept, Spool, SpoolFailed, SpoolFull
from gateway.adapters.spool_complaints import Complaints
from gateway.config import Settings
from gateway.errors import BrokerError, BrokerUnavailable, PublishRefused
from gateway.messages import Message, Publication
from gateway.metrics import Metrics
from gateway.ports import Broker, held_by

log = structlog.get_logger(__name__)

ANSWERS = frozenset(("ai_inference_result", "dual_backend_comparison", "ai_inference_error", "ai_alert"))
"""The kinds of messages that are worth a place on disk; a status or a summary is only ever true at its time."""
GRACE_S = 1.0
"""A session that comes back within this time costs no disk."""
LOOK_S = 0.05
GAP_S = 0.5
"""So long at most an answer from the disk waits for a moment in which nothing fresh is on its way."""
RETRY_S = 5.0
"""Until a disk that failed, or a spool that was full, is tried again."""
BATCH_BYTES = 64 * 1024
"""Stored in one transaction; one that is larger goes alone."""


@dataclass(slots=True, eq=False)
class _Fresh:
    """An answer that is in memory; `sending` is its way to the broker beneath."""

    event: str
    publication: Publication
    done: asyncio.Future[None]
    sending: asyncio.Task[None] | None = None


class SpooledBroker:
    """The Broker port around another one; `publish` of an answer that has been called is seen through.

    An answer that the disk loses ends with PublishRefused, so that its snapshot is answered with an error. Left open it
    would hold back every later acknowledgement, and the broker sends it again only in another session.

    Nobody can take an answer back by not waiting for it any more: it is sent, or on disk at `close`.
    """

    def __init__(self, broker: Broker, spool: Spool, metrics: Metrics, grace_s: float = GRACE_S) -> None:
        self._broker = broker
        self._spool = spool
        self._metrics = metrics
        self._grace_s = grace_s
        self._fresh: dict[_Fresh, None] = {}
        self._fresh_bytes = 0
        self._room = math.inf
        """Of so many bytes the spool has said that there is no room for them; inf: it has not been asked lately."""
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._sent_up_to = 0
        """The number on disk until which the broker has all; a disk that is full may not let them be deleted."""
        self._delete_at = 0.0
        self._resending: tuple[str, str] | None = None
        self._inherited = spool.count > 0
        self._complaints = Complaints(spool)
        self._closed = False
        self._measure()
        if spool.count:
            log.info("Answers of an earlier run wait on disk", answers=spool.count, file=str(spool.file))

    @property
    def connected(self) -> bool:
        return self._broker.connected

    @property
    def trouble(self) -> str:
        return self._broker.trouble

    @property
    def backlog(self) -> int:
        return self._fresh_bytes

    def sessions(self) -> AsyncIterator[bool]:
        return self._broker.sessions()

    def messages(self) -> AsyncIterator[Message]:
        return self._broker.messages()

    def awaits(self, message: Message) -> bool:
        return self._broker.awaits(message)

    def acknowledge(self, message: Message) -> None:
        self._broker.acknowledge(message)

    async def leave_groups(self) -> None:
        await self._broker.leave_groups()

    @property
    def dealt_at(self) -> float:
        return self._broker.dealt_at

    async def publish(self, publication: Publication) -> None:
        attributes = dict(publication.user_properties)
        if attributes.get("type") not in ANSWERS or self._closed:
            await self._broker.publish(publication)
            return
        entry = _Fresh(attributes.get("id", ""), publication, asyncio.get_running_loop().create_future())
        self._fresh[entry] = None
        self._fresh_bytes += held_by(publication)
        entry.sending = asyncio.create_task(self._send(entry))
        await asyncio.shield(entry.done)

    async def run(self) -> None:
        tasks = [asyncio.create_task(work) for work in (self._broker.run(), self._keep(), self._resend())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def close(self) -> None:
        self._closed = True
        self._room = math.inf
        try:
            while self._fresh and await self._store_some():
                pass
        finally:  # though the disk hangs, and whoever called this has given up
            await self._say_goodbye()
        await self._spool.close()

    async def _say_goodbye(self) -> None:
        if self._fresh:
            log.warning("Not stored before the end", what="answers", answers=len(self._fresh))
        await self._broker.close()
        closed = BrokerUnavailable("The session with the broker has been closed", fix="Publish before close")
        _answer((entry.done for entry in self._fresh), closed)
        for waiters in self._waiters.values():
            _answer(waiters, closed)

    # --- fresh ones ------------------------------------------------------------------------------

    async def _send(self, entry: _Fresh) -> None:
        try:
            await self._broker.publish(entry.publication)
        except BrokerUnavailable as error:
            _answer([entry.done], error)
        except BrokerError as error:
            self._leave(entry)
            _answer([entry.done], error)
        except Exception as error:  # whoever waits for it would wait for ever
            log.exception("A defect of the gateway", topic=entry.publication.topic[:200])
            self._leave(entry)
            said = f"It cannot be sent: unexpected {type(error).__name__}"
            _answer([entry.done], PublishRefused(said, fix="See the log"))
        else:
            self._leave(entry)
            _answer([entry.done])
            await self._forget_earlier(entry)

    def _leave(self, entry: _Fresh) -> None:
        if entry in self._fresh:
            del self._fresh[entry]
            self._fresh_bytes -= held_by(entry.publication)

    async def _forget_earlier(self, entry: _Fresh) -> None:
        """The broker had kept the snapshot of an answer that an earlier run has left: it is answered now."""
        name = entry.event, entry.publication.topic
        if not self._inherited or name == self._resending:
            return
        try:
            await self._spool.forget(*name)
        except SpoolFailed as failure:
            self._failed(failure)
        self._measure()

    async def _keep(self) -> None:
        """Store what waits whenever the session has been away for a while, for ever."""
        up_at = time.monotonic()
        while True:
            if self._broker.connected:
                up_at = time.monotonic()
            away = time.monotonic() - up_at >= self._grace_s
            if self._closed or not (away and self._fresh):
                await asyncio.sleep(LOOK_S)
            elif not await self._store_some():
                await asyncio.sleep(RETRY_S)

    async def _store_some(self) -> bool:
        """Store the oldest in memory that there may be room for; False when the disk takes no more of them for now."""
        batch = self._batch()
        if not batch:
            self._room = math.inf
            return False
        try:
            numbers = await self._spool.put([(entry.event, entry.publication) for entry in batch])
        except SpoolFull:
            self._full(batch)
            return True  # smaller ones may fit
        except SpoolFailed as failure:
            self._failed(failure)
            return False
        finally:
            self._measure()
        if self._room == math.inf:
            self._complaints.settled()
        if self._broker.connected and not self._closed:
            await self._take_back(numbers)  # the session came back meanwhile, and they are on their way
            return True
        for number, entry in zip(numbers, batch, strict=True):
            self._rely_on_disk(number, entry)
        self._measure()
        return True

    def _batch(self) -> list[_Fresh]:
        batch: list[_Fresh] = []
        size = 0
        for entry in self._fresh:
            needed = held_by(entry.publication)
            if size + needed >= self._room:
                continue
            if batch and size + needed > BATCH_BYTES:
                break
            batch.append(entry)
            size += needed
        return batch

    def _full(self, batch: list[_Fresh]) -> None:
        size = sum(held_by(entry.publication) for entry in batch)
        if self._room == math.inf:
            self._metrics.spool_events.labels("full").inc()
        self._complaints.full()
        self._room = size if len(batch) == 1 else size / 2

    async def _take_back(self, numbers: list[int]) -> None:
        try:
            await self._spool.delete([number for number in numbers if number not in self._waiters])
        except SpoolFailed as failure:
            self._failed(failure)
        self._measure()

    def _rely_on_disk(self, number: int, entry: _Fresh) -> None:
        self._metrics.spool_events.labels("stored").inc()
        self._leave(entry)
        if entry.sending is not None:
            entry.sending.cancel()
        if number <= self._sent_up_to:  # the same event was on disk, and the broker has got it meanwhile
            _answer([entry.done])
        else:
            self._waiters.setdefault(number, []).append(entry.done)

    # --- from the disk ---------------------------------------------------------------------------

    async def _resend(self) -> None:
        """Send what is on disk, oldest first, behind what is fresh, for ever."""
        while True:
            wanted = self._spool.count or not self._spool.is_open  # one that failed may hold some all the same
            if self._closed or not (wanted and self._broker.connected):
                await asyncio.sleep(LOOK_S)
                continue
            await self._until_gap()
            try:
                kept = await self._spool.oldest(self._sent_up_to)
            except SpoolFailed as failure:
                self._failed(failure)
                await asyncio.sleep(RETRY_S)
                continue
            if kept is not None:
                await self._resend_one(kept)
            else:
                await asyncio.sleep(self._delete_at - time.monotonic())
            if kept is not None or self._spool.count:
                await self._delete_sent()

    async def _until_gap(self) -> None:
        latest = time.monotonic() + GAP_S
        while self._fresh and time.monotonic() < latest:
            await asyncio.sleep(LOOK_S / 10)

    async def _resend_one(self, kept: Kept) -> None:
        publication = kept.publication
        self._resending = dict(publication.user_properties).get("id", ""), publication.topic
        error: BrokerError | None = None
        try:
            await self._broker.publish(_marked(publication))
        except BrokerUnavailable:
            return  # closing: it stays on disk
        except PublishRefused as refusal:
            error = refusal
            self._metrics.spool_events.labels("refused").inc()
            log.error(
                "The broker refused an answer from the disk; it is not sent",
                topic=publication.topic,
                event_id=self._resending[0],
                reason=refusal.message,
                fix=refusal.fix,
            )
        else:
            self._metrics.spool_events.labels("resent").inc()
        self._resending = None
        self._sent_up_to = kept.number
        _answer(self._waiters.pop(kept.number, ()), error)

    async def _delete_sent(self) -> None:
        """Even while the disk does not let it be deleted, the next is sent, and nothing twice; but a crash forgets."""
        if time.monotonic() < self._delete_at:
            return
        try:
            await self._spool.delete_oldest(self._sent_up_to)
        except SpoolFailed as failure:
            self._delete_at = time.monotonic() + RETRY_S
            self._failed(failure)
            return
        self._measure()
        if not self._spool.count:
            self._inherited = False
            self._complaints.settled()
            log.info("All answers on disk have been sent", file=str(self._spool.file))

    # --- both ------------------------------------------------------------------------------------

    def _failed(self, failure: SpoolFailed) -> None:
        if self._closed and not self._fresh:
            return
        self._metrics.spool_events.labels("damaged" if failure.lost else "failed").inc()
        self._complaints.failed(failure)
        if failure.lost:
            lost = PublishRefused(
                "The disk lost the answer while the broker was away",
                where=str(self._spool.file),
                fix="Check the disk; send the snapshot again",
            )
            for waiters in self._waiters.values():
                _answer(waiters, lost)
            self._waiters.clear()

    def _measure(self) -> None:
        self._metrics.spool_messages.set(self._spool.count)
        self._metrics.spool_bytes.set(self._spool.bytes)


def with_spool(broker: Broker, settings: Settings, folder: Path, metrics: Metrics) -> SpooledBroker:
    """The broker, with this gateway's spool in that folder.

    Raises ConfigError for a spool that this gateway must not touch; a disk that fails is said, and tried again later.
    """
    spool = Spool(folder, settings.gateway_id, settings.spool_max_bytes)
    try:
        if not spool.open():
            metrics.spool_events.labels("damaged").inc()
    except SpoolFailed as failure:
        fix = "Make SPOOL_DIR a writable folder with room; it is tried again"
        log.error("The spool cannot be opened", file=str(spool.file), reason=str(failure), fix=fix)
    return SpooledBroker(broker, spool, metrics)


def _marked(publication: Publication) -> Publication:
    """As it was, and marked for readers of either version of MQTT: it may have come before."""
    body = publication.payload.rstrip()
    payload = body[:-1] + b',"resent":true}' if len(body) > 2 and body.endswith(b"}") else publication.payload
    return replace(publication, payload=payload, user_properties=(*publication.user_properties, ("resent", "true")))


def _answer(waiters: Iterable[asyncio.Future[None]], error: BrokerError | None = None) -> None:
    for done in waiters:
        if done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
            done.exception()  # counts as seen, should nobody wait for it any more
