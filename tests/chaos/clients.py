"""Cameras that do not let go of a snapshot before the broker has it, and the auditor's ears. Neither uses the gateway's
own client, and both talk to the broker directly.
"""

from __future__ import annotations

import heapq
import io
import itertools
import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import paho.mqtt.client as paho
import pybase64
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from PIL import Image

from gateway.local.processes import LOOPBACK
from tests.chaos.audit import RESULT

RECONNECT_S = 0.2
PICTURE_SIDE = 128
SESSION_S = 3600


def picture(number: int, side: int = PICTURE_SIDE) -> bytes:
    """A noisy JPEG of a few kilobytes, mostly of one colour, which the detectors of tests/rollouts know."""
    noise = np.random.default_rng(number).integers(-20, 20, (side, side, 3))
    colour = np.array((210, 30, 40) if number % 2 else (30, 210, 40))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def connected(port: int, name: str) -> paho.Client:
    """A client with a session that survives its connections; it connects and goes on until `end`."""
    client = paho.Client(CallbackAPIVersion.VERSION2, f"{name}-{uuid.uuid4().hex[:8]}", protocol=paho.MQTTv5)
    client.max_queued_messages_set(0)
    client.reconnect_delay_set(RECONNECT_S, RECONNECT_S)  # type: ignore[arg-type]  # parts of a second do
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = SESSION_S
    client.connect_async(LOOPBACK, port, keepalive=60, clean_start=False, properties=properties)
    return client


def end(client: paho.Client) -> None:
    """Disconnect, and wait for its thread."""
    client.disconnect()
    client.loop_stop()


class Listener(Protocol):
    """Who is told of everything; see Auditor. Called from many threads."""

    def sent(self, key: str, camera: str, at: float) -> None: ...

    def accepted(self, key: str, at: float) -> None: ...

    def seen(self, key: str, at: float) -> None: ...

    def answered(self, key: str, result_id: str, outcome: str, at: float) -> None: ...


class Camera:
    """One device; at QoS 1, what the broker has not acknowledged is sent again at the next connection."""

    def __init__(
        self, port: int, topic: str, name: str, content: bytes, listener: Listener, *, qos: int = 1, priority: int = 0
    ) -> None:
        self.name = name
        self.qos = qos
        self._topic = topic
        self._body = {
            "device_id": name,
            "image_data": pybase64.b64encode_as_string(content),
            **({"priority": priority} if priority else {}),
        }
        self._listener = listener
        self._lock = threading.Lock()
        self._under_way: dict[int, str] = {}
        self._early: set[int] = set()
        """Acknowledged before publish() had returned their number."""
        self._client = connected(port, name)
        self._client.on_publish = self._acknowledged
        self._client.loop_start()

    def send(self, number: int) -> None:
        """Its snapshot of this number: the same bytes whenever it is sent, and so the same one to the gateway."""
        key = f"{self.name}/{number}"
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = key.encode()
        body = json.dumps({**self._body, "timestamp": 1_700_000_000 + number})
        self._listener.sent(key, self.name, time.monotonic())
        # Not under the lock: paho calls back under one of its own, which publish() needs as well.
        info = self._client.publish(self._topic, body, qos=self.qos, properties=properties)
        with self._lock:
            if info.mid not in self._early:
                self._under_way[info.mid] = key
                return
            self._early.remove(info.mid)
        self._listener.accepted(key, time.monotonic())

    def _acknowledged(self, _client: paho.Client, _data: object, mid: int, *_more: object) -> None:
        with self._lock:
            key = self._under_way.pop(mid, None)
            if key is None:
                self._early.add(mid)
                return
        self._listener.accepted(key, time.monotonic())

    def close(self) -> None:
        """End, whatever still waits."""
        end(self._client)


class Cameras:
    """Cameras that send side by side, each at a rate of its own in snapshots a second; numbers come from `numbers`."""

    def __init__(self, cameras: Mapping[Camera, float], numbers: Iterator[int] | None = None) -> None:
        self._cameras = dict(cameras)
        self._numbers = numbers or itertools.count()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _run(self) -> None:
        cameras, now = list(self._cameras), time.monotonic()
        due = [(now + index / len(cameras) / self._cameras[each], index) for index, each in enumerate(cameras)]
        heapq.heapify(due)
        while not self._end.wait(max(0.0, due[0][0] - time.monotonic())):
            moment, index = due[0]
            cameras[index].send(next(self._numbers))
            heapq.heapreplace(due, (moment + 1 / self._cameras[cameras[index]], index))

    def again(self, keys: Iterable[str]) -> None:
        """Send what a killed broker may have forgotten."""
        by_name = {camera.name: camera for camera in self._cameras}
        for key in keys:
            name, number = key.split("/")
            by_name[name].send(int(number))

    def stop(self) -> None:
        """Begin no new snapshot; what is under way goes on."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> None:
        """End all."""
        self.stop()
        for camera in self._cameras:
            camera.close()


class Ears:
    """Hears every answer, and every snapshot too unless `topic` is empty, under a session that the broker keeps while
    the connection is gone.
    """

    def __init__(self, port: int, topic: str, answers: Sequence[str], listener: Listener) -> None:
        self._topic = topic
        self._filters = [(each, 1) for each in (topic, *answers) if each]
        self._listener = listener
        self._subscribed = threading.Event()
        self._client = connected(port, "auditor")
        self._client.on_connect = self._subscribe
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._hear
        self._client.loop_start()
        assert self._subscribed.wait(20), "the auditor cannot subscribe"

    def _subscribe(self, client: paho.Client, *_more: object) -> None:
        client.subscribe(self._filters)

    def _hear(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", b"").decode()
        if message.topic == self._topic:
            self._listener.seen(correlation, time.monotonic())
            return
        body = json.loads(message.payload)
        if body["message_type"] == "ai_inference_result":
            self._listener.answered(correlation, body["result_id"], RESULT, time.monotonic())
        elif body["message_type"] == "ai_inference_error":
            code = body["error"]["code"]
            self._listener.answered(correlation, body["result_id"], code, time.monotonic())

    def close(self) -> None:
        """End."""
        end(self._client)
