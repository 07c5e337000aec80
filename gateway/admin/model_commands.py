"""Commands to models over MQTT: a request on one topic, its answer on the response topic that it names."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import structlog

from gateway.admin.command_bodies import MAX_COMMAND_BYTES, OFF_FIX, read_object, refuse_unknown_keys
from gateway.admin.command_desk import CommandDesk, action_of, model_of, version_of
from gateway.admin.guard import TokenGuard
from gateway.admin.token import bearer
from gateway.config import Settings
from gateway.errors import BrokerError, CommandRefused
from gateway.flow.route import may_answer_on
from gateway.messages import JSON_TYPE, Message, Oversize, Publication
from gateway.models.catalog import Models
from gateway.ports import Broker
from gateway.rollout.commands import Command

log = structlog.get_logger(__name__)

KEYS = ("action", "model", "version", "token")
BY = "MQTT"
WAITING = 64
"""Commands that may wait for the one that is carried out."""
REMEMBERED = 256
"""Commands whose answer is kept, in case that the same one comes again."""
SAME_FOR_S = 60.0
"""For so long the same correlation data with the same command is the same command."""
ANSWER_LIMIT_S = 30.0
"""Until an answer is given up because there is no broker to take it; the next command waits for it."""
MQTT_OFF_FIX = f"{OFF_FIX}, or MQTT_COMMANDS=open where the broker's ACLs decide who may publish"
MQTT_TOKEN_FIX = "Send it as the user property `authorization: Bearer <token>`, or as the key `token`"  # noqa: S105  # nosec B105


@dataclass(frozen=True, slots=True)
class _Remembered:
    at: float
    answer: bytes


class ModelCommandTopic:
    """Takes the messages of MQTT_COMMAND_TOPICS and carries them out one after the other; of no other topic.

    A message is acknowledged before it is carried out, and one that the broker marks as sent again is not carried out:
    a rollback that came twice would go back two versions. So a command is carried out once or not at all, and who gets
    no answer looks at `ai/models`.
    """

    def __init__(
        self, settings: Settings, broker: Broker, desk: CommandDesk, models: Models, guard: TokenGuard
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._desk = desk
        self._models = models
        self._guard = guard
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(WAITING)
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self.topics = settings.command_topics

    def take(self, message: Message) -> None:
        """Take one message in, without waiting; the caller sees to its acknowledgement."""
        if message.topic not in self.topics:
            return
        if message.retain:
            fix = "Publish commands without the retain flag, and clear this one"
            log.warning("Retained command ignored: it would come again at each start", topic=message.topic, fix=fix)
            return
        if (size := len(message.payload)) > MAX_COMMAND_BYTES:  # not kept while it waits
            message = replace(message, payload=b"", oversize=Oversize(size, ""))
        try:
            self._waiting.put_nowait(message)
        except asyncio.QueueFull:
            log.error("Command dropped: too many wait", waiting=WAITING)

    async def run(self) -> None:
        """Carry out for ever what was taken in."""
        while True:
            await self.handle(await self._waiting.get())

    async def handle(self, message: Message) -> None:
        """Carry one command out, unless it has been, and answer it; never raises."""
        key = _identity(message)
        known = self._remembered.get(key) if message.properties.correlation_data else None
        if known is not None and time.monotonic() - known.at < SAME_FOR_S:
            log.info("The same command again: answered as before", topic=message.topic)
            await self._publish(message, known.answer)
            return
        try:
            command = self._read(message)
        except CommandRefused as error:
            self._desk.refused(error, BY)
            await self._publish(message, self._body(_refusal(error)))
            return
        try:
            answer = self._body({"ok": True, "message": await self._desk.carry_out(command)})
        except CommandRefused as error:
            answer = self._body(_refusal(error))
        self._remember(key, answer)
        await self._publish(message, answer)

    def _read(self, message: Message) -> Command:
        """Raises CommandRefused; what is wrong in detail is only told to who knows the token."""
        if message.oversize is not None:
            text = f"the command has {message.oversize.size} bytes, the limit is {MAX_COMMAND_BYTES}"
            if message.oversize.properties:
                text = "the command has too many MQTT properties, or too long ones"
            raise CommandRefused("COMMAND_INVALID", text, fix="Send the command alone")
        body = read_object(message.payload)
        self._require_token(message, body)
        if message.duplicate:
            text = "the broker delivers this command again, so it may have been carried out before"
            fix = "See on ai/models how the model stands, and send the command anew if it is still wanted"
            raise CommandRefused("COMMAND_INVALID", text, fix=fix)
        refuse_unknown_keys(body, KEYS)
        return Command(action_of(body.get("action")), model_of(body.get("model")), version_of(body.get("version")), BY)

    def _require_token(self, message: Message, body: dict[str, Any]) -> None:
        if self._settings.mqtt_commands == "open":
            return
        given = [bearer(value) for value in _authorizations(message)]
        given += [body["token"]] if isinstance(body.get("token"), str) else []
        # MQTT does not tell who publishes, so failures count for the topic, and an attack there stops commands there.
        self._guard.admit(f"topic {message.topic}", given, off_fix=MQTT_OFF_FIX, fix=MQTT_TOKEN_FIX)

    def _body(self, answer: dict[str, Any]) -> bytes:
        head = {
            "message_type": "ai_model_command_result",
            "timestamp": round(time.time(), 3),
            "gateway_id": self._settings.gateway_id,
        }
        return msgspec.json.encode({**head, **answer})

    def _remember(self, key: bytes, answer: bytes) -> None:
        self._remembered.pop(key, None)
        self._remembered[key] = _Remembered(time.monotonic(), answer)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)

    async def _publish(self, message: Message, answer: bytes) -> None:
        topic = message.properties.response_topic
        if topic is None:
            return  # the log has it
        models = (model.spec.mqtt for model in self._models.current.models.values())
        if not may_answer_on(topic, self._settings, models):
            log.warning("No answer to a command: its response topic cannot be used", topic=topic[:200])
            return
        correlation = message.properties.correlation_data
        publication = Publication(topic, answer, content_type=JSON_TYPE, correlation_data=correlation)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await self._broker.publish(publication)
        except (BrokerError, TimeoutError) as error:
            log.warning("The answer to a command was not published", topic=topic[:200], reason=str(error))


def _refusal(error: CommandRefused) -> dict[str, Any]:
    return {"ok": False, "error": {"code": error.code, "message": error.message, "fix": error.fix}}


def _authorizations(message: Message) -> list[str]:
    return [value for name, value in message.properties.user_properties if name.lower() == "authorization"]


def _identity(message: Message) -> bytes:
    """The same for a message and for the same one delivered again."""
    properties, oversize = message.properties, message.oversize
    texts = (properties.response_topic or "", f"{oversize.size if oversize else 0}", *_authorizations(message))
    parts = (properties.correlation_data or b"", message.payload, *(text.encode(errors="replace") for text in texts))
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
