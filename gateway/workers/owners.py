"""Which worker has which camera: one at a time, so that order, alerts, windows and limits are those of one process."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import replace

from gateway.config import Settings
from gateway.config_broker import DEFAULT_INPUT_TOPICS
from gateway.flow.identify import identify
from gateway.flow.ingest import sender_of
from gateway.messages import Message
from gateway.topics import TopicPattern

REMEMBERED = 100_000
"""Devices whose worker is known; ten times the sensors whose windows one worker keeps."""


class Senders:
    """Tells whose message it is, as a worker will."""

    def __init__(self, settings: Settings) -> None:
        self._patterns = settings.patterns
        self._usual = tuple(TopicPattern(text) for text in DEFAULT_INPUT_TOPICS)
        self._place = settings.place

    def of(self, message: Message) -> str:
        """The device that a message names, in JSON, in a user property or by its topic; never fails."""
        origin = identify(replace(message, payload=b"", oversize=None), self._patterns, self._place, self._usual)
        if message.payload[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
            origin = sender_of(message, origin)
        return origin.device_id


class Owners:
    """Gives each device to the worker that has fewest, and leaves it there; by hash it would be 6 to 2 with 8 cameras.

    Nothing of it outlives the front, and no worker does either. Beyond `remembered` devices the one is forgotten that
    was silent the longest; should it come back, it may come to another worker, where it begins anew.
    """

    def __init__(self, workers: int, remembered: int = REMEMBERED) -> None:
        self._owners: OrderedDict[str, int] = OrderedDict()
        self._counts = [0] * workers
        self._remembered = remembered

    def of(self, device: str, present: Collection[int]) -> int:
        """The worker, from 0, of a device; while that one is not present another, always the same."""
        owner = self._owners.get(device)
        if owner is None:
            owner = self._owners[device] = self._least(present)
            self._counts[owner] += 1
            if len(self._owners) > self._remembered:
                self._counts[self._owners.popitem(last=False)[1]] -= 1
        else:
            self._owners.move_to_end(device)
        if owner in present or not present:
            return owner
        digest = hashlib.blake2b(device.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return sorted(present)[int.from_bytes(digest, "big") % len(present)]

    def _least(self, present: Collection[int]) -> int:
        return min(present or range(len(self._counts)), key=lambda index: (self._counts[index], index))
