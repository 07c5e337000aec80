"""Plays a thermometer in a heated hall, together with the truth about its faults.

The sensor sample model is trained and tested on these readings and the demo publishes them. One reading stands for
five minutes. An on/off heating holds the hall between two temperatures, so a healthy thermometer is never still:
heating up takes some five readings, cooling down some seven, and the weather of the day shifts both. The same seed
always gives the same readings; the seed ranges below keep training, validation and test sensors apart.
"""

# ruff: noqa: S311  readings need numbers that come again, not secret ones
import math
import random
from collections.abc import Iterator
from typing import Literal, get_args

TRAIN_SEEDS = range(300_000, 310_000)
VALIDATION_SEEDS = range(310_000, 320_000)
TEST_SEEDS = range(320_000, 330_000)

Fault = Literal["spike", "stuck", "jump", "drift", "dropout"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

READINGS_A_DAY = 288
MORNING, EVENING = 72, 240  # the set point goes up at 6:00 and down at 20:00
NO_READING = 0.0  # what a field bus hands on for a thermometer that does not answer
RESOLUTION = 1 / 16
HEATING = 0.42  # degrees a reading
LEAK = 1 / 60  # share of the difference to the weather outside that is lost with each reading
RESTLESS = 0.02  # doors and people, degrees a reading
NOISE = 0.05  # of the thermometer itself, in degrees


class Hall:
    """The true temperature of one heated hall under changing weather."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._clock = rng.randrange(READINGS_A_DAY)
        self._day, self._night = rng.uniform(20.5, 23.0), rng.uniform(1.0, 2.5)
        self._season, self._swing, self._front = rng.uniform(8.0, 13.0), rng.uniform(2.0, 4.0), 0.0
        self._wish = 0.0
        self._half_band = rng.uniform(0.5, 0.7)
        self._heats = rng.random() < 0.5
        self.celsius = self._set_point() + rng.uniform(-self._half_band, self._half_band)

    def _set_point(self) -> float:
        """Lower at night, and now and then somebody turns the wheel."""
        if self._rng.random() < 2 / READINGS_A_DAY:
            self._wish = self._rng.uniform(-1.0, 1.0)
        by_day = MORNING <= self._clock % READINGS_A_DAY < EVENING
        return self._day + self._wish - (0.0 if by_day else self._night)

    def _outside(self) -> float:
        """Warmest at 15:00; warm and cold fronts come and go over days."""
        self._front += self._rng.gauss(0.0, 0.1) - self._front / READINGS_A_DAY
        angle = 2 * math.pi * (self._clock - 108) / READINGS_A_DAY
        return self._season + self._front + self._swing * math.sin(angle)

    def step(self) -> float:
        """Five minutes later, in degrees Celsius."""
        self._clock += 1
        wanted = self._set_point()
        if self.celsius > wanted + self._half_band:
            self._heats = False
        elif self.celsius < wanted - self._half_band:
            self._heats = True
        lost = (self.celsius - self._outside()) * LEAK
        self.celsius += (HEATING if self._heats else 0.0) - lost + self._rng.gauss(0.0, RESTLESS)
        return self.celsius


class Thermometer:
    """Readings of one thermometer in degrees Celsius.

    With `anomaly_every` a fault comes after every so many healthy readings, each kind in turn. `fault` names the
    fault in the last reading.
    """

    def __init__(self, seed: int, anomaly_every: int | None = None) -> None:
        if anomaly_every is not None and anomaly_every < 1:
            raise ValueError(f"anomaly_every is {anomaly_every}; name at least 1 healthy reading between two faults")
        self._rng = random.Random(seed)
        self._hall = Hall(self._rng)
        self._every, self._healthy, self._faults = anomaly_every, 0, 0
        self._course: Iterator[float] = iter(())
        self.fault: Fault | None = None

    def read(self) -> float:
        """The next reading; 0.0 while the thermometer does not answer."""
        true = self._hall.step() + self._rng.gauss(0.0, NOISE)
        value = self._faulty(true)
        return round(value / RESOLUTION) * RESOLUTION

    def _faulty(self, true: float) -> float:
        """What the thermometer says where the temperature is `true`."""
        error = next(self._course, None)
        if error is None and self.fault is not None:
            self.fault, self._healthy = None, 0
        if error is None and self._every is not None and self._healthy == self._every:
            self.fault = FAULTS[self._faults % len(FAULTS)]
            self._faults += 1
            self._held = true
            self._course = iter(self._errors(self.fault))
            error = next(self._course)
        if error is None:
            self._healthy += 1
            return true
        if self.fault == "stuck":
            return self._held
        return NO_READING if self.fault == "dropout" else true + error

    def _errors(self, fault: Fault) -> list[float]:
        """By how many degrees each reading of a fault is wrong; where the value itself is lost, only how many."""
        rng = self._rng
        sign, long = rng.choice((-1.0, 1.0)), rng.randint(36, 72)
        if fault == "spike":
            return [sign * rng.uniform(2.0, 10.0)]
        if fault == "jump":
            return [sign * rng.uniform(2.0, 6.0)] * long
        if fault == "drift":
            slope = sign * rng.uniform(0.1, 0.3)
            return [slope * (i + 1) for i in range(long)]
        return [0.0] * (long if fault == "stuck" else rng.randint(1, 6))
