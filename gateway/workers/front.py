"""What runs in the first process of `serve --workers N`: one session, one HTTP surface, and the workers behind them.

Stop mirrors start: not ready -> pass on nothing more -> the workers finish, publishing through here -> offline ->
disconnect -> HTTP last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import structlog

from gateway import __version__
from gateway.admin.status import StatusPublisher, status_publication
from gateway.allocator import Allocator
from gateway.errors import BrokerError
from gateway.leaving import leave_groups
from gateway.live import Live
from gateway.logs import LEVEL, count_lines
from gateway.metrics import Metrics
from gateway.ports import Broker
from gateway.service_manager import ServiceManager
from gateway.tasks import has_failed
from gateway.workers.aggregation import Merged, families
from gateway.workers.processes import Workers
from gateway.workers.relay import Relay
from gateway.workers.standing import Standing
from gateway.workers.surface import Surface

log = structlog.get_logger(__name__)

MARGIN_S = 15.0
"""Beyond DRAIN_TIMEOUT_S, until workers that have not ended are killed."""
SCRAPE_EVERY_S = 5.0
"""So much of what a worker had counted is missing at most when it is killed."""
CLOSE_LIMIT_S = 5.0


class Front:
    """All parts are given; it starts and stops them in order."""

    def __init__(
        self, live: Live, broker: Broker, relay: Relay, workers: Workers, standing: Standing, metrics: Metrics
    ) -> None:
        self._live = live
        self._broker = broker
        self._relay = relay
        self._workers = workers
        self._standing = standing
        self._metrics = metrics
        self._status = StatusPublisher(live.current, broker, standing.report, standing.serving, self.merged)
        self._allocator = Allocator()
        self._stop = asyncio.Event()
        self._failed = False
        metrics.build_info.labels(__version__).set(1)
        count_lines(lambda level: metrics.log_events.labels(level).inc)
        LEVEL.changed = relay.tell_level

    def stop(self) -> None:
        """Ask for an orderly stop."""
        self._stop.set()

    def reload(self) -> None:
        """Have all workers read the configuration again."""
        self._workers.reload()

    def kill(self) -> None:
        """End the workers at once."""
        self._workers.kill()

    async def merged(self) -> Merged:
        """The metrics of all processes as they are now."""
        samples = await self._relay.scrape()
        self._metrics.ready.set(self._standing.report().ready)
        self._metrics.broker_connected.set(self._broker.connected)
        self._metrics.outbox_bytes.set(self._broker.backlog)
        self._metrics.workers.set(sum(seat.channel is not None for seat in self._relay.seats))
        return Merged(families(self._metrics.registry), samples)

    async def run(self, surface: Surface, manager: ServiceManager) -> int:
        """Serve until `stop`; returns the exit code, the worst of all processes."""
        settings = self._live.current
        port = await surface.start()
        telling = asyncio.create_task(manager.tell(self._stop), name="service manager")
        log.info(
            "Gateway starts",
            version=__version__,
            broker=f"{settings.aio_broker_hostname}:{settings.aio_broker_tcp_port}",
            triton=settings.triton_grpc_url,
            http_port=port,
            workers=len(self._relay.seats),
            topics=settings.mqtt_input_topics,
        )
        try:
            async with asyncio.TaskGroup() as group:
                kept = [
                    group.create_task(self._workers.keep(seat.index), name=f"worker {seat.index + 1}")
                    for seat in self._relay.seats
                ]
                for task in kept:
                    task.add_done_callback(lambda _task: self._stop.set())  # for good: nothing else ends it
                tasks = [group.create_task(self._watch(work, name), name=name) for name, work in self._work().items()]
                await self._stop.wait()
                await self._drain(kept, tasks)
        finally:
            await surface.stop()
            telling.cancel()
        code = max(self._workers.exit_code, int(self._failed))
        log.info("Gateway stopped", exit_code=code)
        return code

    def _work(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "broker": self._session(),
            "sessions": self._relay.tell_sessions(),
            "messages": self._relay.run(),
            "watch workers": self._relay.watch_seats(),
            "status": self._status.run(),
            "metrics": self._look_at_metrics(),
            "allocator": self._allocator.run(),
            "say ready": self._say_ready(),
        }

    async def _session(self) -> None:
        await self._relay.all_there()
        await self._broker.run()

    async def _look_at_metrics(self) -> None:
        while True:
            await asyncio.sleep(SCRAPE_EVERY_S)
            await self._relay.scrape()

    async def _say_ready(self) -> None:
        was: bool | None = None
        while True:
            report = self._standing.report()
            if report.ready != was:
                was = report.ready
                if report.ready:
                    log.info("Ready", degraded=report.degraded, workers=len(self._relay.seats))
                else:
                    log.info("Not ready", reasons=report.reasons)
            await asyncio.sleep(0.1)

    async def _watch(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run one task; one that dies stops the gateway in order."""
        if await has_failed(work, name, self._stop):
            self._failed = True
            self._stop.set()

    async def _drain(self, kept: list[asyncio.Task[None]], tasks: list[asyncio.Task[None]]) -> None:
        self._standing.stopping = True
        limit_s = self._live.current.drain_timeout_s
        deadline = time.monotonic() + limit_s
        if self._live.current.mqtt_leave_group:
            await leave_groups(self._broker, self._relay.finished, limit_s / 2)
        self._relay.stop(deadline)
        log.info("Stopping: the workers finish what was accepted", limit_s=round(deadline - time.monotonic(), 1))
        await self._relay.scrape()  # by the same channel, so that they know the deadline before they are to stop
        self._workers.stop()
        await asyncio.wait(kept, timeout=max(0.0, deadline - time.monotonic()) + MARGIN_S)
        self._workers.kill()
        await asyncio.wait(kept)
        by_name = {task.get_name(): task for task in tasks}
        for name, task in by_name.items():
            if name not in ("broker", "messages", "sessions"):
                task.cancel()
        await self._say_offline()
        started = time.monotonic()
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._broker.close()
        except TimeoutError:
            log.error("Not closed in time; what was to be stored may be lost", fix="Check the disk of SPOOL_DIR")
        await asyncio.wait(tasks, timeout=max(0.1, CLOSE_LIMIT_S - (time.monotonic() - started)))
        for task in tasks:
            task.cancel()

    async def _say_offline(self) -> None:
        if not self._broker.connected:
            return
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._broker.publish(status_publication(self._live.current, "offline", reason="stopped"))
        except (BrokerError, TimeoutError):
            log.warning("Not published before the end", what="the offline status")
