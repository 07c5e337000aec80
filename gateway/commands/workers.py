"""`serve --workers N`: how the front and a worker are put together."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.affinity import cores_for
from gateway.commands.serve import WorkerParts, compose, finish, session
from gateway.config import Settings
from gateway.service_manager import ServiceManager

if TYPE_CHECKING:
    from gateway.workers.front import Front


def run_front(settings: Settings, config_file: Path | None) -> int:
    """Run the first process, which starts the others; returns the exit code. Raises ConfigError."""
    from gateway.workers.processes import require_linux
    from gateway.workers.socket_folder import private_folder

    require_linux()
    for index in range(settings.workers):
        cores_for(settings, index, settings.workers)  # what is wrong with them is said once, and here
    manager = ServiceManager.of(os.environ)
    with private_folder() as folder:
        return asyncio.run(_front(settings, config_file, folder, manager))


async def _front(settings: Settings, config_file: Path | None, folder: Path, manager: ServiceManager) -> int:
    from gateway.live import Live
    from gateway.metrics import Metrics
    from gateway.thread_pool import use_fixed_threads
    from gateway.workers.front import Front
    from gateway.workers.processes import Workers
    from gateway.workers.relay import Relay
    from gateway.workers.standing import Standing
    from gateway.workers.surface import Surface

    use_fixed_threads()
    live, metrics = Live(settings), Metrics()
    broker, mqtt = session(settings, metrics)
    lost = metrics.ignored_messages.labels("worker_away").inc
    relay = Relay(live, broker, settings.workers, settings.command_topics, mqtt.ask_again, lost)
    sockets = [folder / f"worker-{index}" for index in range(settings.workers)]

    def command(index: int, channel: int) -> Sequence[str]:
        config = [] if config_file is None else ["--config", str(config_file)]
        place = ["--as-worker", str(index), str(channel), str(os.getpid()), "--http-socket", str(sockets[index])]
        return [sys.executable, "-m", "gateway", "serve", *config, *place]

    workers = Workers(relay, command, metrics.worker_restarts.inc)
    standing = Standing(relay.seats, broker)
    front = Front(live, broker, relay, workers, standing, metrics)
    place = settings.http_host, settings.http_port
    surface = Surface(place, relay.seats, sockets, standing, metrics, front.merged, settings)
    _pass_on_signals(front)
    return await front.run(surface, manager)


def _pass_on_signals(front: Front) -> None:
    """As one process does: SIGINT and SIGTERM stop in order, a second one at once; SIGHUP reloads."""
    from gateway.logs import finish_logging

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, front.reload)
    asked = False

    def handle() -> None:
        nonlocal asked
        if asked:
            front.kill()
            finish_logging()
            os._exit(1)
        asked = True
        front.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle)


def run_worker(settings: Settings, config_file: Path | None, as_worker: tuple[int, int, int], http_socket: Path) -> int:
    """Run one of several workers; `as_worker` is its index, the descriptor of its channel, and the front's id."""
    from gateway.logs import name_process
    from gateway.workers.processes import end_with

    index, channel, parent = as_worker
    end_with(parent)
    http_socket.unlink(missing_ok=True)  # of the one before
    name_process(worker=index + 1)
    cores = cores_for(settings, index, settings.workers)
    cores.pin_loop()

    async def run() -> int:
        from gateway.allocator import set_start_aside
        from gateway.app import Part, stop_on_signals
        from gateway.metrics import Metrics
        from gateway.thread_pool import use_fixed_threads
        from gateway.workers.following_lease import FollowingLease
        from gateway.workers.relay import LEAD
        from gateway.workers.relayed_broker import RelayedBroker
        from gateway.workers.worker import give_metrics, tell_the_front

        use_fixed_threads()
        metrics = Metrics()
        broker = RelayedBroker(lambda: give_metrics(broker, metrics))
        lease = None if index == LEAD else FollowingLease()
        parts = WorkerParts(broker, Part(http_socket, index == LEAD, lambda: broker.finish_by), lease)
        gateway = compose(settings, config_file, metrics, parts, cores)
        stop_on_signals(gateway)
        set_start_aside()
        await broker.channel.open(socket.socket(fileno=channel))
        telling = asyncio.create_task(tell_the_front(broker, gateway.health, gateway.live, gateway.serving))
        try:
            return finish(await gateway.run(), gateway.stuck)
        finally:
            telling.cancel()

    return asyncio.run(run())
