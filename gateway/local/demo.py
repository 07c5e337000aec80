"""`make demo`: broker, Triton, gateway and cameras on this machine, results before your eyes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.config import Settings
from gateway.config_reading import load_settings
from gateway.errors import GatewayError, StackError
from gateway.local.backend_directory import find_stub, find_wheel
from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import JSON_DEVICE, RAW_DEVICE, SENSOR_DEVICE
from gateway.local.processes import LOOPBACK, ChildProcess, free_ports
from gateway.local.show import Show
from gateway.local.stack import TRACES_VARIABLE, traces_to
from gateway.local.tritonserver import EmbeddedTriton
from gateway.logs import configure_logging
from gateway.ports import Broker
from gateway.tasks import set_within
from gateway.terminal.progress import busy
from gateway.terminal.watch import watched_topics

SENSOR_MODEL = "temperature-anomaly"
READY_TIMEOUT_S = 180.0
GATEWAY_GRACE_S = 3.0
CAMERA_GRACE_S = 1.0
SHOWN = (
    "DEFAULT_BACKEND",
    "ENABLE_DUAL_BACKEND",
    "LOG_LEVEL",
    "MAX_IN_FLIGHT",
    "BUSINESS_UNIT",
    "FACILITY",
    "GATEWAY_ID",
    "CONSOLE",
    "API_TOKEN_FILE",
    "API_READ_TOKEN_FILE",
    TRACES_VARIABLE,
    "OTEL_TRACES_SAMPLER_ARG",
)
"""Settings of the environment that the demo's gateway takes over."""
SETTLE_S = 3.0
"""After the cameras stop: until the last results are in."""


def run_demo(repository: Path, *, seconds: float | None, rate: float, output: Path) -> int:
    """Run until Ctrl-C or for `seconds` of results; exit code 0 only if results flowed."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_sigterm_as_interrupt())
            return _run_demo(stack, repository, seconds=seconds, rate=rate, output=output)
        except KeyboardInterrupt:
            print("\nStopping.", flush=True)
            return 128 + signal.SIGINT
        except BrokenPipeError:  # `edge-gateway demo | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more
            return 128 + signal.SIGPIPE


def _run_demo(
    stack: contextlib.ExitStack, repository: Path, *, seconds: float | None, rate: float, output: Path
) -> int:
    find_stub(find_wheel())  # says what is not installed before anything is started
    configure_logging("warning", "text")
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    broker, gateway = _start_parts(stack, repository, started)
    settings = load_settings()
    show = Show(settings, output)
    viewer = MqttBroker(_viewer(settings, broker))
    _say(started, f"Cameras  {JSON_DEVICE} sends JSON, {RAW_DEVICE} sends JPEG, {rate:g} frames a second together")
    arguments = ["-m", "gateway.local.camera", "--host", broker.host, "--port", str(broker.port)]
    arguments += ["--protocol", broker.protocol, "--rate", str(rate)]
    if (repository / SENSOR_MODEL / "model.yaml").is_file():
        _say(started, f"Sensor   {SENSOR_DEVICE} sends temperatures, now and then a faulty one")
        arguments.append("--thermometer")
    with contextlib.ExitStack() as cameras:
        camera = _child(cameras, "the cameras", arguments, CAMERA_GRACE_S)
        failure = asyncio.run(show_until_over(viewer, show, seconds, (camera, gateway), cameras))
    print(show.summary(), flush=True)
    if failure:
        raise StackError(failure, fix="See the lines above")
    return 0 if show.counts["results"] else 1


def _start_parts(stack: contextlib.ExitStack, repository: Path, started: float) -> tuple[EmbeddedBroker, ChildProcess]:
    """The broker, Triton and a gateway between them that is ready; the gateway's settings go into os.environ."""
    broker = stack.enter_context(EmbeddedBroker())
    _say(started, f"Broker   {broker.name} at {broker.host}:{broker.port}")
    with busy("Starting Triton"):
        triton = stack.enter_context(EmbeddedTriton(repository, traces_to=traces_to()))
    _say(started, f"Triton   gRPC {triton.grpc_url}, metrics {triton.metrics_url}")
    http_port = free_ports(1)[0]
    # What a person has set for a site does not fit this one, but for what the demo can show.
    for name in {field.upper() for field in Settings.model_fields} | {"GATEWAY_CONFIG"}:
        if name not in SHOWN:
            os.environ.pop(name, None)
    os.environ.setdefault("ENABLE_DUAL_BACKEND", "true")
    os.environ.update(
        {
            "AIO_BROKER_HOSTNAME": broker.host,
            "AIO_BROKER_TCP_PORT": str(broker.port),
            "AIO_MQTT_USE_TLS": "false",
            "MQTT_PROTOCOL": broker.protocol,
            "TRITON_GRPC_URL": triton.grpc_url,
            "TRITON_METRICS_URL": triton.metrics_url,
            "MODEL_REPOSITORY": str(repository),
            # A gateway that runs on the same repository, with a Triton of its own, would decide for both.
            "MODEL_STATE_DIR": stack.enter_context(TemporaryDirectory(prefix="edge-gateway-demo-")),
            "HTTP_HOST": LOOPBACK,
            "HTTP_PORT": str(http_port),
            "LOG_FORMAT": "text",
        }
    )
    gateway = _child(stack, "the gateway", ["-m", "gateway", "serve"], GATEWAY_GRACE_S)
    with busy("Waiting until the gateway is ready"):
        _wait_ready(gateway, http_port)
    _say(started, f"Gateway  http://{LOOPBACK}:{http_port} (/ready, /metrics)")
    if os.environ.get("CONSOLE") != "off":
        _say(started, f"Console  http://{LOOPBACK}:{http_port}/ in a browser")
    return broker, gateway


