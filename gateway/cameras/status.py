"""How the cameras stand, for the log and for a health check from outside by a file."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import ConfigError
from gateway.regular_file import open_regular

WRITE_EVERY_S = 5.0
STALE_S = 30.0
"""A file that is older is of a process that hangs or has ended; a camera that has sent nothing for so long is dark."""
TURNS = 3
"""Turns that a slow camera may miss."""
SAY_AGAIN_S = 600.0
"""Before the same reason is said again: a camera that comes and goes would fill the log."""
MAX_REASONS = 32
MAX_BYTES = 1 << 20


class Status:
    """One camera: its reading thread writes what it finds, the event loop what it has sent."""

    def __init__(self, rate: float) -> None:
        self._limit_s = max(STALE_S, TURNS / rate)
        self.readable = False
        self.reason = "not read yet"
        """Why nothing is sent; empty while all is well."""
        self.sent = 0
        self._last_sent_at = -math.inf
        self._said: dict[str, float] = {}
        self._to_say = True

    def found(self) -> bool:
        """It can be read; returns whether that is news."""
        self.readable, self.reason = True, ""
        news, self._to_say = self._to_say, False
        return news

    def lost(self, reason: str) -> bool:
        """It cannot be read; returns whether that is news."""
        self.readable, self.reason = False, reason
        news = self._is_news(reason)
        self._to_say |= news
        return news

    def refused(self, reason: str) -> bool:
        """A snapshot of it was not sent; returns whether that is news."""
        self.reason = reason
        return self._is_news(reason)

    def _is_news(self, reason: str) -> bool:
        now, reason = time.monotonic(), re.sub(r"\d+", "0", reason)  # each frame has another size
        news = now - self._said.get(reason, -math.inf) > SAY_AGAIN_S
        if news:
            if len(self._said) >= MAX_REASONS:
                self._said.clear()
            self._said[reason] = now
        return news

    def taken(self) -> None:
        """The broker has one more snapshot of it."""
        self.sent += 1
        self.reason = ""
        self._last_sent_at = time.monotonic()

    def as_json(self) -> dict[str, Any]:
        """What a file says of it."""
        age_s = time.monotonic() - self._last_sent_at
        sends = age_s <= self._limit_s
        reason = self.reason
        if not (sends or reason):
            reason = f"nothing has been sent for {age_s:.0f} s" if self.sent else "nothing has been sent yet"
        return {"sends": sends, "sent": self.sent, "reason": reason}


def write_health(path: Path, cameras: Mapping[str, Status]) -> None:
    """All of it or nothing; raises ConfigError."""
    body = {"written_at": time.time(), "cameras": {device: status.as_json() for device, status in cameras.items()}}
    beside = path.with_name(f".{path.name}.new")
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no regular file")  # such as /dev/stdout, which would be replaced
        beside.unlink(missing_ok=True)
        # A new file, never one that somebody else has put there: a link would lead elsewhere.
        with open(beside, "x", opener=partial(os.open, mode=0o644)) as file:
            json.dump(body, file)
        beside.replace(path)
    except OSError as error:
        fix = "Name a file in a folder that can be written to"
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(path), fix=fix) from error


class _Camera(msgspec.Struct):
    sends: bool
    sent: int
    reason: str


class _Health(msgspec.Struct):
    written_at: float
    cameras: dict[str, _Camera]


def read_health(path: Path) -> tuple[bool, list[str]]:
    """Whether a process writes it of which some camera sends, and a line for each; raises ConfigError."""
    try:
        with open_regular(path) as file:
            health = msgspec.json.decode(file.read(MAX_BYTES), type=_Health)
    except OSError as error:
        fix = "Name the file of `edge-gateway camera --health-file`, which writes it once it runs"
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    except msgspec.MsgspecError as error:
        raise ConfigError("is no such file", where=str(path), fix="Name that of --health-file") from error
    age_s = time.time() - health.written_at
    if age_s > STALE_S:
        return False, [f"nothing has been written for {age_s:.0f} s"]
    lines = [_line(device, camera) for device, camera in health.cameras.items()]
    return any(camera.sends for camera in health.cameras.values()), lines


def _line(device: str, camera: _Camera) -> str:
    stands = "sends" if camera.sends else "does not send"
    return f"{device} {stands}, {camera.sent} so far{': ' if camera.reason else ''}{camera.reason}"
