"""The flow alone on the in-memory broker and Triton, with a catalogue that a test fills by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from gateway.errors import Outcome
from gateway.flow.observer import Observer
from gateway.flow.pipeline import Pipeline
from gateway.live import Live
from gateway.messages import Publication
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel, State, Trial, bucket
from gateway.models.spec import ModelSpec
from gateway.models.trial import Observation
from gateway.ports import SpanSink
from gateway.testing import MemoryBroker, MemoryTriton
from gateway.traces import Traces
from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, served, settings, signature, snapshot_json
from tests.harness import HELMET, sees, until

JPEG = jpeg()
A_HELMET = sees(HELMET)


CAMERAS = tuple(f"camera-{number:02}" for number in range(8))
HALF = 0.5
INSIDE = next(name for name in CAMERAS if bucket("detector", name) < HALF)
"""A camera of the candidate when it has half of them, and of the stable version."""
OUTSIDE = next(name for name in CAMERAS if bucket("detector", name) >= HALF)


def triton_name(variant: str, version: int) -> str:
    """Each version is a Triton model of its own here, so that a test can hold back the one and not the other."""
    return f"detector-{variant}-{version}"


def release(version: int, spec: ModelSpec | None = None, **states: State) -> ServedModel:
    """One version of the detector, its variants ready unless `states` says otherwise."""
    model = served(spec, **states)
    variants = {
        name: replace(variant, triton_model=triton_name(name, version), version=str(version))
        for name, variant in model.variants.items()
    }
    return replace(model, variants=variants, version=version)


@dataclass
class Witness:
    """A jury that only remembers."""

    pairs: int = 0
    seen: list[Observation] = field(default_factory=list)

    @property
    def wants_pairs(self) -> bool:
        return self.pairs > sum(bool(each.candidate and each.stable) for each in self.seen)

    def saw(self, observation: Observation) -> None:
        self.seen.append(observation)


def on_trial(stable: ServedModel, candidate: ServedModel, jury: Any, share: float = 0.0) -> ServedModel:
    """The stable entry while the candidate is tried."""
    return replace(stable, trial=Trial(candidate, jury, share, round(share * 100)))


@dataclass
class Flow:
    """The running flow, and every message that it published."""

    pipeline: Pipeline
    models: Models
    broker: MemoryBroker
    triton: MemoryTriton
    metrics: Metrics
    seen: list[dict[str, Any]] = field(default_factory=list)

    def send(self, device: str = "camera-01", image: bytes = JPEG, **more: Any) -> None:
        """Publish as a camera would."""
        self.broker.publish(SNAPSHOT_TOPIC, snapshot_json(image, device_id=device, **more))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one message_type, in order."""
        return [body for body in self.seen if body["message_type"] == kind]

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.of("ai_inference_result")

    @property
    def errors(self) -> list[dict[str, Any]]:
        return self.of("ai_inference_error")

    async def answered(self, count: int) -> None:
        """Wait until so many snapshots have their outcome and their message is seen."""
        await until(lambda: len(self.results) + len(self.errors) >= count, f"{count} answers, got {len(self.seen)}")
        await until(lambda: sum(self.outcomes().values()) >= count, f"outcomes {self.outcomes()}")
        for _ in range(10):  # an outcome is counted a moment before its snapshot leaves its place in flight
            await asyncio.sleep(0)

    def outcomes(self) -> dict[str, int]:
        """Snapshots by outcome, zeros left out."""
        counts = {str(o): int(self.metrics.value("snapshots_total", outcome=str(o))) for o in Outcome}
        return {name: count for name, count in counts.items() if count}

    def asked(self, version: int) -> list[str]:
        """The Triton models of that version that were asked, in order."""
        return [request.model for request in self.triton.requests if request.model.endswith(f"-{version}")]

    def versions_of(self, device: str) -> list[str]:
        """The versions that have answered a camera, in order."""
        return [body["model_version"] for body in self.results if body["device_id"] == device]

    def idle(self, version: int) -> bool:
        """Whether nothing of a version is in flight."""
        return not self.pipeline.in_flight("detector", version)

    async def add(self, version: int, scene: Callable[..., Mapping[str, Any]] = A_HELMET) -> None:
        """Have Triton serve a version, which sees this."""
        for variant in ("onnx", "torch"):
            name = triton_name(variant, version)
            self.triton.add_model(replace(signature(name), version=str(version)), scene)
            await self.triton.load(name)


@contextlib.asynccontextmanager
async def flow(
    *versions: int, spans: SpanSink | None = None, observers: Sequence[Observer] = (), **environment: Any
) -> AsyncIterator[Flow]:
    """The flow with a Triton that serves these versions; the catalogue is empty."""
    broker, triton, models, metrics = MemoryBroker(), MemoryTriton(), Models(), Metrics()
    config = settings(**environment)
    patterns = [pattern.subscription for pattern in config.patterns]
    client = broker.client("gateway", patterns, Publication("edge-ai/x/status", b""))
    live = Live(config)
    traces = None if spans is None else Traces(spans, live)
    pipeline = Pipeline(live, client, triton, models, metrics, traces=traces, observers=observers)
    viewer = broker.client("viewer", ["edge-ai/+/+/+/ai/#", "edge-ai/+/+/ai/#"])
    place = Flow(pipeline, models, broker, triton, metrics)
    for version in versions:
        await place.add(version)

    async def view() -> None:
        async for message in viewer.messages():
            viewer.acknowledge(message)
            place.seen.append(msgspec.json.decode(message.payload))

    intake = pipeline.intake
    work = [client.run(), intake.run(), intake.watch_models(), intake.watch_deadlines(), pipeline.watch_alerts()]
    work += [intake.answer_at_once(), *(pipeline.work() for _ in range(config.max_in_flight)), viewer.run(), view()]
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await until(lambda: client.connected and viewer.connected, "the sessions")
        yield place
        dead = [task for task in tasks if task.done()]
        assert not dead, f"ended by itself: {dead}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        pipeline.close()
        await client.close()
        await viewer.close()