def _viewer(settings: Settings, broker: EmbeddedBroker) -> MqttSettings:
    return MqttSettings(
        client_id="demo-viewer",
        host=broker.host,
        port=broker.port,
        protocol=broker.protocol,
        session_expiry_s=0,
        subscriptions=(
            "edge-ai/+/+/+/camera/snapshots",
            f"azure-iot-operations/data/{RAW_DEVICE}/+",
            "edge-ai/+/+/+/sensors/+",
            *watched_topics(settings),
        ),
    )


async def show_until_over(
    broker: Broker, show: Show, seconds: float | None, children: Sequence[ChildProcess], cameras: contextlib.ExitStack
) -> str | None:
    """Show messages until the time is over or Ctrl-C; returns what ended by itself before that, if anything did."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    tasks = (
        asyncio.create_task(broker.run(), name="the viewer's session with the broker"),
        asyncio.create_task(_read(broker, show), name="the viewer"),
    )
    deadline = None if seconds is None else time.monotonic() + seconds
    failure = None
    try:
        while not over.is_set() and (deadline is None or time.monotonic() < deadline):
            failure = _what_ended(children, tasks)
            if failure:
                break
            await set_within(over, 0.2)
        await asyncio.to_thread(cameras.close)
        settle = time.monotonic() + (0 if over.is_set() or failure else SETTLE_S)
        while time.monotonic() < settle and not show.settled:
            failure = _what_ended((), tasks)
            if failure:
                break
            await asyncio.sleep(0.05)
    finally:
        await broker.close()
        await asyncio.gather(*tasks, return_exceptions=True)
    return failure


def _what_ended(children: Sequence[ChildProcess], tasks: Sequence[asyncio.Task[None]]) -> str | None:
    for child in children:
        if not child.running:
            return f"{child.name} ended by itself{child.log_excerpt()}"
    for task in tasks:
        if task.done():
            error = task.exception()
            if isinstance(error, BrokenPipeError):
                raise error
            why = str(error) if isinstance(error, GatewayError) else repr(error)
            return f"{task.get_name()} ended by itself: {why}"
    return None


async def _read(broker: Broker, show: Show) -> None:
    async for message in broker.messages():
        broker.acknowledge(message)
        await show.see(message)


def _child(stack: contextlib.ExitStack, name: str, arguments: list[str], grace: float) -> ChildProcess:
    child = ChildProcess(name, [sys.executable, *arguments], env=os.environ)
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
