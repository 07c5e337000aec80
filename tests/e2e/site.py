"""A gateway as a process between real parts, a viewer on its topics, and a camera."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import queue
import shutil
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties

from gateway.local.broker import EmbeddedBroker
from gateway.local.processes import ChildProcess, free_ports
from gateway.local.tritonserver import EmbeddedTriton

REPOSITORY = Path(__file__).parents[2] / "model_repository"
TIMEOUT_S = 180.0
ANSWERS = ("ai_inference_result", "ai_inference_error")
"""The kinds of messages of which each snapshot gets exactly one."""
_numbers = itertools.count(1)


@functools.cache
def _state_dir() -> str:
    """One for all gateways of a run: the second one remembers what the first has verified. Not in the sources."""
    folder = tempfile.mkdtemp(prefix="edge-gateway-state-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def until(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT_S) -> None:
    """Poll a condition; fails after the deadline, saying what was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


class Client:
    """A plain paho client, independent of the gateway's own adapter."""

    def __init__(self, port: int, *topics: str, on_message: Callable[[paho.MQTTMessage], None] | None = None) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, f"test-{uuid.uuid4().hex}", protocol=paho.MQTTv5)
        self._client.max_queued_messages_set(0)
        if on_message is not None:
            self._client.on_message = lambda _client, _data, message: on_message(message)
        self._client.on_connect = lambda client, *_: (
            client.subscribe([(topic, 1) for topic in topics]) if topics else None
        )
        subscribed: queue.Queue[bool] = queue.Queue()
        self._client.on_subscribe = lambda *_: subscribed.put(True)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if topics:
            subscribed.get(timeout=TIMEOUT_S)

    def publish(self, topic: str, payload: bytes, properties: Properties | None = None, qos: int = 1) -> None:
        """Publish and wait for the broker's acknowledgement."""
        info = self._client.publish(topic, payload, qos=qos, properties=properties)
        info.wait_for_publish(TIMEOUT_S)
        assert info.is_published()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def payloads(broker: EmbeddedBroker, topic: str) -> Iterator[list[bytes]]:
    """What comes on a topic while the block runs."""
    if broker.protocol != "5":
        pytest.skip("the client of this test speaks MQTT 5")
    seen: list[bytes] = []
    client = Client(broker.port, topic, on_message=lambda message: seen.append(bytes(message.payload)))
    try:
        yield seen
    finally:
        client.close()


class RealSite:
    """One gateway process with topics and a client id of its own, so that tests do not see each other."""

    def __init__(self, broker: EmbeddedBroker, triton: EmbeddedTriton, **environment: str) -> None:
        self.broker = broker
        self.triton = triton
        self.unit = f"unit{next(_numbers)}"
        self.http_port = free_ports(1)[0]
        self._environment = environment
        self.launcher: tuple[str, ...] = ()
        """A program that starts the gateway's, with its arguments."""
        self._process: ChildProcess | None = None
        self._viewer: Client | None = None
        self._camera: Client | None = None
        self._seen: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._answered: set[str] = set()

    @property
    def topic(self) -> str:
        """Where a camera of this site publishes."""
        return f"edge-ai/{self.unit}/plant/gw/camera/snapshots"

    def sensor_topic(self, sensor: str) -> str:
        """Where a sensor of this site publishes."""
        return f"edge-ai/{self.unit}/plant/gw/sensors/{sensor}"

    def raw_topic(self, device: str) -> str:
        """Where the Media Connector publishes the pictures of a camera."""
        return f"azure-iot-operations/data/{device}/{self.unit}"

    def start(self, **environment: str) -> None:
        """Start the gateway process; does not wait."""
        given = {
            "AIO_BROKER_HOSTNAME": self.broker.host,
            "AIO_BROKER_TCP_PORT": str(self.broker.port),
            "TRITON_GRPC_URL": self.triton.grpc_url,
            "TRITON_METRICS_URL": self.triton.metrics_url,
            "MODEL_REPOSITORY": str(REPOSITORY),
            "MODEL_STATE_DIR": _state_dir(),
            "MQTT_INPUT_TOPICS": f"edge-ai/{self.unit}/{{facility}}/{{gateway_id}}/camera/snapshots,"
            f"azure-iot-operations/data/{{asset}}/{self.unit},"
            f"edge-ai/{self.unit}/{{facility}}/{{gateway_id}}/sensors/{{sensor}}",
            "BUSINESS_UNIT": self.unit,
            "GATEWAY_ID": "gw",
            "AIO_MQTT_CLIENT_ID": f"gateway-{self.unit}",
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(self.http_port),
            "LOG_FORMAT": "json",
        }
        environ = {**os.environ, **given, **self._environment, **environment}
        self._process = ChildProcess(
            "the gateway", [*self.launcher, sys.executable, "-m", "gateway", "serve"], env=environ
        )
        self._process.start()

    @property
    def process(self) -> ChildProcess:
        assert self._process is not None
        return self._process

    def connect(self) -> None:
        """Connect the viewer and the camera to the broker; anew, after one was killed."""
        self._disconnect()
        self._viewer = Client(
            self.broker.port,
            f"edge-ai/{self.unit}/+/+/ai/#",
            on_message=self._see,
        )
        self._camera = Client(self.broker.port)

    def _see(self, message: paho.MQTTMessage) -> None:
        """In paho's thread, as each message comes, so that waiting does not read all of them again and again."""
        body = {**json.loads(message.payload), "topic": message.topic}
        self._seen[body["message_type"]].append(body)
        if body["message_type"] in ANSWERS:
            self._answered.add(body["result_id"])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=10, trust_env=False)

    def is_ready(self) -> bool:
        try:
            return self.get("/ready").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def wait_ready(self) -> None:
        self.process.wait_ready(self.is_ready, TIMEOUT_S, fix="See its log")

    def send(self, payload: bytes, topic: str | None = None, **more: Any) -> None:
        """Publish as a camera would."""
        assert self._camera is not None
        self._camera.publish(topic or self.topic, payload, **more)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return list(self._seen[kind])

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.of("ai_inference_result")

    @property
    def errors(self) -> list[dict[str, Any]]:
        return self.of("ai_inference_error")

    @property
    def answers(self) -> list[dict[str, Any]]:
        return self.results + self.errors

    def wait_for(self, *, results: int, errors: int) -> None:
        """Wait until so many of each have come."""
        least = {"ai_inference_result": results, "ai_inference_error": errors}
        self._wait(lambda: all(len(self._seen[kind]) >= n for kind, n in least.items()), f"{results=}, {errors=}")

    def answered(self, count: int) -> None:
        """Wait until so many different snapshots have been answered."""
        self._wait(lambda: len(self._answered) >= count, f"{count} answers")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            until(condition, what)
        except AssertionError as error:
            got = f"got {len(self.results)} results and {len(self.errors)} errors"
            raise AssertionError(f"{error}; {got}\n{self.process.log_excerpt()}") from None

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over their labels."""
        lines = self.get("/metrics").text.splitlines()
        values = [line.rsplit(" ", 1) for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(value) for _, value in values)

    def memory_mb(self) -> float:
        """Resident memory of the gateway process."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.running:
            self._process.stop(10.0)
        self._disconnect()

    def _disconnect(self) -> None:
        for client in (self._viewer, self._camera):
            if client is not None:
                client.close()
        self._viewer = self._camera = None
