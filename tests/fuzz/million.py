"""`python -m tests.fuzz.million --messages 1000000 --seed 1`: fuzzed messages at a real gateway behind a real broker.

Mosquitto, the gateway and Triton run as processes. Messages go out in batches; after each one the gateway must have
counted every message with one outcome. Exit code 1 when it died, lost or miscounted one, met a defect of its own, or
when its memory grew.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import click
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import REPOSITORY, RealSite
from tests.flow.picture_files import SEEDS
from tests.fuzz.mutations import corpus, mutate

BATCH = 500
BATCH_BYTES = 12_000_000
"""Less than the gateway's inbox holds: of QoS 0 it drops what does not fit, and nobody could tell that from a loss."""
PATIENCE_S = 60.0
WARM_UP = 0.25
"""Share of the run before memory is watched: allocators and caches fill."""
MEMORY_LIMIT_MB = 190.0
"""At the peak: 110 at rest, and what the limits let in at once: an inbox of 16, a queue of 8, four messages of 8 in
flight, two pictures of 12.5 megapixels being decoded. What users send stays below 150; this is everything at once."""
GROWTH_MB = 4.0
"""Of the mean resident memory, from the first to the last quarter of what is watched."""
DEVICES = 1000
EVERY_VALID, EVERY_LARGE = 100, 1000


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """One message to send."""

    device: int
    payload: bytes
    qos: int
    properties: Properties


def messages(seed: int) -> Iterator[Fuzzed]:
    """Without end, and the same for the same seed: damaged JSON and pictures, whole ones now and then, a few large."""
    random = Random(seed)
    jsons = [data.partition(b"\n")[2] for data in corpus("ingest").values()]
    pictures = [*corpus("pictures").values(), *SEEDS.values()]
    kept = jsons + pictures
    whole = frame(seed, 0)
    number = 0
    while True:
        number += 1
        if number % EVERY_VALID == 0:
            payload = whole if random.random() < 0.5 else json_snapshot(whole, f"camera-{number % 7}")
        elif number % EVERY_LARGE == 1:
            payload = mutate(random, random.choice(kept), kept) + random.randbytes(64) * random.randrange(1, 140_000)
        else:
            payload = mutate(random, random.choice(jsons if random.random() < 0.5 else pictures), kept)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        odd = _odd_properties(random) if random.random() < 0.1 else []
        properties.UserProperty = [("id", str(number)), *odd]  # a result id of its own, whatever the payload
        yield Fuzzed(random.randrange(DEVICES), payload, number % 2, properties)


def _odd_properties(random: Random) -> list[tuple[str, str]]:
    names = ("model_name", "backend_preference", "device_id", "time", "traceparent", "specversion", "subject")
    texts = ("", "x" * 3000, "\u202e", "{}", "1e999", "../..", "edge-ai/#", "2025-02-30T00:00:00Z", "candle", "dual")
    return [(random.choice(names), random.choice(texts)) for _ in range(random.randrange(1, 5))]


