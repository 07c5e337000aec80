"""The soak and the overload can fail: each promise that is broken is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.audit import RESULT, Answer, Snapshot
from tests.chaos.load import part
from tests.chaos.overload import IMPORTANT, CameraReport, OverloadReport, fair_shares, recovery
from tests.chaos.site import Sample
from tests.chaos.soak import judge, slope


def samples(growth_mb: float, *, fds_at_the_end: int = 20, threads_at_the_end: int = 15) -> list[Sample]:
    """Two hours, a sample every ten seconds."""
    return [
        Sample(
            at=10.0 * number,
            rss_mb=110 + growth_mb * number / 60 + (number % 3) * 0.2,
            fds=20 if number < 450 else fds_at_the_end,
            threads=15 if number < 450 else threads_at_the_end,
        )
        for number in range(720)
    ]


def test_flat_memory_is_well() -> None:
    assert judge(samples(0.0)) == []
    assert slope(samples(0.0)) == pytest.approx(0.0, abs=0.05)


def test_growth_is_measured_in_mb_in_ten_minutes() -> None:
    assert slope(samples(3.0)) == pytest.approx(3.0, abs=0.05)
    assert "resident memory grows by 3.0" in str(judge(samples(3.0)))


def test_descriptors_and_threads_have_to_be_constant() -> None:
    assert judge(samples(0.0, fds_at_the_end=21)) == ["fds went from 20 to 21"]
    assert judge(samples(0.0, threads_at_the_end=16)) == ["threads went from 15 to 16"]


def test_a_short_run_is_no_proof() -> None:
    assert judge(samples(0.0)[:5])


WELL = OverloadReport(
    capacity=20.0,
    offered=200.0,
    cameras=[
        CameraReport(IMPORTANT, 2.0, 2.0, 2.0, 0.1, 0.2),
        CameraReport("fast", 100.0, 6.0, 6.0, 0.2, 0.4),
        CameraReport("slow", 1.0, 1.0, 1.0, 0.2, 0.4),
    ],
    outcomes={RESULT: 100, "QUEUE_FULL": 900},
    normal_p99_s=0.1,
    recovery_s=0.5,
    memory_mb=120.0,
    lost=0,
    tally=(1000, 1000),
    unexpected_exits=[],
)


def test_an_overload_that_was_borne_well() -> None:
    assert WELL.failures == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory_mb": 151.0}, "memory"),
        ({"recovery_s": 2.1}, "normal again"),
        ({"lost": 1}, "lost"),
        ({"tally": (1000, 999)}, "differ"),
        ({"tally": None}, "differ"),
        ({"unexpected_exits": ["by itself"]}, "by itself"),
        ({"cameras": [CameraReport("slow", 1.0, 0.4, 1.0, 0.1, 0.2)]}, "slow got"),
        ({"cameras": [CameraReport("slow", 1.0, 1.0, 1.0, 0.1, 0.6)]}, "old"),
        ({"cameras": [CameraReport(IMPORTANT, 1.0, 1.0, 1.0, 0.1, 0.6)]}, "important camera waited"),
    ],
)
def test_each_broken_promise_of_an_overload_is_named(changes: dict[str, object], said: str) -> None:
    failures = replace(WELL, **changes).failures  # type: ignore[arg-type]
    assert len(failures) == 1
    assert said in failures[0]


offers = st.dictionaries(st.text(max_size=5), st.floats(0.01, 1000), min_size=1, max_size=30)


@given(offers, st.floats(0.01, 2000))
def test_shares_are_fair(offered: dict[str, float], total: float) -> None:
    shares = fair_shares(offered, total)
    assert sum(shares.values()) == pytest.approx(min(total, sum(offered.values())))
    assert all(shares[name] <= offered[name] * (1 + 1e-9) for name in offered)
    wanting = [shares[name] for name in offered if shares[name] < offered[name] * (1 - 1e-9)]
    assert all(share == pytest.approx(max(shares.values())) for share in wanting), "who wants more has as much as any"


def snapshot(sent_at: float, latency_s: float | None) -> Snapshot:
    answers = [] if latency_s is None else [Answer(sent_at + latency_s, "id", RESULT)]
    return Snapshot("camera", sent_at, answers=answers)


def test_recovery_ends_with_the_last_slow_answer() -> None:
    assert recovery([snapshot(9.0, 5.0), snapshot(11.0, 0.1)], 10.0, 0.2) == 0.0
    assert recovery([snapshot(10.5, 2.0), snapshot(11.0, 0.1)], 10.0, 0.2) == 2.5
    assert recovery([snapshot(10.5, None)], 10.0, 0.2) == float("inf")
    refused = replace(snapshot(10.5, None), answers=[Answer(10.6, "id", "QUEUE_FULL")])
    assert recovery([refused], 10.0, 0.2) == pytest.approx(0.6)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_a_part_of_values(values: list[float], share: float) -> None:
    assert sum(value <= part(values, share) for value in values) >= share * (len(values) - 1)
