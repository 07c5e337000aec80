"""`edge-gateway send`: pictures to a topic, as JSON or as raw bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pybase64

from gateway.config import Settings
from gateway.errors import BrokerUnavailable, UserError
from gateway.messages import Publication
from gateway.ports import Broker
from gateway.terminal.session import session
from gateway.topics import DEVICE_PARTS, fill, names_in, without_share

PICTURES = (".jpg", ".jpeg", ".png")


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the JPEG and PNG files of the folders named; raises UserError when there are none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(item for item in path.iterdir() if item.suffix.lower() in PICTURES)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError("no such file or folder", where=str(path), fix="Check the path")
    if not found:
        raise UserError("no pictures there", where=", ".join(map(str, paths)), fix="Name JPEG or PNG files")
    return found


def default_topic(settings: Settings, form: str, device: str) -> str:
    """The first input topic that can carry this form: a raw picture's device is known from its topic only."""
    templates = [without_share(text) for text in settings.mqtt_input_topics]
    naming = [template for template in templates if names_in(template) & set(DEVICE_PARTS)]
    template = (naming or templates)[0] if form == "raw" else templates[0]
    parts = {name: name for name in names_in(template)} | {"stream": "snapshot"}
    return fill(template, parts | dict.fromkeys(DEVICE_PARTS, device) | settings.place)


def unpublishable(topic: str) -> str | None:
    """Why nothing can be published to a topic, or None."""
    if set(topic) & set("+#"):
        return "has wildcards"
    return None if topic and "\x00" not in topic else "is no topic"


def json_snapshot(image: bytes, device_id: str, **more: object) -> bytes:
    """The JSON form of a snapshot, taken now."""
    body = {"device_id": device_id, "timestamp": round(time.time(), 3), "metadata": {}, **more}
    return msgspec.json.encode({**body, "image_data": pybase64.b64encode_as_string(image)})


async def send(
    broker: Broker,
    address: str,
    pictures: Sequence[tuple[str, Callable[[], Publication]]],
    *,
    repeat: int,
    rate: float | None,
    timeout_s: float,
) -> int:
    """Publish each named picture `repeat` times, at `rate` a second at most; returns the exit code.

    Each is made when it is sent, so that every one has a timestamp of its own and no more than one is in memory.
    Raises BrokerUnavailable when the broker takes one of them no sooner than in `timeout_s`.
    """
    async with session(broker, address, limit_s=timeout_s):
        started, sent = time.monotonic(), 0
        for _ in range(repeat):
            for name, taken_now in pictures:
                if rate:
                    await asyncio.sleep(max(0.0, started + sent / rate - time.monotonic()))
                publication = taken_now()
                await _publish(broker, publication, timeout_s)
                sent += 1
                print(f"sent {name} ({len(publication.payload)} bytes) to {publication.topic}", flush=True)
    return 0


async def _publish(broker: Broker, publication: Publication, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await broker.publish(publication)
    except TimeoutError:
        raise BrokerUnavailable(
            f"the broker has not acknowledged a picture within {timeout_s:g} s",
            where=publication.topic,
            fix="See the broker's log, or allow longer with --timeout",
        ) from None