@dataclass
class Run:
    """What was seen, batch by batch."""

    sent: int = 0
    memory_mb: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    slowest_batch_s: float = 0.0

    def growth_mb(self) -> float:
        """Of resident memory after the warm-up, from the first to the last quarter."""
        watched = self.memory_mb[int(len(self.memory_mb) * WARM_UP) :]
        quarter = max(1, len(watched) // 4)
        return float(np.mean(watched[-quarter:]) - np.mean(watched[:quarter]))


class Camera:
    """A client that does not wait for each acknowledgement, and counts the answers that it sees."""

    def __init__(self, site: RealSite) -> None:
        self._site = site
        self.answers = 0
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "fuzzer", protocol=paho.MQTTv5)
        self._client.max_queued_messages_set(0)
        self._client.max_inflight_messages_set(BATCH)
        self._client.on_message = self._count
        self._client.connect("127.0.0.1", site.broker.port)
        self._client.subscribe(f"edge-ai/{site.unit}/+/+/ai/#", qos=0)
        self._client.loop_start()

    def _count(self, _client: paho.Client, _data: object, _message: paho.MQTTMessage) -> None:
        self.answers += 1

    def send(self, batch: list[Fuzzed]) -> None:
        """Publish them; returns when the broker has acknowledged those of QoS 1."""
        waiting = []
        for item in batch:
            topic = self._site.raw_topic(f"device-{item.device}")
            waiting.append(self._client.publish(topic, item.payload, item.qos, properties=item.properties))
        for info in waiting:
            info.wait_for_publish(PATIENCE_S)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def batches(count: int, seed: int) -> Iterator[list[Fuzzed]]:
    """`count` messages in batches that the gateway's inbox can hold."""
    source, batch, size = messages(seed), list[Fuzzed](), 0
    for _ in range(count):
        item = next(source)
        batch.append(item)
        size += len(item.payload)
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def counts(site: RealSite) -> tuple[int, int, int]:
    """Snapshots received, snapshots with an outcome, and defects, by the gateway's own count."""
    totals = {"edge_gateway_snapshots_received_total": 0.0, "edge_gateway_snapshots_total": 0.0, "INTERNAL_ERROR": 0.0}
    for line in site.get("/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if (family := name.partition("{")[0]) in totals:
            totals[family] += float(value)
        elif "INTERNAL_ERROR" in name:
            totals["INTERNAL_ERROR"] += float(value)
    received, outcomes, defects = map(int, totals.values())
    return received, outcomes, defects


def settled(site: RealSite, sent: int) -> str:
    """Wait until every message sent has an outcome; what is wrong, or an empty text."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        if not site.process.running:
            return "the gateway has died"
        received, outcomes, defects = counts(site)
        if defects:
            return f"{defects} defects of the gateway"
        if received == outcomes == sent:
            return ""
        if received > sent or outcomes > sent or time.monotonic() > deadline:
            return f"sent {sent}, received {received}, outcomes {outcomes}"
        time.sleep(0.02)


def bombard(site: RealSite, camera: Camera, total: int, seed: int) -> Run:
    """Send them all, unless something is wrong before."""
    run, began, said = Run(), time.monotonic(), time.monotonic()
    for batch in batches(total, seed):
        started = time.monotonic()
        camera.send(batch)
        run.sent += len(batch)
        if problem := settled(site, run.sent):
            run.problems.append(f"{problem} (the batch before message {run.sent}, seed {seed})")
            break
        run.slowest_batch_s = max(run.slowest_batch_s, time.monotonic() - started)
        run.memory_mb.append(site.memory_mb())
        if time.monotonic() - said > 10 or run.sent == total:
            said = time.monotonic()
            rate = run.sent / (said - began)
            left = (total - run.sent) / rate / 60
            click.echo(f"{run.sent:>9} sent, {rate:6.0f} a second, {run.memory_mb[-1]:6.1f} MB, {left:5.1f} min left")
    return run


def judge(site: RealSite, run: Run, camera: Camera) -> list[str]:
    """What is wrong at the end."""
    problems = list(run.problems)
    if not site.process.running:
        return problems
    lines = Path(f"/proc/{site.process.pid}/status").read_text("ascii").splitlines()
    peak_mb = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    click.echo(
        f"peak {peak_mb:.1f} MB, growth after the warm-up {run.growth_mb():+.2f} MB, "
        f"slowest batch {run.slowest_batch_s:.1f} s, {camera.answers} answers seen"
    )
    if peak_mb >= MEMORY_LIMIT_MB:
        problems.append(f"the peak of {peak_mb:.1f} MB is above {MEMORY_LIMIT_MB:.0f} MB")
    if run.growth_mb() > GROWTH_MB:
        problems.append(f"memory grew by {run.growth_mb():.1f} MB")
    if "Traceback" in "\n".join(site.process.log_tail(500)):
        problems.append(f"a traceback in the log:\n{site.process.log_excerpt()}")
    return problems


@click.command()
@click.option("--messages", "total", default=1_000_000, show_default=True)
@click.option("--seed", default=1, show_default=True, help="The same one sends the same messages.")
def main(total: int, seed: int) -> None:
    """Send fuzzed messages to a gateway and hold it to its promises."""
    with EmbeddedBroker() as broker, EmbeddedTriton(REPOSITORY) as triton, RealSite(broker, triton) as site:
        site.start(LOG_LEVEL="ERROR")
        site.wait_ready()
        camera = Camera(site)
        try:
            problems = judge(site, bombard(site, camera, total, seed), camera)
        finally:
            camera.close()
    for problem in problems:
        click.echo(f"FOUND: {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
