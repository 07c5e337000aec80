"""Several workers behind one session, all in this process: the front's relay, and whole gateways at its channels."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from gateway.app import Gateway, Part
from gateway.errors import Outcome
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.testing import MemoryBroker, MemoryTriton
from gateway.testing.memory_broker import MemoryBrokerClient
from gateway.workers.aggregation import Merged, families
from gateway.workers.following_lease import FollowingLease
from gateway.workers.relay import LEAD, Relay
from gateway.workers.relayed_broker import RelayedBroker
from gateway.workers.standing import Standing
from gateway.workers.worker import give_metrics, tell_the_front
from tests.flow.builders import SNAPSHOT_TOPIC, settings, signature
from tests.harness import NO_HELMET, sees, until, write_model

WORKERS = 2


def detector() -> MemoryTriton:
    """A Triton whose detector always sees somebody without a helmet."""
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(NO_HELMET))
    return triton


@dataclass
class InProcessWorker:
    """One worker: a gateway, and what tells the front about it."""

    gateway: Gateway
    broker: RelayedBroker
    tasks: list[asyncio.Task[Any]]

    async def die(self) -> None:
        """End without a word, as after `kill -9`."""
        for task in self.tasks:
            task.cancel()
        self.broker.channel.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def stop(self) -> None:
        """End in order, as after SIGTERM."""
        self.gateway.stop()
        async with asyncio.timeout(20):
            await self.tasks[0]
        await self.die()


@dataclass
class WorkerSite:
    """The front's parts, the workers by their seats, and every message that came from them."""

    relay: Relay
    standing: Standing
    broker: MemoryBroker
    session: MemoryBrokerClient
    start: Callable[[int], Any]
    workers: dict[int, InProcessWorker] = field(default_factory=dict)
    seen: list[dict[str, Any]] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    sockets: list[Path] = field(default_factory=list)

    def snapshot(self, payload: bytes, topic: str = SNAPSHOT_TOPIC, **more: Any) -> None:
        self.broker.publish(topic, payload, **more)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [body for body in self.seen if body["message_type"] == kind]

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.of("ai_inference_result")

    async def answered(self, count: int) -> None:
        def answers() -> int:
            return len({body["result_id"] for body in self.results + self.of("ai_inference_error")})

        await until(lambda: answers() >= count, f"{count} answers")

    async def acknowledged(self) -> None:
        """Wait until the broker waits for nothing, so that all outcomes are counted too."""
        await until(lambda: not self.broker._sessions["gateway"].unacknowledged, "all acknowledgements")

    async def merged(self) -> Merged:
        self.metrics.broker_connected.set(self.session.connected)
        return Merged(families(self.metrics.registry), await self.relay.scrape())

    async def outcomes(self) -> dict[str, int]:
        value = (await self.merged()).value
        counts = {str(each): int(value("snapshots_total", outcome=str(each))) for each in Outcome}
        return {name: count for name, count in counts.items() if count}

    async def kill(self, index: int) -> None:
        """As the supervisor sees it when a process dies."""
        await self.workers.pop(index).die()
        await until(lambda: self.relay.seats[index].channel is None, "the front to notice")
        self.relay.keep_counts(index)


def with_detector(repository: Path) -> None:
    """A detector, unless the repository has a model."""
    if not list(repository.glob("*/model.yaml")):
        write_model(repository)


@contextlib.asynccontextmanager
async def worker_site(
    repository: Path, triton: Callable[[], MemoryTriton] = detector, **more: Any
) -> AsyncIterator[WorkerSite]:
    """WORKERS gateways that are ready, and the relay between them and a MemoryBroker."""
    with_detector(repository)
    config = settings(model_repository=repository, workers=WORKERS, **more)
    broker = MemoryBroker()
    session = broker.client("gateway", [pattern.subscription for pattern in config.patterns])
    viewer = broker.client("viewer", ["edge-ai/+/+/+/ai/#", "edge-ai/+/+/ai/#"])
    folder = Path(tempfile.mkdtemp(prefix="workers-"))  # a socket's path has to be short

    front_metrics = Metrics()

    def ask_again(why: str) -> None:
        place.reopened.append(why)
        session.lose()

    lost = front_metrics.ignored_messages.labels("worker_away").inc
    relay = Relay(Live(config), session, WORKERS, (), ask_again, lost)

    async def start(index: int) -> None:
        mine, its = socket.socketpair()
        metrics = Metrics()
        relayed = RelayedBroker(lambda: give_metrics(relayed, metrics))
        path = place.sockets[index]
        path.unlink(missing_ok=True)
        lease = None if index == LEAD else FollowingLease()
        part = Part(path, index == LEAD, lambda: relayed.finish_by)
        gateway = Gateway(config, relayed, triton(), metrics, lease=lease, part=part)
        channel = relay.attach(index, lambda: None)
        await channel.open(mine)
        relay.greet(channel)
        await relayed.channel.open(its)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(gateway.run()),
            asyncio.create_task(tell_the_front(relayed, gateway.health, gateway.live, gateway.serving)),
        ]
        place.workers[index] = InProcessWorker(gateway, relayed, tasks)

    place = WorkerSite(relay, Standing(relay.seats, session), broker, session, start, metrics=front_metrics)
    place.sockets = [folder / f"{index}" for index in range(WORKERS)]

    async def view() -> None:
        async for message in viewer.messages():
            viewer.acknowledge(message)
            if message.payload:
                place.seen.append(msgspec.json.decode(message.payload))

    work = (viewer.run(), view(), session.run(), relay.run(), relay.tell_sessions(), relay.watch_seats())
    tasks = [asyncio.create_task(each) for each in work]
    try:
        for index in range(WORKERS):
            await start(index)
        await until(lambda: place.standing.report().ready, "both workers to be ready")
        yield place
    finally:
        for worker in place.workers.values():
            await worker.stop()
        await session.close()
        await viewer.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
