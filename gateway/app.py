"""Composition: what is started in which order, and how it stops.

Stop mirrors start: not ready -> stop reading, stay connected -> finish within the drain timeout -> leave the rest
unacknowledged -> disconnect -> HTTP last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gateway import __version__
from gateway.admin.api import Api
from gateway.admin.command_desk import CommandDesk
from gateway.admin.console import Console
from gateway.admin.guard import TokenGuard
from gateway.admin.health import Health
from gateway.admin.http import HttpServer
from gateway.admin.infer import InferApi
from gateway.admin.kserve import KServe
from gateway.admin.model_commands import ModelCommandTopic
from gateway.admin.models_topic import ModelsTopic
from gateway.admin.status import StatusPublisher, Values, serving, status_publication
from gateway.affinity import Cores, cores_for
from gateway.allocator import Allocator
from gateway.config import Settings
from gateway.config_reload import Reloader
from gateway.errors import BrokerError
from gateway.flow.pipeline import Pipeline
from gateway.leaving import leave_groups
from gateway.live import Live
from gateway.logs import count_lines, finish_logging
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.models.figures import Measurements
from gateway.models.fleet import Fleet
from gateway.models.loader import Loader
from gateway.models.loops import loop_of, read_models, refuse_loops
from gateway.models.memory import Memory
from gateway.models.repository import LogicalModel, read_served
from gateway.models.watcher import DropWatcher
from gateway.ports import Broker, InferenceServer, SpanSink
from gateway.rollout.lease import FileLease, Lease, new_identity
from gateway.rollout.ledger import Ledger
from gateway.rollout.roller import Roller
from gateway.rollout.store import StateStore
from gateway.rollout.transaction import Tools
from gateway.rollout.verify import Checks
from gateway.service_manager import ServiceManager
from gateway.tasks import has_failed
from gateway.traces import Traces

if TYPE_CHECKING:  # off by default
    from gateway.admin.home_assistant import HomeAssistant

log = structlog.get_logger(__name__)

POLL_S = 0.02
REFUSAL_WORKERS = 16
"""Error messages that are on their way to the broker at once: under overload most of what comes is refused."""
CLOSE_LIMIT_S = 3.0
BROKER_CLOSE_LIMIT_S = 5.0
"""For what the broker's side still has to store; the disk of SPOOL_DIR may be one of a network that hangs."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a gateway does that is one of several workers: it answers, and the front says how all of them stand."""

    http_socket: Path
    """Where the front asks it."""
    speaks_of_models: bool
    """Whether it is the one that publishes how each model stands."""
    finish_by: Callable[[], float]
    """Until when the front waits for it after a stop (monotonic clock)."""


