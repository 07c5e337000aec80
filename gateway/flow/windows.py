"""The last readings of each sensor, joined to what a model is asked about."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gateway.errors import PayloadInvalid
from gateway.messages import Reading, Window
from gateway.models.preprocessing_spec import SensorSpec

MAX_SENSORS = 10_000
"""Sensors, each counted once a model, whose readings are kept."""
MAX_BYTES = 16 * 2**20
"""Bytes of all kept readings together."""

READINGS_KNOWN = 8
"""Messages of a sensor by which a repeated one is known."""

Key = tuple[str, str]
"""A sensor and the model that it asks."""


@dataclass(slots=True, eq=False)
class _Ring:
    """The last readings (window, channels); `end` is the row that the next one takes."""

    rows: NDArray[np.float64]
    end: int = 0
    wanted: int = 0
    """Readings until the next window."""
    known: deque[str] = field(default_factory=lambda: deque(maxlen=READINGS_KNOWN))
    """The `result_id` of the last messages."""

    def add(self, readings: NDArray[np.float64]) -> None:
        window = len(self.rows)
        readings = readings[-window:]
        before_edge = min(len(readings), window - self.end)
        self.rows[self.end : self.end + before_edge] = readings[:before_edge]
        self.rows[: len(readings) - before_edge] = readings[before_edge:]
        self.end = (self.end + len(readings)) % window

    def oldest_first(self) -> NDArray[np.float64]:
        joined: NDArray[np.float64] = np.concatenate((self.rows[self.end :], self.rows[: self.end]))
        joined.flags.writeable = False
        return joined


class Windows:
    """Readings in the order of their arrival: neither a gap between timestamps nor a jump back ends a window.

    What is kept is gone with the process, and then each sensor fills its window anew. A ring has
    window * channels * 8 bytes from its first reading on. Beyond `max_sensors` or `max_bytes` the sensor that has been
    silent the longest is forgotten.
    """

    def __init__(self, max_sensors: int = MAX_SENSORS, max_bytes: int = MAX_BYTES) -> None:
        self._max_sensors = max_sensors
        self._max_bytes = max_bytes
        self._rings: OrderedDict[Key, _Ring] = OrderedDict()
        self._bytes = 0
        self.forgotten = 0
        """Sensors that had to make room since the start."""

    def __len__(self) -> int:
        return len(self._rings)

    @property
    def size(self) -> int:
        """Bytes of all rings."""
        return self._bytes

    def join(self, reading: Reading, model_name: str, spec: SensorSpec) -> Window | None:
        """Add a reading, or several that came together, oldest first: their values one after the other.

        Gives the window that is complete when the ring is full, then every `stride` readings; of several that come
        together the last. The window asks for what its newest reading asks for. A model whose window or channels have
        changed starts anew. Raises PayloadInvalid when the values are no whole readings of as many channels as the
        model has; the ring stays as it was.
        """
        count, rest = divmod(len(reading.values), spec.channels)
        if rest or not count:
            raise PayloadInvalid(
                f"the reading has {len(reading.values)} values, the model '{model_name}' takes {spec.channels}",
                fix="Send one value a channel, for each reading in the model's order, or correct sensor.channels",
            )
        rows = np.array(reading.values, np.float64).reshape(count, spec.channels)
        ring = self._ring((reading.origin.device_id, model_name), spec)
        if reading.origin.result_id in ring.known:  # delivered again: it is in the window
            return None
        ring.known.append(reading.origin.result_id)
        if count < ring.wanted:
            ring.add(rows)
            ring.wanted -= count
            return None
        behind = (count - ring.wanted) % spec.stride  # readings that wait for the next window
        ring.add(rows[: count - behind])
        readings = ring.oldest_first()
        ring.add(rows[count - behind :])
        ring.wanted = spec.stride - behind
        return Window(
            origin=reading.origin,
            metadata=reading.metadata,
            backend_preference=reading.backend_preference,
            priority=reading.priority,
            deadline_ms=reading.deadline_ms,
            readings=readings,
        )

    def _ring(self, key: Key, spec: SensorSpec) -> _Ring:
        ring = self._rings.get(key)
        if ring is not None and ring.rows.shape != (spec.window, spec.channels):
            self._remove(key)
            ring = None
        if ring is None:
            ring = _Ring(np.empty((spec.window, spec.channels)), wanted=spec.window)
            self._rings[key] = ring
            self._bytes += ring.rows.nbytes
            self._make_room()
        self._rings.move_to_end(key)
        return ring

    def _make_room(self) -> None:
        """Forget those silent the longest; the newest stays even where it alone is too much."""
        while len(self._rings) > 1 and (len(self._rings) > self._max_sensors or self._bytes > self._max_bytes):
            self._remove(next(iter(self._rings)))
            self.forgotten += 1

    def _remove(self, key: Key) -> None:
        self._bytes -= self._rings.pop(key).rows.nbytes
