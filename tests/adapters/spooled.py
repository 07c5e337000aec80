"""A gateway's session with a spool, on an in-memory broker; and what its viewer can tell of an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from gateway.adapters.spool import Spool, SpoolFailed
from gateway.adapters.spooling import SpooledBroker
from gateway.messages import Message, Publication
from gateway.metrics import Metrics
from gateway.testing import MemoryBroker
from tests.broker_session import DEADLINE_S, Running, until

GRACE_S = 0.05
MAX_BYTES = 2**20


def answer(number: int, kind: str = "ai_inference_result", topic: str = "out", size: int = 0) -> Publication:
    """An answer with a number of its own, so many bytes larger than need be."""
    body = json.dumps({"message_type": kind, "n": number, "_": "x" * size}).encode()
    return Publication(topic, body, user_properties=(("type", kind), ("id", f"{number}-{kind}")))


class Place:
    """A gateway's session with a spool, and a viewer on its topic."""

    def __init__(self, hub: MemoryBroker, folder: Path, grace_s: float, max_bytes: int) -> None:
        self.hub = hub
        self.metrics = Metrics()
        self.spool = Spool(folder, "gw", max_bytes)
        with suppress(SpoolFailed):
            self.spool.open()
        self.broker = SpooledBroker(hub.client("gateway"), self.spool, self.metrics, grace_s)
        self.session = Running(self.broker)
        self._publishing: list[asyncio.Task[None]] = []

    def publish(self, *publications: Publication) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.broker.publish(each)) for each in publications]
        self._publishing += tasks
        return tasks

    async def on_disk(self, count: int) -> None:
        await until(lambda: self.metrics.value("spool_messages") == count and self.broker.backlog == 0)

    def events(self, event: str) -> float:
        return self.metrics.value("spool_events_total", event=event)

    async def done(self) -> None:
        """Wait for all that was published; raises what a publisher would see."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*self._publishing)

    async def kill(self) -> None:
        """As kill -9: nobody stores anything any more, and the lock goes with the process."""
        await self.session.crash()
        for task in self._publishing:
            task.cancel()
        await self.spool.close()

    async def close(self) -> None:
        await self.session.close()
        await asyncio.gather(*self._publishing, return_exceptions=True)


@asynccontextmanager
async def place(
    hub: MemoryBroker, folder: Path, *, grace_s: float = GRACE_S, max_bytes: int = MAX_BYTES
) -> AsyncIterator[Place]:
    it = Place(hub, folder, grace_s, max_bytes)
    try:
        yield it
    finally:
        await it.close()


def number_of(message: Message) -> int:
    """The one that it was made with."""
    return int(json.loads(message.payload)["n"])


def resent(message: Message) -> bool:
    """Told the same way to readers of both versions of MQTT."""
    in_body = json.loads(message.payload).get("resent", False)
    assert (("resent", "true") in message.properties.user_properties) == in_body
    return bool(in_body)


async def seen_so_far(here: Place, viewer: Running) -> list[int]:
    """The numbers of all that the viewer got; a marker is the end."""
    await asyncio.gather(*here.publish(Publication("out", b'{"n": -1}')))
    found = []
    while (number := number_of(await viewer.next())) != -1:
        found.append(number)
    return found


def id_of(message: Message) -> str:
    """Its CloudEvents id."""
    return dict(message.properties.user_properties)["id"]
