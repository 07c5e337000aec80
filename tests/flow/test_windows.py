"""Readings become windows: the last ones of each sensor, every stride, within bounds."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import PayloadInvalid
from gateway.flow.windows import Windows
from gateway.messages import Origin, Place, Reading, Window
from gateway.models.preprocessing_spec import SensorSpec

PAIR = SensorSpec(window=2, stride=1, channels=1)


_messages = itertools.count()


def reading(*values: float, device: str = "pump-1", number: int = 0, result_id: str | None = None) -> Reading:
    """A reading; without a `result_id` one that no other has."""
    origin = Origin(
        result_id=result_id or f"{next(_messages):032x}",
        device_id=device,
        timestamp=1_697_385_600 + number,
        topic="edge-ai/bu/plant/gw/sensors/pump-1",
        payload_bytes=3,
        payload_sha256="00",
        received_at=float(number),
        place=Place("bu", "plant", "gw"),
    )
    return Reading(origin=origin, values=values)


def joined(window: Window | None) -> list[list[float]] | None:
    return None if window is None else window.readings.tolist()


@given(
    st.integers(1, 7).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window))),
    st.integers(1, 3),
    st.lists(st.sampled_from("ab"), max_size=60),
)
def test_as_a_list_of_all_readings_would_give_them(sizes: tuple[int, int], channels: int, devices: list[str]) -> None:
    window, stride = sizes
    spec = SensorSpec(window=window, stride=stride, channels=channels)
    book = Windows()
    seen: dict[str, list[list[float]]] = {"a": [], "b": []}
    for number, device in enumerate(devices):
        values = [number + channel / 10 for channel in range(channels)]
        seen[device].append(values)
        count = len(seen[device])
        due = count >= window and (count - window) % stride == 0
        given = joined(book.join(reading(*values, device=device), "model", spec))
        assert given == (seen[device][-window:] if due else None)


@given(
    st.integers(1, 7).flatmap(lambda window: st.tuples(st.just(window), st.lists(st.integers(1, window), min_size=1))),
    st.integers(1, 3),
    st.lists(st.integers(1, 20), max_size=12),
)
def test_readings_that_come_together_are_as_if_they_came_one_by_one(
    sizes: tuple[int, list[int]], channels: int, messages: list[int]
) -> None:
    """The stride may change from one message to the next."""
    window, strides = sizes
    together, single, number = Windows(), Windows(), 0
    for turn, count in enumerate(messages):
        spec = SensorSpec(window=window, stride=strides[turn % len(strides)], channels=channels)
        values = [[number + index + channel / 10 for channel in range(channels)] for index in range(count)]
        number += count
        given = joined(together.join(reading(*(part for one in values for part in one)), "model", spec))
        one_by_one = [joined(single.join(reading(*one), "model", spec)) for one in values]
        assert given == next((found for found in reversed(one_by_one) if found is not None), None)
    assert (len(together), together.size) == (len(single), single.size)


def test_a_large_message_is_one_step() -> None:
    """65536 readings one by one take a third of a second, in which nothing else is served."""
    message = reading(*map(float, range(65_536)))
    began = time.process_time()
    window = Windows().join(message, "model", SensorSpec(window=4096))
    took_s = time.process_time() - began
    assert window is not None
    assert window.readings.ravel().tolist() == list(range(65_536 - 4096, 65_536))
    assert took_s < 0.1


def test_a_window_of_one_is_given_at_once_and_may_be_kept() -> None:
    book, spec = Windows(), SensorSpec(channels=3)
    first = book.join(reading(1, 2, 3), "model", spec)
    assert joined(book.join(reading(4, 5, 6), "model", spec)) == [[4, 5, 6]]
    assert first is not None
    assert first.readings.tolist() == [[1, 2, 3]]
    assert first.readings.dtype == np.float64
    assert first.size == 24


def test_a_window_asks_for_what_its_newest_reading_asks_for() -> None:
    book = Windows()
    book.join(reading(1), "model", PAIR)
    newest = Reading(
        origin=reading(number=2).origin,
        metadata={"unit": "bar"},
        backend_preference="torch",
        priority=7,
        deadline_ms=250.0,
        values=(2.0,),
    )
    window = book.join(newest, "model", PAIR)
    assert window is not None
    assert window.origin is newest.origin
    assert window.metadata == {"unit": "bar"}
    assert (window.backend_preference, window.priority, window.deadline_ms) == ("torch", 7, 250.0)
    with pytest.raises(ValueError, match="read-only"):
        window.readings[0, 0] = 9


def test_readings_count_in_the_order_of_their_arrival() -> None:
    book = Windows()
    book.join(reading(1, number=10), "model", PAIR)
    assert joined(book.join(reading(2, number=3), "model", PAIR)) == [[1], [2]]


def test_another_number_of_values_is_refused_and_changes_nothing() -> None:
    book, spec = Windows(), SensorSpec(window=2, channels=2)
    book.join(reading(1, 2), "vibration", spec)
    with pytest.raises(PayloadInvalid, match=r"has 3 values, the model 'vibration' takes 2.*sensor\.channels"):
        book.join(reading(1, 2, 3), "vibration", spec)
    with pytest.raises(PayloadInvalid, match="has 0 values"):
        book.join(reading(device="other"), "vibration", spec)
    assert joined(book.join(reading(3, 4), "vibration", spec)) == [[1, 2], [3, 4]]
    assert len(book) == 1


def test_each_model_has_its_own_window() -> None:
    book = Windows()
    book.join(reading(1), "a", PAIR)
    assert book.join(reading(2), "b", PAIR) is None
    assert joined(book.join(reading(3), "a", PAIR)) == [[1], [3]]


def test_a_changed_window_starts_anew_and_a_changed_stride_does_not() -> None:
    book = Windows()
    for value in (1, 2):
        book.join(reading(value), "model", PAIR)
    longer = SensorSpec(window=3, stride=3, channels=1)
    assert book.join(reading(3), "model", longer) is None
    assert book.join(reading(4), "model", longer) is None
    assert joined(book.join(reading(5), "model", longer)) == [[3], [4], [5]]
    assert book.size == 24
    other = SensorSpec(window=3, stride=1, channels=1)
    given = [joined(book.join(reading(value), "model", other)) for value in (6, 7, 8, 9)]
    assert given == [None, None, [[6], [7], [8]], [[7], [8], [9]]]
    assert book.forgotten == 0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), max_size=60), st.integers(1, 4), st.integers(8, 100))
def test_never_more_than_the_bounds_and_each_loss_is_counted(
    arriving: list[tuple[int, int]], max_sensors: int, max_bytes: int
) -> None:
    book = Windows(max_sensors=max_sensors, max_bytes=max_bytes)
    kept: dict[str, int] = {}  # the one silent the longest first
    lost = 0
    for sensor, window in arriving:
        device = f"{sensor}-{window}"
        book.join(reading(1, device=device), "model", SensorSpec(window=window, channels=1))
        kept.pop(device, None)
        kept[device] = 8 * window
        while len(kept) > 1 and (len(kept) > max_sensors or sum(kept.values()) > max_bytes):
            kept.pop(next(iter(kept)))
            lost += 1
        assert (len(book), book.size, book.forgotten) == (len(kept), sum(kept.values()), lost)


def test_the_sensor_silent_the_longest_is_forgotten_first() -> None:
    book = Windows(max_sensors=2)
    book.join(reading(1, device="a"), "model", PAIR)
    book.join(reading(1, device="b"), "model", PAIR)
    assert book.join(reading(2, device="a"), "model", PAIR) is not None
    book.join(reading(1, device="c"), "model", PAIR)
    assert book.forgotten == 1
    assert book.join(reading(3, device="a"), "model", PAIR) is not None
    assert book.join(reading(2, device="b"), "model", PAIR) is None


def test_a_reading_that_comes_again_is_in_the_window_once() -> None:
    windows = Windows()
    assert windows.join(reading(1, result_id="a"), "model", PAIR) is None
    assert windows.join(reading(1, result_id="a"), "model", PAIR) is None
    assert joined(windows.join(reading(2, result_id="b"), "model", PAIR)) == [[1], [2]]
    assert windows.join(reading(2, result_id="b"), "model", PAIR) is None
    assert joined(windows.join(reading(2, result_id="c"), "model", PAIR)) == [[2], [2]]
