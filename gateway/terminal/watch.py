"""`edge-gateway watch`: results, comparisons, errors, alerts and status, live."""

from __future__ import annotations

import sys

from gateway.config import Settings
from gateway.messages import Message
from gateway.ports import Broker
from gateway.terminal.lines import parse_message, readable_line
from gateway.terminal.save import Album
from gateway.terminal.session import session
from gateway.topics import fill

ANSWERS = ("ai_inference_result", "ai_inference_error")
"""The kinds of messages of which each snapshot gets exactly one."""


def watched_topics(settings: Settings) -> tuple[str, ...]:
    """The output topics as filters: every place, whatever gateway published there."""
    wild = dict.fromkeys(("business_unit", "facility", "gateway_id", "device_id", "model_name"), "{any}")
    templates = (
        settings.result_topic,
        settings.sensor_result_topic,
        settings.comparison_topic,
        settings.error_topic,
        settings.alert_topic,
        settings.status_topic,
    )
    return tuple(dict.fromkeys(fill(template, wild).replace("{any}", "+") for template in templates))


async def watch(broker: Broker, address: str, *, count: int | None, raw: bool, album: Album | None = None) -> int:
    """Print messages until interrupted, or until `count` results or errors were seen; returns the exit code.

    With an album everything is saved too; the exit code is 1 when that failed.
    """
    seen = 0
    async with session(broker, address):
        print(f"Watching {address}; Ctrl-C ends.", file=sys.stderr, flush=True)
        async for message in broker.messages():
            broker.acknowledge(message)
            kind = show(message, raw=raw)
            if album is not None:
                album.see(message, kind)
            seen += kind in ANSWERS
            if count is not None and seen >= count:
                break
    return 1 if album is not None and album.failed else 0


def show(message: Message, *, raw: bool) -> str | None:
    """Print one message and return its message_type; None when it is none of the gateway's."""
    line = readable_line(message.topic, message.payload)
    if line is None:
        return None
    print(message.payload.decode("utf-8", "replace") if raw else line, flush=True)
    return str((parse_message(message.payload) or {}).get("message_type"))
