"""`edge-gateway send`: pictures, videos and readings to a topic, as cameras and sensors send them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
import pybase64

from gateway.config import Settings
from gateway.errors import BrokerUnavailable, ConfigError, UserError
from gateway.messages import Publication
from gateway.ports import Broker
from gateway.regular_file import open_regular
from gateway.terminal.printable import printable
from gateway.terminal.progress import progress
from gateway.terminal.session import session
from gateway.topics import DEVICE_PARTS, fill, names_in, without_share

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_FILE_BYTES = 190 * 2**20
"""A message of MQTT holds 256 MiB, and base64 makes four bytes of three."""
SENSOR = "sensor"
"""The named part that tells a topic of readings from one of pictures."""


class Source(Protocol):
    """Something to send, item by item."""

    @property
    def live(self) -> bool:
        """Whether items come at a pace of their own, and one that is not taken is gone."""
        ...

    def items(self, rate: float | None) -> AsyncIterator[tuple[str, bytes]]:
        """A name and the content of each, made when it is asked for; at most `rate` a second where it is live."""
        ...


@dataclass(frozen=True, slots=True)
class Still:
    """One item whose content is made anew each time."""

    name: str
    content: Callable[[], bytes]
    live: bool = False

    async def items(self, rate: float | None) -> AsyncIterator[tuple[str, bytes]]:
        """Itself; the pace is that of the sender."""
        del rate
        yield self.name, self.content()


def find_files(paths: Sequence[Path], videos: Sequence[str]) -> list[Path]:
    """The files named, and the pictures and videos in the folders named; raises UserError when there are none."""
    found: list[Path] = []
    for path in paths:
        try:
            found += _files_of(path, videos)
        except OSError as error:  # of a name that is too long, or a folder of another user
            raise UserError(f"cannot be read: {error.strerror}", where=str(path), fix="Check the path") from error
    if not found:
        fix = "Name JPEG, PNG, WebP, BMP or TIFF files, or videos"
        raise UserError("no pictures there", where=", ".join(map(str, paths)), fix=fix)
    return found


def _files_of(path: Path, videos: Sequence[str]) -> list[Path]:
    if path.is_dir():
        return sorted(item for item in path.iterdir() if item.suffix.lower() in (*PICTURES, *videos))
    if path.is_file():
        return [path]
    what = "not a regular file" if path.exists() else "no such file or folder"
    raise UserError(what, where=str(path), fix="Name a file or a folder of them" if path.exists() else "Check the path")


def picture(path: Path) -> Still:
    """A file as it is."""
    return Still(path.name, partial(read_picture, path))


def read_picture(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file; raises ConfigError, for one that is too large before anything of it is read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(max_bytes + 1) if size <= max_bytes else b""
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), fix="Check its permissions") from error
    if max(size, len(content)) > max_bytes:
        limit = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes} bytes"
        raise ConfigError(f"is larger than {limit}", where=str(path), fix="Send a smaller picture")
    return content


def default_topic(settings: Settings, form: str, device: str, *, sensor: bool = False) -> str:
    """The first input topic that can carry this: a raw item's device is known from its topic only."""
    templates = [without_share(text) for text in settings.mqtt_input_topics]
    meant = [template for template in templates if (SENSOR in names_in(template)) is sensor]
    templates = meant or templates
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


def json_reading(values: Sequence[float], sensor_id: str, **more: object) -> bytes:
    """The JSON form of one reading, taken now: a value per channel."""
    # To the microsecond: the same time and values again would be the same reading, delivered twice.
    body = {"sensor_id": sensor_id, "timestamp": round(time.time(), 6), "values": list(values)}
    return msgspec.json.encode({**body, **more})


async def send(
    broker: Broker,
    address: str,
    sources: Sequence[Source],
    make: Callable[[bytes], Publication],
    *,
    repeat: int | None,
    rate: float | None,
    timeout_s: float,
    as_json: bool = False,
) -> int:
    """Publish what the sources give `repeat` times (None: for ever), at most `rate` items a second; the exit code.

    Each is made when it is sent, so that every one has a timestamp of its own and no more than one is in memory. Says
    of each that it was sent, in words or as JSON.
    Raises BrokerUnavailable when the broker takes one of them no sooner than in `timeout_s`.
    """
    total = _count(sources, repeat)
    async with session(broker, address, limit_s=timeout_s):
        with progress("Sending", total, quiet=as_json or _endless(sources, repeat)) as bar:
            async for name, publication in _paced(sources, make, repeat, rate):
                await _publish(broker, publication, timeout_s)
                print(_sent_json(name, publication) if as_json else _sent(name, publication), flush=True)
                bar.advance(label=None if total else f"Sending {name}")
    return 0


def _endless(sources: Sequence[Source], repeat: int | None) -> bool:
    return repeat is None or any(source.live for source in sources)


def _count(sources: Sequence[Source], repeat: int | None) -> int | None:
    """How many items come in all; how many frames a video has only its end tells."""
    return len(sources) * (repeat or 1) if all(isinstance(source, Still) for source in sources) else None


async def _paced(
    sources: Sequence[Source], make: Callable[[bytes], Publication], repeat: int | None, rate: float | None
) -> AsyncIterator[tuple[str, Publication]]:
    """Each item when it is time for it, by its name."""
    started, sent = time.monotonic(), 0
    for _ in itertools.repeat(None) if repeat is None else range(repeat):
        before = sent
        for source in sources:
            async for name, content in source.items(rate):
                if rate and not source.live:
                    await asyncio.sleep(max(0.0, started + sent / rate - time.monotonic()))
                yield name, make(content)
                sent += 1
        if sent == before:
            break  # nothing comes of it, and will not in the next round either


def _sent(name: str, publication: Publication) -> str:
    return printable(f"sent {name} ({len(publication.payload)} bytes) to {publication.topic}")


def _sent_json(name: str, publication: Publication) -> str:
    body = {"sent": name, "bytes": len(publication.payload), "topic": publication.topic}
    return json.dumps(body, ensure_ascii=False)


async def _publish(broker: Broker, publication: Publication, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await broker.publish(publication)
    except TimeoutError:
        raise BrokerUnavailable(
            f"the broker has not acknowledged it within {timeout_s:g} s",
            where=publication.topic,
            fix="See the broker's log, or allow longer with --timeout",
        ) from None
