"""Windows of readings for the sensor model, healthy and faulty, cut as the gateway cuts them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import recipe
from numpy.typing import NDArray

from gateway.local.thermometer import TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS, Fault, Thermometer

SEEDS = {"train": TRAIN_SEEDS, "validation": VALIDATION_SEEDS, "test": TEST_SEEDS}


@dataclass(frozen=True)
class Episode:
    """One fault of one thermometer: its first and its last reading."""

    fault: Fault
    first: int
    last: int

    def told_by(self, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which windows, by the index of their last reading, can tell of this fault.

        Those that end while it lasts; of a short one all that hold its first reading. Not those that end after a
        long one: they see the way back to the right temperature, which is easy.
        """
        return (ends >= self.first) & (ends <= max(self.last, self.first + recipe.WINDOW - 1))


def healthy_windows(split: str) -> NDArray[np.float32]:
    """Normalised windows (n, 32, 1) of all healthy thermometers of a split."""
    seeds = SEEDS[split][: recipe.SENSORS[split]]
    return np.concatenate([windows(_read(Thermometer(seed), recipe.SENSOR_READINGS)[0]) for seed in seeds])


def faulty_series() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64], list[Episode]]]:
    """Per faulty test thermometer: its windows, the index of each window's last reading, and its faults."""
    start = recipe.SENSORS["test"]
    for seed in TEST_SEEDS[start : start + recipe.SENSORS["faulty"]]:
        values, faults = _read(Thermometer(seed, recipe.ANOMALY_EVERY), recipe.FAULTY_READINGS)
        cut = windows(values)
        ends = np.arange(len(cut)) * recipe.STRIDE + recipe.WINDOW - 1
        yield cut, ends, [e for e in episodes(faults) if e.first + recipe.WINDOW <= len(values) > e.last + 1]


def windows(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Normalised windows (n, 32, 1) of one series, a new one every `STRIDE` readings."""
    cut = np.lib.stride_tricks.sliding_window_view(values, recipe.WINDOW)[:: recipe.STRIDE, :, None]
    return ((cut - recipe.SENSOR_MEAN) / recipe.SENSOR_STD).astype(np.float32)


def episodes(faults: list[Fault | None]) -> list[Episode]:
    """The faults of a series; healthy readings lie between any two."""
    found: list[Episode] = []
    for i, fault in enumerate(faults):
        if fault is None:
            continue
        if i and faults[i - 1] is not None:
            found[-1] = Episode(fault, found[-1].first, i)
        else:
            found.append(Episode(fault, i, i))
    return found


def _read(thermometer: Thermometer, count: int) -> tuple[NDArray[np.float64], list[Fault | None]]:
    values, faults = np.empty(count), []
    for i in range(count):
        values[i] = thermometer.read()
        faults.append(thermometer.fault)
    return values, faults
