"""The admin side of a gateway on a memory broker and real HTTP, with somebody scripted who carries commands out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gateway.admin.api import Api
from gateway.admin.command_desk import CommandDesk
from gateway.admin.connections import Connections, Limits
from gateway.admin.guard import TokenGuard
from gateway.admin.health import Health
from gateway.admin.http import HttpServer
from gateway.admin.infer import InferApi
from gateway.admin.kserve import KServe
from gateway.admin.model_commands import ModelCommandTopic
from gateway.admin.models_topic import ModelsTopic
from gateway.errors import CommandRefused
from gateway.flow.replies import Reply
from gateway.live import Live
from gateway.messages import Message, MessageProperties
from gateway.metrics import Metrics
from gateway.models.catalog import Models
from gateway.rollout.commands import Command
from gateway.rollout.state import ModelState, ReleaseRecord, RolloutRecord, StepRecord
from gateway.rollout.steps import Ending, Step
from gateway.testing import MemoryBroker
from tests.flow.builders import served, settings
from tests.harness import until

MODELS_TOPIC = "edge-ai/default/default/test/ai/models/detector"
COMMAND_TOPIC = "edge-ai/default/default/test/ai/commands/models"
OTHER_TOPIC = "edge-ai/default/orders"
"""Subscribed too, and a topic of commands where a test says so."""


def release(version: int = 3) -> ReleaseRecord:
    """A version that serves."""
    placements = {"onnx": ("detector-onnx", version), "torch": ("detector-torch", version)}
    return ReleaseRecord(version=version, digests={}, stamps={}, placements=placements, promoted_at=1_700_000_000.0)


def rollout(version: int = 4, step: Step = Step.CANARY, **more: Any) -> RolloutRecord:
    """A rollout in its canary, or what `more` makes of it."""
    given: dict[str, Any] = {
        "started_at": 1_700_000_100.0,
        "steps": (
            StepRecord(Step.STABLE_ON_DISK, 3.0),
            StepRecord(Step.VERIFIED, 0.2, "unsigned"),
        ),
        "percent": 25,
        "share": 0.25,
        "progress": "120 of 200 answers",
        **more,
    }
    return RolloutRecord(version=version, step=step, **given)


def refused(version: int = 4, **more: Any) -> RolloutRecord:
    """A rollout that golden examples have ended."""
    given = {"percent": 0, "progress": "", "reason": "person.jpg: class 2, expected 0", "fix": "Train it", **more}
    return rollout(version, Step.GOLDEN, ending=Ending.REFUSED, ended_at=1_700_000_200.0, **given)


class Scripted:
    """Carries out whatever it is told, and remembers it; `refusal` is raised instead, `begins` becomes the state."""

    def __init__(self) -> None:
        self.states: dict[str, ModelState] = {"detector": ModelState("detector", release(3), release(2), roller="gw-1")}
        self.problems: dict[str, str] = {}
        self.unreadable: tuple[str, ...] = ()
        self.executed: list[Command] = []
        self.refusal: Exception | None = None
        self.begins: ModelState | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    def put(self, state: ModelState) -> None:
        """Let this be what is remembered from now on."""
        self.states[state.model] = state
        self.say_changed()

    def say_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def execute(self, command: Command) -> str:
        self.executed.append(command)
        await self.hold.wait()
        if self.refusal is not None:
            raise self.refusal
        if self.begins is not None:
            self.put(self.begins)
        return f"version {command.version or 3} of {command.model}: {command.action}"


class Watch:
    """Somebody for whom Triton is there."""

    triton_ready = True
    triton_trouble = ""
    triton_degraded = ()


@dataclass
class Office:
    """The running parts, and what came on topics below `ai/` and on `answers/`."""

    commands: Scripted
    models: Models
    metrics: Metrics
    health: Health
    topic: ModelCommandTopic
    broker: MemoryBroker
    url: str
    http: httpx.AsyncClient
    parts: tuple[Api, InferApi, KServe]
    """What the HTTP server serves."""
    connections: Connections
    seen: list[Message] = field(default_factory=list)

    def bodies(self, topic: str) -> list[dict[str, Any]]:
        """The JSON messages on one topic, in order; an empty one is {}."""
        return [
            msgspec.json.decode(message.payload) if message.payload else {}
            for message in self.seen
            if message.topic == topic
        ]

    def command(self, payload: object, **properties: Any) -> None:
        """Publish a command as a client with MQTT 5 would; bytes as they are, anything else as JSON."""
        content = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        given = {"response_topic": "answers/me", "correlation_data": None, **properties}
        self.broker.publish(COMMAND_TOPIC, content, properties=MessageProperties(**given))

    async def answer(self, payload: object, **properties: Any) -> dict[str, Any]:
        """The answer to a command."""
        count = len(self.bodies("answers/me"))
        self.command(payload, **properties)
        await until(lambda: len(self.bodies("answers/me")) > count, "an answer")
        return self.bodies("answers/me")[count]

    def counted(self, action: str, outcome: str) -> int:
        """Commands of an outcome, as the metrics count them."""
        return int(self.metrics.value("model_commands_total", action=action, outcome=outcome))


def with_token(folder: Path, token: str = "s3cret") -> Path:
    """A token file for API_TOKEN_FILE."""
    path = folder / "token"
    path.write_text(f"{token}\n")
    return path


async def _nothing(_message: Message) -> Reply:
    raise CommandRefused("COMMAND_FAILED", "there is no flow here")


@contextlib.asynccontextmanager
async def office(
    broker: MemoryBroker | None = None, *, acknowledge: bool = True, **environment: Any
) -> AsyncIterator[Office]:
    """Everything that is seen and commanded from outside, of a gateway that serves `detector`.

    Without `acknowledge` it has not come to acknowledge commands when the connection is lost.
    """
    config = settings(**{"mqtt_command_topics": COMMAND_TOPIC, **environment})
    guard = TokenGuard(config.api_token_file)
    live, models, metrics, commands = Live(config), Models(), Metrics(), Scripted()
    broker = broker or MemoryBroker()
    models.put(served())
    metrics.config_last_reload_successful.set(1)
    client = broker.client("gateway", [COMMAND_TOPIC, OTHER_TOPIC])
    viewer = broker.client("viewer", ["edge-ai/#", "answers/#"])
    health = Health(live, client, Watch(), models, metrics, commands)
    parts = (
        Api(live, health, models, metrics, commands, guard),
        InferApi(live, _nothing, guard),
        KServe(health, models),
    )
    server = HttpServer("127.0.0.1", 0, health, metrics, *parts, Limits(head_s=1.0))
    topic = ModelCommandTopic(config, client, CommandDesk(commands, models, metrics), models, guard)

    async def take() -> None:
        async for message in client.messages():
            if acknowledge:
                client.acknowledge(message)
            topic.take(message)

    async def view() -> None:
        async for message in viewer.messages():
            viewer.acknowledge(message)
            place.seen.append(message)

    url = f"http://127.0.0.1:{await server.start()}"
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        place = Office(commands, models, metrics, health, topic, broker, url, http, parts, server.connections)
        running = [asyncio.create_task(each) for each in (viewer.run(), view())]
        try:
            await until(lambda: viewer.connected, "the viewer's session")
            work = (client.run(), take(), topic.run(), ModelsTopic(config, client, models, commands).run())
            running += [asyncio.create_task(each) for each in work]
            await until(lambda: client.connected, "the gateway's session")
            yield place
            for task in running:
                assert not task.done() or task.exception() is None
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await server.stop()
