"""The pauses between attempts to reach the broker."""

from __future__ import annotations

from gateway.adapters.mqtt_back_off import BackOff


def test_the_pauses_grow_and_stay_short_however_long_the_broker_is_away() -> None:
    back_off = BackOff(clock=lambda: 0.0)
    pauses = [back_off.pause_s(since=0.0) for _ in range(2000)]
    assert all(pause <= 0.2 * 2**number for number, pause in enumerate(pauses[:5]))
    assert 1.7 < max(pauses) <= 2.0, "back within 5 s"
    assert 0.75 < sum(pauses) / len(pauses) < 1.25, "spread, so that many gateways do not come at once"


def test_the_time_that_an_attempt_took_is_part_of_the_pause() -> None:
    back_off = BackOff(clock=lambda: 105.0)
    assert all(back_off.pause_s(since=100.0) <= 0.02 for _ in range(100))


def test_after_a_good_session_the_first_attempts_are_early_again() -> None:
    back_off = BackOff(clock=lambda: 0.0)
    for _ in range(10):
        back_off.pause_s(since=0.0)
    back_off.reset()
    assert back_off.pause_s(since=0.0) <= 0.2
