"""Cameras and viewer in one MQTT client: sends in a closed or an open loop and takes the time of each answer.

It uses paho directly and not the gateway's adapter, so that it measures the gateway from outside.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.bench.frames import Outgoing
from gateway.errors import StackError

CONNECT_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 60.0
MAX_IN_FLIGHT = 65_535

Make = Callable[[int], Outgoing]


@dataclass(slots=True)
class Round:
    """What one measurement saw; times in seconds of time.perf_counter()."""

    due: dict[int, float] = field(default_factory=dict)
    """When each snapshot, by its number, was to be sent."""
    answered: dict[int, float] = field(default_factory=dict)
    """When its first answer came."""
    bodies: list[bytes] = field(default_factory=list)
    """The answers, where they were to be kept."""
    errors: int = 0
    last_error: str = ""
    started: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first snapshot to the last answer."""
        return max(self.answered.values(), default=self.started) - self.started

    @property
    def unanswered(self) -> int:
        """Snapshots without any answer."""
        return len(self.due) - len(self.answered)

    @property
    def rate(self) -> float:
        """Results a second; an error is quickly said and does not count."""
        return (len(self.answered) - self.errors) / self.seconds if self.seconds > 0 else 0.0

    def milliseconds(self) -> list[float]:
        """From the moment at which each was due to its answer."""
        return [1000 * (at - self.due[number]) for number, at in self.answered.items()]


class Driver:
    """Sends to whatever listens and hears the answers on `topics`; a context manager. Numbers are never used twice."""

    def __init__(self, host: str, port: int, topics: tuple[str, ...]) -> None:
        self._address = (host, port)
        self._topics = topics
        self._changed = threading.Condition()
        self._round = Round()
        self._keep = False
        self._next = 0
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"bench-{uuid.uuid4().hex[:12]}", protocol=paho.MQTTv5
        )
        self._client.max_queued_messages_set(0)
        self._client.max_inflight_messages_set(MAX_IN_FLIGHT)
        self._client.on_message = self._on_message
        self._subscribed = threading.Event()

    def __enter__(self) -> Self:
        self._client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in self._topics])
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect(*self._address)
        self._client.loop_start()
        if not self._subscribed.wait(CONNECT_TIMEOUT_S):
            raise StackError("the broker does not accept the bench's client", fix="See the broker's log, and try again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: paho.Client, data: object, message: paho.MQTTMessage) -> None:
        now = time.perf_counter()
        correlation = getattr(message.properties, "CorrelationData", None)
        number = int.from_bytes(correlation, "big") if correlation else -1
        with self._changed:
            current = self._round
            if number not in current.due or number in current.answered:
                return
            current.answered[number] = now
            if self._keep:
                current.bodies.append(bytes(message.payload))
            if message.topic.endswith("/errors"):
                current.errors += 1
                current.last_error = message.payload[:300].decode(errors="replace")
            self._changed.notify()

    def closed_loop(self, make: Make, seconds: float, window: int, *, least: int = 1, keep: bool = False) -> Round:
        """As fast as answers come: `window` snapshots are unanswered at any time; at least `least` are sent."""
        current = self._begin(keep)
        over = current.started + seconds
        while time.perf_counter() < over or len(current.due) < least:
            self._send(make, time.perf_counter())
            self._wait(lambda: len(current.due) - len(current.answered) < window)
        return self._end()

    def open_loop(self, make: Make, seconds: float, rate: float, *, keep: bool = False) -> Round:
        """At fixed moments, `rate` a second, whatever becomes of those before; one sent late was due all the same."""
        current = self._begin(keep)
        for number in range(max(1, round(seconds * rate))):
            due = current.started + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            self._send(make, due)
        return self._end()

    def _begin(self, keep: bool) -> Round:
        with self._changed:
            self._keep = keep
            self._round = Round(started=time.perf_counter())
        return self._round

    def _send(self, make: Make, due: float) -> None:
        outgoing = make(self._next)
        self._next += 1
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = outgoing.number.to_bytes(8, "big")
        if outgoing.user_properties:
            properties.UserProperty = list(outgoing.user_properties)
        with self._changed:
            self._round.due[outgoing.number] = due
        self._client.publish(outgoing.topic, outgoing.payload, qos=1, properties=properties)

    def _end(self) -> Round:
        current = self._round
        self._wait(lambda: len(current.answered) == len(current.due))
        return current

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            if self._changed.wait_for(condition, ANSWER_TIMEOUT_S):
                return
        missing = f"{self._round.unanswered} of {len(self._round.due)} snapshots were not answered within"
        raise StackError(f"{missing} {ANSWER_TIMEOUT_S:.0f} s", fix="See the log of what was measured, and try again")
