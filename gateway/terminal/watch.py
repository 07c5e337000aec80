"""`edge-gateway watch`: results, comparisons, errors and status, live."""

from __future__ import annotations

import asyncio

from gateway.config import Settings
from gateway.messages import Message
from gateway.ports import Broker
from gateway.terminal.lines import readable_line
from gateway.topic_patterns import fill


def watched_topics(settings: Settings) -> tuple[str, ...]:
    """The output topics as filters: every place, whatever gateway published there."""
    wild = dict.fromkeys(("business_unit", "facility", "gateway_id", "device_id", "model_name"), "{any}")
    templates = (settings.result_topic, settings.comparison_topic, settings.error_topic, settings.status_topic)
    return tuple(fill(template, wild).replace("{any}", "+") for template in templates)


async def watch(broker: Broker, *, count: int | None, raw: bool) -> int:
    """Print messages until interrupted, or until `count` results or errors were seen; returns the exit code."""
    seen = 0
    async with asyncio.TaskGroup() as group:
        session = group.create_task(broker.run(), name="broker")
        async for message in broker.messages():
            broker.acknowledge(message)
            if show(message, raw=raw):
                seen += not message.topic.endswith(("/status", "/comparison"))
            if count is not None and seen >= count:
                break
        await broker.close()
        session.cancel()
    return 0


def show(message: Message, *, raw: bool) -> bool:
    """Print one message; False when it is none of the gateway's."""
    line = readable_line(message.topic, message.payload)
    if line is None:
        return False
    print(message.payload.decode("utf-8", "replace") if raw else line, flush=True)
    return True
