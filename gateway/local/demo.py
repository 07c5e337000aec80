"""`make demo`: broker, Triton, gateway and cameras on this machine, results before your eyes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.config import Settings, load_settings
from gateway.errors import StackError
from gateway.flow.acks import Ticket
from gateway.flow.ingest import identify, open_message, take_snapshot
from gateway.local.annotate import annotate
from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import JSON_DEVICE, RAW_DEVICE
from gateway.local.processes import LOOPBACK, ChildProcess, free_ports
from gateway.local.tritonserver import EmbeddedTriton
from gateway.logs import configure_logging
from gateway.messages import Message
from gateway.terminal.lines import parse_message, readable_line
from gateway.terminal.watch import watched_topics

KEPT_PICTURES = 5
RECENT_SNAPSHOTS = 64
READY_TIMEOUT_S = 60.0
GATEWAY_GRACE_S = 3.0
SETTLE_S = 3.0
"""After the cameras stop: until the last results are in."""


class Show:
    """What came by: the lines, the figures for the summary, the last annotated pictures."""

    def __init__(self, settings: Settings, output: Path) -> None:
        self._settings = settings
        self._output = output
        self._snapshots: dict[str, bytes] = {}
        self._pictures: Counter[str] = Counter()
        self._writing = True
        self.counts: Counter[str] = Counter()
        self.match: Counter[object] = Counter()
        self.total_ms: list[float] = []
        self.variant_ms: dict[str, list[float]] = {}

    async def see(self, message: Message) -> None:
        """Take one message off the broker, of a camera or of the gateway."""
        line = readable_line(message.topic, message.payload)
        if line is None:
            self._remember(message)
            return
        print(line, flush=True)
        body = parse_message(message.payload) or {}
        match body.get("message_type"):
            case "ai_inference_result":
                self.counts["results"] += 1
                self.total_ms.append(body["metadata"]["timings_ms"]["total"])
                if body["metadata"]["selection"]["policy"] != "dual":  # otherwise the comparison has the times of both
                    self.variant_ms.setdefault(body["backend_used"], []).append(body["inference_time_ms"])
                await self._draw(body)
            case "dual_backend_comparison":
                self.counts["comparisons"] += 1
                self.match[body["performance_delta"]["predictions_match"]] += 1
                for name, entry in body["backends"].items():
                    if "error" not in entry:
                        self.variant_ms.setdefault(name, []).append(entry["inference_time_ms"])
            case "ai_inference_error":
                self.counts["errors"] += 1

    def _remember(self, message: Message) -> None:
        self.counts["snapshots"] += 1
        origin = identify(message, Ticket(message), self._settings.patterns, self._settings.place)
        image = take_snapshot(open_message(message, origin, self._settings.max_payload_bytes)).image
        self._snapshots[origin.result_id] = image
        while len(self._snapshots) > RECENT_SNAPSHOTS:
            del self._snapshots[next(iter(self._snapshots))]

    async def _draw(self, body: dict[str, Any]) -> None:
        image = self._snapshots.get(body["result_id"])
        if image is None or not self._writing:
            return
        device = body["device_id"]
        path = self._output / f"{device}-{self._pictures[device] % KEPT_PICTURES + 1}.jpg"
        self._pictures[device] += 1
        try:
            await asyncio.to_thread(annotate, image, body, path)
        except OSError as error:
            self._writing = False
            print(f"Pictures are no longer saved in {self._output}: {error.strerror}", file=sys.stderr)

    def summary(self) -> str:
        """The figures at the end."""
        lines = [
            "",
            f"snapshots    {self.counts['snapshots']}",
            f"results      {self.counts['results']}",
            f"comparisons  {self.counts['comparisons']} ({self.match[True]} with the same predictions)",
            f"errors       {self.counts['errors']}",
            "",
            "milliseconds           p50      p95      p99",
            f"snapshot to result {_percentiles(self.total_ms)}",
        ]
        lines += [f"variant {name:<10} {_percentiles(times)}" for name, times in sorted(self.variant_ms.items())]
        if self._pictures:
            lines += ["", f"Annotated pictures: {self._output.resolve()}"]
        return "\n".join(lines)


def _percentiles(values: list[float]) -> str:
    if not values:
        return "       -        -        -"
    ordered = sorted(values)
    return " ".join(f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:8.1f}" for share in (0.5, 0.95, 0.99))


def run_demo(repository: Path, *, seconds: float | None, rate: float, output: Path) -> int:
    """Run until Ctrl-C or for `seconds` of results; exit code 0 only if results flowed."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_sigterm_as_interrupt())
            return _run_demo(stack, repository, seconds=seconds, rate=rate, output=output)
        except KeyboardInterrupt:
            print("\nStopping.", flush=True)
            return 128 + signal.SIGINT


