"""A stream that is decoded too slowly is noticed, and one whose frames come in bursts is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.cameras.reading import Lag

SECONDS = st.floats(0, 3, allow_nan=False)


@given(st.lists(SECONDS, min_size=1, max_size=100), st.floats(-1e6, 1e6))
def test_waiting_for_frames_is_no_lag_beyond_the_wait(waits: list[float], zero: float) -> None:
    lag = Lag()
    for number, wait in enumerate(waits):  # each comes up to 3 s after it was taken
        assert -1e-6 <= lag.behind_s(zero + number, number + wait) <= 3 + 1e-6


@given(st.floats(1.1, 10), st.floats(-1e6, 1e6))
def test_whoever_is_too_slow_falls_behind(slowness: float, zero: float) -> None:
    lag = Lag()
    behind = [lag.behind_s(zero + second, second * slowness) for second in range(100)]
    assert behind == sorted(behind)
    assert behind[-1] > 5
