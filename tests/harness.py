"""A whole gateway on the in-memory broker and Triton, with a model that a test can look into."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from numpy.typing import NDArray

from gateway.adapters.spooling import with_spool
from gateway.adapters.triton_pool import TritonPool
from gateway.adapters.triton_pool_member import Limits
from gateway.admin.status import status_publication
from gateway.app import Gateway
from gateway.errors import Outcome
from gateway.messages import MessageProperties
from gateway.metrics import Metrics
from gateway.ports import Broker, InferenceServer, SpanSink
from gateway.rollout.verify import Checks
from gateway.testing import MemoryBroker, MemoryTriton
from tests.flow.builders import LABELS, SNAPSHOT_TOPIC, head, settings, signature

TIMEOUT_S = 20.0
QUICK = Limits(first_pause_s=0.02, longest_pause_s=0.1)
"""Of a pool of Tritons."""


async def until(condition: Callable[[], bool], what: str = "") -> None:
    """Poll a condition; fails after the deadline, saying what was waited for."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what or condition}"
        await asyncio.sleep(0.005)


def alive(kind: type) -> int:
    """How many objects of this type something still holds."""
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


def write_model(repository: Path, name: str = "detector", **more: Any) -> Path:
    """A model.yaml with labels in a repository; returns its folder."""
    folder = repository / name
    folder.mkdir(parents=True, exist_ok=True)
    body: dict[str, Any] = {
        "name": name,
        "model_type": "object-detection",
        "preprocessing": {"resize": [64, 64]},
        "inference": {"output": "yolov8", "alert_classes": ["person_without_helmet"]},
        **more,
    }
    if body["model_type"].startswith("sensor-"):
        del body["preprocessing"]
    (folder / "model.yaml").write_text(yaml.safe_dump(body))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    return folder


def sees(*detections: tuple[float, float, float, float, int, float]) -> Callable[..., Mapping[str, NDArray[Any]]]:
    """A model that always sees these (cx, cy, w, h, class, score)."""
    seen = head(*detections)
    return lambda inputs: {"output0": np.repeat(seen, len(next(iter(inputs.values()))), axis=0)}


HELMET = (32.0, 32.0, 20.0, 40.0, 0, 0.9)
NO_HELMET = (32.0, 32.0, 20.0, 40.0, 1, 0.8)


@dataclass
class Site:
    """The running parts, and every message that the gateway published."""

    gateway: Gateway
    broker: MemoryBroker
    triton: MemoryTriton
    metrics: Metrics
    running: asyncio.Task[int]
    session: Broker
    """The gateway's side of the broker."""
    seen: list[tuple[str, dict[str, Any], MessageProperties]] = field(default_factory=list)

    def snapshot(self, payload: bytes, topic: str = SNAPSHOT_TOPIC, **more: Any) -> None:
        """Publish as a camera would."""
        self.broker.publish(topic, payload, **more)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one message_type, in order."""
        return [body for _, body, _ in self.seen if body["message_type"] == kind]

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.of("ai_inference_result")

    @property
    def errors(self) -> list[dict[str, Any]]:
        return self.of("ai_inference_error")

    async def answered(self, count: int) -> None:
        """Wait until so many results and errors have come."""
        await until(lambda: len(self.results) + len(self.errors) >= count, f"{count} answers, got {self.seen}")

    def outcomes(self) -> dict[str, int]:
        """Snapshots by outcome, as the metrics count them; zeros left out."""
        counts = {str(o): int(self.metrics.value("snapshots_total", outcome=str(o))) for o in Outcome}
        return {name: count for name, count in counts.items() if count}

    @property
    def received(self) -> int:
        return int(self.metrics.value("snapshots_received_total"))

    async def ready(self) -> None:
        """Wait until /ready would say so."""
        await until(lambda: self.gateway.health.report().ready, "ready")

    async def stop(self) -> int:
        """Stop the gateway in order; returns its exit code."""
        self.gateway.stop()
        async with asyncio.timeout(TIMEOUT_S):
            return await self.running


def _prepare(repository: Path, triton: MemoryTriton) -> None:
    if not list(repository.glob("*/model.yaml")):
        write_model(repository)
    if not triton.known:
        for variant in ("detector-onnx", "detector-torch"):
            triton.add_model(signature(variant), sees(HELMET))


@contextlib.asynccontextmanager
async def site(
    repository: Path,
    *,
    broker: MemoryBroker | None = None,
    triton: MemoryTriton | None = None,
    wait: bool = True,
    checks: Checks | None = None,
    spans: SpanSink | None = None,
    pool_of: Mapping[str, MemoryTriton] | None = None,
    **environment: Any,
) -> AsyncIterator[Site]:
    """A gateway between a MemoryBroker and a MemoryTriton, with a detector unless the repository has another.

    `pool_of` are several Tritons by their endpoint in place of `triton`.
    """
    broker, triton = broker or MemoryBroker(), triton or MemoryTriton()
    _prepare(repository, triton)
    if pool_of is not None:
        for each in pool_of.values():
            _prepare(repository, each)
        environment = {"triton_grpc_url": ",".join(pool_of), **environment}
    config = settings(model_repository=repository, **environment)
    metrics = Metrics()
    client = broker.client(
        config.aio_mqtt_client_id or "gateway",
        [*(pattern.subscription for pattern in config.patterns), *config.command_topics],
        status_publication(config, "offline", reason="connection lost"),
    )
    session: Broker = client if config.spool_dir is None else with_spool(client, config, config.spool_dir, metrics)
    server: InferenceServer = triton
    if pool_of is not None:
        server = TritonPool(pool_of, metrics, config.placement_rules, QUICK)
    gateway = Gateway(config, session, server, metrics, checks=checks, spans=spans)
    viewer = broker.client(
        f"viewer {config.aio_mqtt_client_id or ''}".strip(), ["edge-ai/+/+/+/ai/#", "edge-ai/+/+/ai/#"]
    )
    running = asyncio.create_task(gateway.run(), name="gateway")
    place = Site(gateway, broker, triton, metrics, running, session)

    async def view() -> None:
        async for message in viewer.messages():
            viewer.acknowledge(message)
            if not message.payload:  # a retained message that is cleared
                continue
            place.seen.append((message.topic, msgspec.json.decode(message.payload), message.properties))

    watching = [asyncio.create_task(viewer.run()), asyncio.create_task(view())]
    try:
        await until(lambda: client.connected, "the gateway's session")
        if wait:
            await place.ready()
        yield place
    finally:
        if not running.done():
            await place.stop()
        await viewer.close()
        await asyncio.gather(*watching)
