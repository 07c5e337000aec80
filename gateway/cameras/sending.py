"""Sends the newest picture of each camera whenever its turn comes, over one session with the broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from gateway.allocator import Allocator
from gateway.cameras.newest import Newest, Picture
from gateway.cameras.reading import Source, start_reading
from gateway.cameras.spec import CameraSource
from gateway.cameras.status import WRITE_EVERY_S, Status, write_health
from gateway.errors import BrokerError, ConfigError, UserError
from gateway.messages import Publication
from gateway.ports import Broker
from gateway.tasks import set_within
from gateway.terminal.send import json_snapshot
from gateway.terminal.threads import apart

log = structlog.get_logger(__name__)

PUBLISH_LIMIT_S = 5.0
"""How long the broker may take for one: after that a newer one is worth more."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One camera with where its pictures come from and go to."""

    camera: CameraSource
    source: Source
    topic: str


async def run_cameras(broker: Broker, feeds: Sequence[Feed], stopping: asyncio.Event, health_file: Path | None) -> None:
    """Read and send all of them until `stopping` is set, then leave the broker in order.

    Raises a BrokerError where the session cannot go on, and ConfigError where the file of the health cannot be written
    at the start.
    """
    cameras = {feed.camera.device: Status(feed.camera.rate) for feed in feeds}
    if health_file is not None:
        write_health(health_file, cameras)  # whatever a former process has written is not true any more
    lasting = {asyncio.create_task(broker.run(), name="broker"), asyncio.create_task(Allocator().run(), name="memory")}
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_until_the_end(lasting, stopping))
            for index, feed in enumerate(feeds):
                delay_s = index / len(feeds) / feed.camera.rate  # not all at the same moment
                group.create_task(_Sender(broker, feed, cameras[feed.camera.device]).run(stopping, delay_s))
            if health_file is not None:
                group.create_task(_keep_writing(health_file, cameras, stopping))
    finally:
        await broker.close()
        for task in lasting:
            task.cancel()
        await asyncio.wait(lasting)


async def _until_the_end(lasting: set[asyncio.Task[None]], stopping: asyncio.Event) -> None:
    """Wait for the stop; what one of the tasks fails with ends all."""
    stop = asyncio.create_task(stopping.wait())
    try:
        done, _ = await asyncio.wait({*lasting, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
    for task in done:
        task.result()


async def _keep_writing(path: Path, cameras: Mapping[str, Status], stopping: asyncio.Event) -> None:
    failed = False
    while not await set_within(stopping, WRITE_EVERY_S):
        try:
            await apart(lambda: write_health(path, cameras))
        except ConfigError as error:  # a full disk ends no camera
            if not failed:
                log.warning("The file of the health is not written", file=str(path), reason=error.message)
            failed = True
        else:
            failed = False


class _Sender:
    """One camera's turns."""

    def __init__(self, broker: Broker, feed: Feed, status: Status) -> None:
        self._broker = broker
        self._camera = feed.camera
        self._source = feed.source
        self._topic = feed.topic
        self._status = status

    async def run(self, stopping: asyncio.Event, delay_s: float) -> None:
        """Until the end. A turn that comes too late is not made up, and without a session pictures are left out."""
        newest = Newest()
        start_reading(self._camera, self._source, newest, self._status)
        due = time.monotonic() + delay_s
        try:
            while not await set_within(stopping, due - time.monotonic()):
                due = max(due + 1 / self._camera.rate, time.monotonic())
                # Looked at also while the broker is away: a thread that has failed is not to be overlooked.
                if (picture := newest.take()) is not None and self._broker.connected:
                    await self._send(picture)
        finally:
            newest.close()

    async def _send(self, picture: Picture) -> None:
        try:
            publication = await asyncio.to_thread(self._made, picture)
            async with asyncio.timeout(PUBLISH_LIMIT_S):
                await self._broker.publish(publication)
        except UserError as error:  # a frame that is too large
            self._complain(f"{error.message}. {error.fix}")
        except BrokerError as error:
            error.__traceback__ = None  # its frames and the snapshot in them would keep each other alive
            self._complain(str(error))
        except TimeoutError:
            self._complain(f"the broker has not acknowledged it within {PUBLISH_LIMIT_S:g} s")
        else:
            self._status.taken()

    def _made(self, picture: Picture) -> Publication:
        content = picture.encoded()
        if self._camera.form == "raw":
            return Publication(self._topic, content)
        taken_at = {} if picture.taken_at is None else {"timestamp": round(picture.taken_at, 3)}
        return Publication(self._topic, json_snapshot(content, self._camera.device, **taken_at))

    def _complain(self, reason: str) -> None:
        if self._status.refused(reason):
            log.warning(
                "A camera's snapshot was not sent", device=self._camera.device, topic=self._topic, reason=reason
            )
