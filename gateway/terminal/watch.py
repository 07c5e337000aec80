"""`edge-gateway watch`: results, comparisons, errors, alerts and status, live."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TextIO

from gateway.config import Settings
from gateway.logs import configure_logging
from gateway.messages import Message
from gateway.ports import Broker
from gateway.terminal.lines import json_line, parse_message, readable_line
from gateway.terminal.save import Album
from gateway.terminal.session import session
from gateway.terminal.site_state import SiteState
from gateway.topics import fill

ANSWERS = ("ai_inference_result", "ai_inference_error")
"""The kinds of messages of which each snapshot gets exactly one."""
BACKGROUND = ("ai_metrics", "ai_model")
"""What only the live view listens to; it is not saved."""


def watched_topics(settings: Settings, *, live: bool = False) -> tuple[str, ...]:
    """The output topics as filters: every place, whatever gateway published there; for the live view a few more."""
    wild = dict.fromkeys(("business_unit", "facility", "gateway_id", "device_id", "model_name"), "{any}")
    templates = (
        settings.result_topic,
        settings.sensor_result_topic,
        settings.comparison_topic,
        settings.error_topic,
        settings.alert_topic,
        settings.status_topic,
        *((settings.metrics_topic, settings.models_topic) if live else ()),
    )
    return tuple(dict.fromkeys(fill(template, wild).replace("{any}", "+") for template in templates))


async def watch(broker: Broker, address: str, *, count: int | None, as_json: bool, album: Album | None = None) -> int:
    """Print messages until interrupted, or until `count` results or errors were seen; returns the exit code.

    With an album everything is saved too; the exit code is 1 when that failed.
    """
    seen = 0
    async with session(broker, address):
        print(f"Watching {address}; Ctrl-C ends.", file=sys.stderr, flush=True)
        async for message in broker.messages():
            broker.acknowledge(message)
            kind = show(message, as_json=as_json)
            if album is not None and (said := await album.see(message, kind)):
                print(f"edge-gateway: {said}", file=sys.stderr, flush=True)
            seen += kind in ANSWERS
            if count is not None and seen >= count:
                break
    return 1 if album is not None and album.failure else 0


def show(message: Message, *, as_json: bool) -> str | None:
    """Print one message and return its message_type; None when it is none of the gateway's."""
    line = readable_line(message.topic, message.payload)
    if line is None:
        return None
    print(json_line(message.payload) if as_json else line, flush=True)
    return str((parse_message(message.payload) or {}).get("message_type"))


async def watch_live(broker: Broker, address: str, *, count: int | None, album: Album | None = None) -> int:
    """As `watch`, but as a view that fills the terminal; q ends it with exit code 0."""
    from gateway.terminal.screen import Notes, Screen

    state = SiteState()
    started = time.monotonic()
    async with session(broker, address):
        screen = Screen(state, broker, address)
        reading = asyncio.create_task(_feed(broker, state, count, album), name="messages")
        reading.add_done_callback(lambda _: screen.over.set())
        log_to(Notes(state))
        try:
            with screen.shown():
                await screen.draw_until_over()
        finally:
            log_to(sys.stderr)
            reading.cancel()
            await asyncio.wait({reading})
    if not reading.cancelled():
        reading.result()
    seen = f"{state.results} results, {state.errors} errors and {state.alerts} alerts"
    print(f"edge-gateway: saw {seen} in {time.monotonic() - started:.0f} s", file=sys.stderr)
    if album is not None and album.failure:
        print(f"edge-gateway: {album.failure}", file=sys.stderr)
    return screen.code or int(album is not None and bool(album.failure))


def log_to(stream: TextIO) -> None:
    """What goes wrong with the session meanwhile; on stderr it would be written into the picture."""
    configure_logging("warning", "sentence", stream)


async def _feed(broker: Broker, state: SiteState, count: int | None, album: Album | None) -> None:
    """Messages into the state, until `count` results or errors were seen."""
    seen = 0
    async for message in broker.messages():
        broker.acknowledge(message)
        kind = state.see(message, time.monotonic())
        if album is not None and kind not in BACKGROUND and (said := await album.see(message, kind)):
            state.note(said)
        seen += kind in ANSWERS
        if count is not None and seen >= count:
            break