class Gateway:
    """One gateway between a broker and a Triton, or one of several workers that are one together."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        server: InferenceServer,
        metrics: Metrics,
        config_file: Path | None = None,
        checks: Checks | None = None,
        lease: Lease | None = None,
        part: Part | None = None,
        cores: Cores | None = None,
        spans: SpanSink | None = None,
    ) -> None:
        logical, errors = read_models(settings)
        self._allocator = Allocator()
        self._settings = settings
        self._part = part
        self._broker = broker
        self._server = server
        self._spans = spans
        self._metrics = metrics
        self.live = Live(settings)
        self.models = models = Models()
        self._fleet = Fleet(models, metrics, settings.default_backend)
        self._figures = Measurements(server, models, self._fleet)
        self._memory = Memory(self.live, self._fleet, self._figures)
        self._loader = Loader(server, models, self._fleet, metrics, self._memory)
        decoders = (cores or cores_for(settings)).decoding_pool()
        traces = None if spans is None else Traces(spans, self.live)
        self._home_assistant = _home_assistant(settings, broker, models, part)
        observers = () if self._home_assistant is None else (self._home_assistant,)
        self._pipeline = Pipeline(self.live, broker, server, models, metrics, decoders, traces, observers)
        lease = lease or FileLease(settings.state_dir, new_identity(settings.gateway_id))
        ledger = Ledger(StateStore(settings.state_dir), lease, settings.gateway_id)
        watcher = DropWatcher(settings.model_repository, settings.state_dir, settings.drop_quiet_s, settings.drop_watch)
        tools = Tools(
            self.live, server, self._fleet, self._loader, ledger, metrics, checks or Checks(),
            self._pipeline.aside, self._pipeline.in_flight, watcher, self._pipeline.end_model,
        )  # fmt: skip
        self.rollouts = Roller(tools, lease, lambda model: loop_of(self.live.current, model))
        self.rollouts.begin(logical, errors)
        self.health = Health(self.live, broker, self._loader, models, metrics, self.rollouts)
        self._status = StatusPublisher(settings, broker, self.health.report, self.serving, self._values)
        self._models_topic = ModelsTopic(settings, broker, models, self.rollouts)
        guard = TokenGuard(settings.api_token_file, settings.api_read_token_file)
        self._commands = ModelCommandTopic(settings, broker, CommandDesk(self.rollouts, models, metrics), models, guard)
        for topic in self._commands.topics:
            self._pipeline.intake.handlers[topic] = self._commands.take
        api = Api(self.live, self.health, models, metrics, self.rollouts, guard)
        self._console = Console(self.live, self._pipeline, broker, models, metrics, self.rollouts, api.status, guard)
        self._http = HttpServer(
            settings.http_host,
            settings.http_port,
            self.health,
            metrics,
            api,
            InferApi(self.live, self._pipeline.intake.ask, guard),
            KServe(self.health, models),
            path=part.http_socket if part else None,
            pages=[self._console],
            guard=guard,
        )
        self._reloader = Reloader(self.live, config_file, self._read_again, self.rollouts.take_over, metrics)
        self._stop = asyncio.Event()
        self._failed = False
        self._storing_hangs = False
        self.http_port = 0
        metrics.build_info.labels(__version__).set(1)
        count_lines(lambda level: metrics.log_events.labels(level).inc)

    def stop(self) -> None:
        """Ask for an orderly stop; `run` returns when it is done."""
        self._stop.set()

    @property
    def stuck(self) -> bool:
        """Whether a thread runs that will not end, so that the process cannot end in the usual way."""
        return self._pipeline.stuck or self._storing_hangs

    def serving(self) -> dict[str, dict[str, Any]]:
        """For each model the version of each variant that has one."""
        return serving(self.models)

    async def _values(self) -> Values:
        return self._metrics

    def reload(self) -> None:
        """Read the configuration again."""
        self._reloader.request()

    async def run(self, manager: ServiceManager | None = None) -> int:
        """Serve until `stop`; returns the exit code: 0, or 1 after an unexpected error."""
        self.http_port = await self._http.start()
        telling = asyncio.create_task((manager or ServiceManager()).tell(self._stop), name="service manager")
        log.info(
            "Gateway starts",
            version=__version__,
            broker=f"{self._settings.aio_broker_hostname}:{self._settings.aio_broker_tcp_port}",
            triton=self._settings.triton_grpc_url,
            http_port=self.http_port,
            models=sorted(self.models.current.models),
            topics=self._settings.mqtt_input_topics,
        )
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._watch(work, name), name=name) for name, work in self._work().items()]
                ready = group.create_task(self._say_ready(), name="say ready")
                await self._stop.wait()
                ready.cancel()
                await self._drain(tasks)
        finally:
            await self._server.close()
            await self._http.stop()
            if self._spans is not None:
                await self._spans.close()
            telling.cancel()
        log.info("Gateway stopped", failed=self._failed)
        return 1 if self._failed else 0

    def _work(self) -> dict[str, Coroutine[Any, Any, None]]:
        work = {
            "broker": self._broker.run(),
            "models": self._loader.run(),
            "figures": self._figures.run(),
            "memory": self._memory.run(),
            "rollouts": self.rollouts.run(),
            "model-commands": self._commands.run(),
            "intake": self._pipeline.intake.run(),
            "queue-models": self._pipeline.intake.watch_models(),
            "queue-deadlines": self._pipeline.intake.watch_deadlines(),
            "alerts": self._pipeline.watch_alerts(),
            "reload": self._reloader.run(),
            "allocator": self._allocator.run(),
            "console": self._console.run(),
        }
        if self._part is None:
            work["status"] = self._status.run()
        if self._part is None or self._part.speaks_of_models:
            work["models-topic"] = self._models_topic.run()
        if self._home_assistant is not None:
            work["home-assistant"] = self._home_assistant.run()
        for index in range(REFUSAL_WORKERS):
            work[f"refusals-{index}"] = self._pipeline.intake.answer_at_once()
        for index in range(self._settings.max_in_flight):
            work[f"worker-{index}"] = self._pipeline.work()
        return work

    async def _watch(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run one task; one that dies stops the gateway in order rather than quietly staying away."""
        if await has_failed(work, name, self._stop):
            self._failed = True
            self._stop.set()

    def _read_again(self, settings: Settings) -> list[LogicalModel]:
        """The models as their files read now; raises ConfigError for one that serves and cannot be read any more."""
        logical, errors = read_served(settings.model_repository, settings.model_config_path)
        for error in errors:
            if error.where.partition(":")[0] in self.rollouts.paths:
                raise error
        refuse_loops(settings)
        for model in logical:
            if objection := loop_of(settings, model):
                raise objection
        return logical

    async def _say_ready(self) -> None:
        was: bool | None = None
        while True:
            report = self.health.report()
            if report.ready != was:
                if report.ready:
                    log.info("Ready", degraded=report.degraded)
                else:
                    log.info("Not ready", reasons=report.reasons)
                was = report.ready
            await asyncio.sleep(0.1)

    async def _drain(self, tasks: list[asyncio.Task[None]]) -> None:
        """Finish what was accepted, then disconnect."""
        self.health.stopping = True
        self._pipeline.wind_down()
        log.info("Stopping: finishing what was accepted", limit_s=self.live.current.drain_timeout_s)
        deadline = time.monotonic() + self.live.current.drain_timeout_s
        if self._part is not None:
            deadline = min(deadline, self._part.finish_by())
        elif self._settings.mqtt_leave_group:
            await leave_groups(self._broker, self._pipeline.finished, self.live.current.drain_timeout_s / 2)
        by_name = {task.get_name(): task for task in tasks}
        by_name["intake"].cancel()
        while not self._all_said and time.monotonic() < deadline and not by_name["broker"].done():
            await asyncio.sleep(POLL_S)
        for name, task in by_name.items():
            if name != "broker":
                task.cancel()
        await asyncio.gather(*(task for name, task in by_name.items() if name != "broker"), return_exceptions=True)
        self._console.close()
        abandoned = self._pipeline.close()
        if abandoned:
            log.warning("Left to the broker, which sends them again", snapshots=abandoned)
        await self._say_offline()
        try:
            async with asyncio.timeout(BROKER_CLOSE_LIMIT_S):
                await self._broker.close()
        except TimeoutError:
            self._storing_hangs = True
            log.error("Not closed in time; what was to be stored may be lost", fix="Check the disk of SPOOL_DIR")
        await asyncio.wait([by_name["broker"]], timeout=CLOSE_LIMIT_S)
        by_name["broker"].cancel()

    @property
    def _all_said(self) -> bool:
        """Whether nothing is left to do but to say goodbye, and somebody hears it who waits for the end of an alert."""
        if self._broker.connected and self._pipeline.under_way:
            return False
        heard = self._broker.connected or self._spooled or not self._pipeline.alerts_pending
        return self._pipeline.idle and not self._broker.backlog and heard

    @property
    def _spooled(self) -> bool:
        """Whether what is said while the broker is away is said after the next start."""
        return self._settings.spool_dir is not None

    async def _say_offline(self) -> None:
        last: list[tuple[str, Coroutine[Any, Any, None]]] = []
        if self._broker.connected and self._part is None:
            offline = self._broker.publish(status_publication(self._settings, "offline", reason="stopped"))
            last.append(("the offline status", offline))
        if self._broker.connected or self._spooled:
            last.append(("the end of every alert", self._pipeline.end_alerts()))
        elif alerts := self._pipeline.alerts_pending:
            log.warning("Not published before the end", what="the end of every alert", alerts=alerts)
        if self._broker.connected and self._home_assistant is not None:
            last.append(("how cameras stand, for Home Assistant", self._home_assistant.settle()))
        for what, work in last:
            try:
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    await work
            except (BrokerError, TimeoutError):
                log.warning("Not published before the end", what=what)


def _home_assistant(settings: Settings, broker: Broker, models: Models, part: Part | None) -> HomeAssistant | None:
    """Who announces the cameras of this process to Home Assistant; None where that is off."""
    if settings.home_assistant_topic is None:
        return None
    from gateway.admin.home_assistant import HomeAssistant

    leads = part is None or part.speaks_of_models
    return HomeAssistant(settings, settings.home_assistant_topic, broker, models, announces_gateway=leads)


def stop_on_signals(gateway: Gateway) -> None:
    """SIGINT and SIGTERM stop in order, a second one at once, leaving open snapshots to the broker; SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    asked = False

    def handle(name: str) -> None:
        nonlocal asked
        if asked:
            log.warning("Second signal: ending at once", signal=name)
            finish_logging()
            os._exit(1)
        asked = True
        log.info("Signal received", signal=name)
        gateway.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle, number.name)