def _run_demo(
    stack: contextlib.ExitStack, repository: Path, *, seconds: float | None, rate: float, output: Path
) -> int:
    configure_logging("warning", "text")
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    broker = stack.enter_context(EmbeddedBroker())
    _say(started, f"Broker   {broker.name} at {broker.host}:{broker.port}")
    triton = stack.enter_context(EmbeddedTriton(repository))
    _say(started, f"Triton   gRPC {triton.grpc_url}, metrics {triton.metrics_url}")
    http_port = free_ports(1)[0]
    environment = {
        **os.environ,
        "AIO_BROKER_HOSTNAME": broker.host,
        "AIO_BROKER_TCP_PORT": str(broker.port),
        "MQTT_PROTOCOL": broker.protocol,
        "TRITON_GRPC_URL": triton.grpc_url,
        "TRITON_METRICS_URL": triton.metrics_url,
        "MODEL_REPOSITORY": str(repository),
        "HTTP_HOST": LOOPBACK,
        "HTTP_PORT": str(http_port),
        "LOG_FORMAT": "text",
        "ENABLE_DUAL_BACKEND": os.environ.get("ENABLE_DUAL_BACKEND", "true"),
    }
    os.environ.update(environment)
    gateway = _child(stack, "the gateway", ["-m", "gateway", "serve"], environment, GATEWAY_GRACE_S)
    _wait_ready(gateway, http_port)
    _say(started, f"Gateway  http://{LOOPBACK}:{http_port} (/ready, /metrics)")
    camera_arguments = ["-m", "gateway.local.camera", "--host", broker.host, "--port", str(broker.port)]
    camera_arguments += ["--protocol", broker.protocol, "--rate", str(rate)]
    settings = load_settings()
    show = Show(settings, output)
    mqtt = MqttSettings(
        client_id="demo-viewer",
        host=broker.host,
        port=broker.port,
        protocol=broker.protocol,
        session_expiry_s=0,
        subscriptions=(
            "edge-ai/+/+/+/camera/snapshots",
            f"azure-iot-operations/data/{RAW_DEVICE}/+",
            *watched_topics(settings),
        ),
    )
    _say(started, f"Cameras  {JSON_DEVICE} sends JSON, {RAW_DEVICE} sends JPEG, {rate:g} frames a second together")
    with contextlib.ExitStack() as cameras:
        camera = _child(cameras, "the cameras", camera_arguments, environment, 1.0)
        ended = asyncio.run(_watch(MqttBroker(mqtt), show, seconds, (camera, gateway), cameras))
    print(show.summary(), flush=True)
    if ended:
        raise StackError(f"{ended.name} ended by itself\n{ended.log_excerpt()}", fix="See the lines above")
    return 0 if show.counts["results"] else 1


async def _watch(
    broker: MqttBroker,
    show: Show,
    seconds: float | None,
    children: tuple[ChildProcess, ...],
    cameras: contextlib.ExitStack,
) -> ChildProcess | None:
    """Show messages until the time is over or Ctrl-C; returns the child that ended by itself, if one did."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    session = asyncio.create_task(broker.run(), name="broker")
    reading = asyncio.create_task(_read(broker, show), name="reading")
    deadline = None if seconds is None else time.monotonic() + seconds
    dead = None
    while not over.is_set() and (deadline is None or time.monotonic() < deadline):
        dead = next((child for child in children if not child.running), None)
        if dead:
            break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await over.wait()
    await asyncio.to_thread(cameras.close)
    settle = time.monotonic() + (0 if over.is_set() or dead else SETTLE_S)
    while time.monotonic() < settle and show.counts["results"] + show.counts["errors"] < show.counts["snapshots"]:
        await asyncio.sleep(0.05)
    await broker.close()
    await asyncio.gather(session, reading)
    return dead


async def _read(broker: MqttBroker, show: Show) -> None:
    async for message in broker.messages():
        broker.acknowledge(message)
        await show.see(message)


def _child(
    stack: contextlib.ExitStack, name: str, arguments: list[str], environment: dict[str, str], grace: float
) -> ChildProcess:
    child = ChildProcess(name, [sys.executable, *arguments], env=environment)
    child.start()
    stack.callback(child.stop, grace)
    return child


def _wait_ready(gateway: ChildProcess, port: int) -> None:
    url = f"http://{LOOPBACK}:{port}/ready"

    def ready() -> bool:
        try:
            return httpx.get(url, timeout=1.0, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    gateway.wait_ready(ready, READY_TIMEOUT_S, fix="See the gateway's log above")


def _say(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """While nothing else handles it, SIGTERM ends the demo as Ctrl-C does, so that the children are stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
