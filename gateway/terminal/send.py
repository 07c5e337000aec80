"""`edge-gateway send`: pictures to a topic, as JSON or as raw bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pybase64

from gateway.errors import UserError
from gateway.messages import Publication
from gateway.ports import Broker

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


def json_snapshot(image: bytes, device_id: str, **more: object) -> bytes:
    """The JSON form of a snapshot, taken now."""
    body = {"device_id": device_id, "timestamp": round(time.time(), 3), "metadata": {}, **more}
    return msgspec.json.encode({**body, "image_data": pybase64.b64encode_as_string(image)})


async def send(
    broker: Broker, publications: Sequence[tuple[str, Publication]], *, repeat: int, rate: float | None
) -> int:
    """Publish each named publication `repeat` times, at `rate` a second at most; returns the exit code."""
    async with asyncio.TaskGroup() as group:
        session = group.create_task(broker.run(), name="broker")
        started, sent = time.monotonic(), 0
        for _ in range(repeat):
            for name, publication in publications:
                if rate:
                    await asyncio.sleep(max(0.0, started + sent / rate - time.monotonic()))
                await broker.publish(publication)
                sent += 1
                print(f"sent {name} ({len(publication.payload)} bytes) to {publication.topic}", flush=True)
        await broker.close()
        session.cancel()
    return 0
