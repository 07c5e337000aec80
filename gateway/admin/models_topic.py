"""`ai/models`: how each model stands, retained, for those who have a broker and want to see rollouts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from gateway.admin.model_report import live_reports, model_report
from gateway.config import Settings
from gateway.errors import BrokerError
from gateway.messages import JSON_TYPE, Publication
from gateway.models.catalog import Models
from gateway.ports import Broker
from gateway.rollout.commands import Commands
from gateway.tasks import while_connected
from gateway.topics import fill

log = structlog.get_logger(__name__)

PROGRESS_INTERVAL_S = 1.0
"""Between two messages of which only the progress of a step is new."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What was published last of a model."""

    report: dict[str, Any]
    at: float


class ModelsTopic:
    """Publishes each model's report at every change and at each new session; a removed model's topic is cleared."""

    def __init__(self, settings: Settings, broker: Broker, models: Models, commands: Commands) -> None:
        self._settings = settings
        self._broker = broker
        self._models = models
        self._commands = commands
        self._changed = asyncio.Event()
        self._retained: set[str] = set()
        """Models of which the broker may hold a message, over all sessions."""
        self._complaint = ""
        """Why something was not published, said once."""

    async def run(self) -> None:
        """Publish for ever."""
        async with asyncio.TaskGroup() as group:
            listening = [
                group.create_task(self._listen(changed), name="models topic: changes")
                for changed in (self._models.changed, self._commands.changed)
            ]
            await while_connected(self._broker, self._while_up, "models topic: publish")
            for task in listening:
                task.cancel()

    async def _listen(self, changed: Callable[[], Awaitable[None]]) -> None:
        while True:
            await changed()
            self._changed.set()

    async def _while_up(self) -> None:
        said: dict[str, _Said] = {}
        while True:
            self._changed.clear()
            waiting = await self._publish_changes(said)
            try:
                async with asyncio.timeout(PROGRESS_INTERVAL_S if waiting else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _publish_changes(self, said: dict[str, _Said]) -> bool:
        """Bring the broker up to date; True when some progress has to wait for its turn."""
        reports, waiting = live_reports(self._models, self._commands), False
        for name in sorted(self._retained - reports.keys()):
            await self._clear(name)
            said.pop(name, None)
        for name, report in reports.items():
            before = said.get(name)
            if before is not None and report == before.report:
                continue
            if (
                before is not None
                and time.monotonic() - before.at < PROGRESS_INTERVAL_S
                and _same_but_progress(report, before.report)
            ):
                waiting = True
                continue
            said[name] = _Said(report, time.monotonic())
            await self._publish(name, report)
        return waiting

    async def _clear(self, name: str) -> None:
        """Say to those who listen that it is gone, and leave nothing for those who come."""
        await self._publish(name, model_report(name, None, None))
        if await self._send(Publication(self._topic(name), b"", retain=True)):
            self._retained.discard(name)

    async def _publish(self, name: str, report: dict[str, Any]) -> None:
        self._retained.add(name)
        body = {
            "message_type": "ai_model",
            "timestamp": round(time.time(), 3),
            "gateway_id": self._settings.gateway_id,
            **report,
        }
        payload = msgspec.json.encode(body)
        await self._send(Publication(self._topic(name), payload, retain=True, content_type=JSON_TYPE))

    async def _send(self, publication: Publication) -> bool:
        try:
            await self._broker.publish(publication)
        except BrokerError as error:
            if str(error) != self._complaint:
                log.warning("The state of a model was not published", topic=publication.topic, reason=str(error))
            self._complaint = str(error)
            return False
        return True

    def _topic(self, name: str) -> str:
        return fill(self._settings.models_topic, {**self._settings.place, "model_name": name})


def _same_but_progress(report: dict[str, Any], before: dict[str, Any]) -> bool:
    new, old = report["rollout"], before["rollout"]
    if new is None or old is None:
        return False
    return {**report, "rollout": {**new, "progress": ""}} == {**before, "rollout": {**old, "progress": ""}}
