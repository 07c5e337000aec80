"""What a Mosquitto carries: its CPU time for each message of QoS 1, and the rate at which it comes to its one core.

    python -m tests.capacity.broker

CPU is what counts: on a machine that also sends, receives and does other work, the rate that is reached says little.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from tests.certificates import Authority
from tests.mosquitto_server import Mosquitto

LIMIT_S = 120.0
TOPIC = "azure-iot-operations/data/camera-{}/snapshot"
FILTER = "azure-iot-operations/data/+/snapshot"
IN_FLIGHT = 20
"""Of each client: what paho and Mosquitto take unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent through the broker."""

    messages: int
    size: int
    """Bytes of each payload."""
    subscribers: int = 1
    shared: bool = False
    """One shared subscription of all subscribers, each message to one of them; else each gets all."""
    publishers: int = 2
    idle: int = 0
    """Further sessions that say nothing."""
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Carried:
    """What it cost the broker."""

    rate: float
    """Messages a second that were reached."""
    cpu_ms: float
    """Of the broker for each message in."""
    resident_mb: float

    @property
    def most(self) -> float:
        """Messages a second at which its one thread is busy all the time."""
        return 1000 / self.cpu_ms


def _client(name: str, authority: Path | None) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
    client.max_inflight_messages_set(IN_FLIGHT)
    client.max_queued_messages_set(0)
    if authority is not None:
        client.tls_set(str(authority))
    return client


def publish(port: int, authority: Path | None, number: int, messages: int, size: int) -> None:
    """In a process of its own: send so many messages, and wait until the broker has acknowledged each."""
    client = _client(f"publisher-{number}", authority)
    done = threading.Semaphore(0)
    places = threading.Semaphore(IN_FLIGHT)

    def acknowledged(*_: object) -> None:
        done.release()
        places.release()

    client.on_publish = acknowledged
    client.connect("127.0.0.1", port)
    client.loop_start()
    payload = bytes(size)
    for _ in range(messages):
        places.acquire(timeout=LIMIT_S)
        client.publish(TOPIC.format(number), payload, qos=1)
    for _ in range(messages):
        done.acquire(timeout=LIMIT_S)
    client.disconnect()


@contextmanager
def subscribed(
    port: int, authority: Path | None, traffic: Traffic, got: queue.Queue[int]
) -> Iterator[list[paho.Client]]:
    """All subscribers, and the idle sessions beside them."""
    clients = [_client(f"subscriber-{number}", authority) for number in range(traffic.subscribers)]
    ready: queue.Queue[bool] = queue.Queue()
    chosen = f"$share/gateways/{FILTER}" if traffic.shared else FILTER
    for client in clients:
        client.on_connect = lambda client, *_: client.subscribe(chosen, qos=1)
        client.on_subscribe = lambda *_: ready.put(True)
        client.on_message = lambda _client, _data, message: got.put(len(message.payload))
    idle = [_client(f"idle-{number}", authority) for number in range(traffic.idle)]
    for client in [*clients, *idle]:
        client.connect("127.0.0.1", port, keepalive=3600)
    for client in clients:
        client.loop_start()
    for _ in clients:
        ready.get(timeout=LIMIT_S)
    try:
        yield clients
    finally:
        for client in clients:
            client.disconnect()
            client.loop_stop()
        for client in idle:
            client.disconnect()


def measure(traffic: Traffic, folder: Path) -> Carried:
    """Send it all through a Mosquitto of its own."""
    lines = ["max_queued_messages 100000", f"max_inflight_messages {IN_FLIGHT}"]
    authority = None
    if traffic.tls:
        made = Authority(folder)
        pair, authority = made.issue("broker", "127.0.0.1"), made.path
        lines += [f"certfile {pair.certificate}", f"keyfile {pair.key}"]
    broker = Mosquitto(folder, *lines)
    asyncio.run(broker.start())
    try:
        return _measure(traffic, broker, authority)
    finally:
        asyncio.run(broker.stop())


def _measure(traffic: Traffic, broker: Mosquitto, authority: Path | None) -> Carried:
    got: queue.Queue[int] = queue.Queue()
    process = psutil.Process(broker.pid)
    each = traffic.messages // traffic.publishers
    senders = [
        multiprocessing.get_context("spawn").Process(
            target=publish, args=(broker.port, authority, number, each, traffic.size), daemon=True
        )
        for number in range(traffic.publishers)
    ]
    with subscribed(broker.port, authority, traffic, got):
        before, began = process.cpu_times(), time.monotonic()
        for sender in senders:
            sender.start()
        expected = each * traffic.publishers * (1 if traffic.shared else traffic.subscribers)
        for arrived in range(expected):
            got.get(timeout=LIMIT_S)
            if arrived == 0:
                began = time.monotonic()  # not while the senders still import
        took, after = time.monotonic() - began, process.cpu_times()
        resident = process.memory_info().rss / 1e6
        for sender in senders:
            sender.join(LIMIT_S)
    sent = each * traffic.publishers
    cpu_s = after.user + after.system - before.user - before.system
    return Carried(sent / took, 1000 * cpu_s / sent, resident)


VARIANTS = {
    "100 kB, one subscriber": Traffic(16_000, 100_000),
    "100 kB, one subscriber, all by TLS": Traffic(8000, 100_000, tls=True),
    "100 kB, three share a subscription": Traffic(16_000, 100_000, subscribers=3, shared=True),
    "100 kB, each of three gets all": Traffic(6000, 100_000, subscribers=3),
    "100 kB, one subscriber, 1000 idle sessions": Traffic(16_000, 100_000, idle=1000),
    "400 kB, one subscriber": Traffic(4000, 400_000),
    "2 kB, one subscriber": Traffic(40_000, 2000),
}


def main() -> None:
    """Print a table."""
    print(
        "| messages of QoS 1 | CPU of the broker, ms each | its core is full at, /s | reached here, /s | resident, MB |"
    )
    print("|---|---|---|---|---|")
    for name, traffic in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            done = measure(traffic, Path(folder))
        print(f"| {name} | {done.cpu_ms:.3f} | {done.most:.0f} | {done.rate:.0f} | {done.resident_mb:.0f} |")


if __name__ == "__main__":
    main()
