"""How many snapshots a second a topic may bring and a device may send."""

from __future__ import annotations

from collections import OrderedDict

from gateway.errors import RateLimited
from gateway.flow.identify import MAX_TOPIC
from gateway.flow.token_bucket import TokenBucket
from gateway.live import Live
from gateway.messages import Message, Origin

BURST_S = 2.0
"""So many seconds' worth of messages may come at once."""
REMEMBERED = 4096
"""Topics, and as many devices, whose messages are counted; strangers invent both."""


class _Buckets:
    """One bucket for each name; the name that was silent the longest is forgotten, and starts with a full one."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, rate: float | None, now: float) -> bool:
        """Count one message at this rate, which may be another than the last time; False when it is too many."""
        if rate is None:
            self._buckets.clear()
            return True
        most = max(1.0, rate * BURST_S)
        bucket = self._buckets.setdefault(name, TokenBucket(most, now))
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._remembered:
            self._buckets.popitem(last=False)
        return bucket.take(rate, most, now)


class RateLimits:
    """RATE_LIMIT_PER_TOPIC and RATE_LIMIT_PER_DEVICE as they are now; what is refused uses up nothing.

    A message that the broker delivers again (DUP) is not counted: it was at its first delivery, and its sender cannot
    set that flag. What the broker has kept during an outage of the gateway is counted as it arrives.
    """

    def __init__(self, live: Live, remembered: int = REMEMBERED) -> None:
        self._live = live
        self._topics = _Buckets(remembered)
        self._devices = _Buckets(remembered)

    def __len__(self) -> int:
        return len(self._topics) + len(self._devices)

    def check_topic(self, message: Message) -> None:
        """Count a message before anything in it is read; raises RateLimited."""
        rate = self._live.current.rate_limit_per_topic
        if not self._within_topic_limit(message, rate):
            raise RateLimited(
                f"more than {rate or 0:g} messages a second came on this topic",
                fix="Send fewer frames, use a topic for each camera, or raise RATE_LIMIT_PER_TOPIC",
            )

    def _within_topic_limit(self, message: Message, rate: float | None) -> bool:
        if message.within_topic_limit is not None:
            return message.within_topic_limit
        return message.duplicate or self._topics.take(message.topic[:MAX_TOPIC], rate, message.received_at)

    def check_device(self, message: Message, origin: Origin) -> None:
        """Count a snapshot of the device that it names; raises RateLimited."""
        rate = self._live.current.rate_limit_per_device
        if not message.duplicate and not self._devices.take(origin.device_id, rate, message.received_at):
            raise RateLimited(
                f"the device sends more than {rate:g} snapshots a second",
                fix="Send fewer frames, or raise RATE_LIMIT_PER_DEVICE",
            )
