"""Under overload every camera gets its max-min share, what is served is fresh, and what is remembered is bounded."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.flow.lanes import Services
from gateway.flow.schedule import FRESH_S, PRESSURE_S, STALE_S, Schedule
from gateway.messages import Job
from gateway.metrics import Metrics
from tests.flow.builders import served, spec
from tests.flow.overload_simulation import EXPIRY_S, IN_FLIGHT, Camera, fair_shares, frame, simulate

MODEL, OTHER = served(), served(spec("other"))
CAPACITY = 40.0


def schedule(max_messages: int = 64, max_bytes: int = 2**23) -> Schedule:
    return Schedule(max_messages, max_bytes, lambda _: True, Metrics())


def camera(name: str, rate: float, **more: object) -> Camera:
    return Camera(name, rate, **{"model": MODEL, **more})  # type: ignore[arg-type]


def fleet(fast: int, rate: float, slow: int, slow_rate: float = 0.1) -> list[Camera]:
    return [camera(f"fast-{i}", rate) for i in range(fast)] + [camera(f"slow-{i}", slow_rate) for i in range(slow)]


rates = st.lists(st.sampled_from((0.2, 0.5, 1.0, 3.0, 10.0, 50.0)), min_size=1, max_size=40)


@settings(max_examples=25, deadline=None)
@given(rates, st.sampled_from((8, 64)), st.integers(40, 400), st.integers(0, 1000))
def test_whatever_the_rates_the_queue_is_bounded_nothing_vanishes_and_shares_are_fair(
    given_rates: list[float], places: int, max_bytes: int, seed: int
) -> None:
    cameras = [camera(f"{i}", rate, size=1 + i % 3) for i, rate in enumerate(given_rates)]
    seconds, capacity = 20.0, 20.0
    ledger = simulate(schedule(places, max_bytes), cameras, capacity=capacity, seconds=seconds, seed=seed)
    assert ledger.longest <= places
    assert ledger.heaviest <= max_bytes
    assert sum(ledger.sent.values()) == sum(ledger.served.values()) + ledger.full + ledger.late
    assert ledger.backwards == 0
    fair = fair_shares({name: count / seconds for name, count in ledger.sent.items()}, capacity)
    if places >= 64 and max_bytes >= 200:
        for name, share in fair.items():
            assert ledger.served[name] >= 0.85 * share * seconds - 2, name


def test_one_fast_camera_takes_nothing_from_two_hundred_slow_ones() -> None:
    ledger = simulate(schedule(), fleet(1, 100, 199), capacity=CAPACITY, seconds=60)
    assert all(ledger.share(name) == 1 for name in ledger.sent if name.startswith("slow"))
    assert ledger.served["fast-0"] >= 0.9 * (CAPACITY - 19.9) * 60


def test_more_fast_cameras_than_places_take_nothing_from_slow_ones_and_share_evenly() -> None:
    queue = schedule()
    simulate(queue, fleet(0, 0, 100), capacity=CAPACITY, seconds=11)  # until every one of them is known
    ledger = simulate(queue, fleet(100, 4, 100), capacity=CAPACITY, seconds=60)
    slow = [ledger.share(name) for name in ledger.sent if name.startswith("slow")]
    fast = [count for name, count in ledger.served.items() if name.startswith("fast")]
    assert sum(slow) / len(slow) >= 0.99
    assert min(fast) >= 0.7 * max(fast)
    assert sum(fast) >= 0.95 * (CAPACITY - 10) * 60


def test_a_slow_camera_is_soon_known_where_all_others_are_fast() -> None:
    ledger = simulate(schedule(), fleet(100, 4, 100), capacity=CAPACITY, seconds=60)
    for name in ledger.sent:
        if name.startswith("slow"):
            assert ledger.served[name] >= ledger.sent[name] - 2, name


def test_frames_of_a_slow_camera_that_come_close_together_are_answered_too() -> None:
    uneven, queue = [camera(f"slow-{i}", 0.2, jitter=2.0) for i in range(60)], schedule()
    simulate(queue, uneven, capacity=CAPACITY, seconds=20)  # until every one of them is known
    ledger = simulate(queue, [*fleet(100, 4, 0), *uneven], capacity=CAPACITY, seconds=100)
    shares = [ledger.share(each.name) for each in uneven]
    assert sum(shares) / len(shares) >= 0.95


def test_cameras_of_a_model_that_does_not_serve_leave_the_places_to_others() -> None:
    serving = {"detector", "other"}
    queue = Schedule(64, 2**23, serving.__contains__, Metrics())
    stuck, slow = [camera(f"stuck-{number}", 1, model=OTHER) for number in range(100)], camera("slow", 1)
    for each in (*stuck, slow):
        queue.put(frame(each, 0.0))
        queue.take()
    serving.remove("other")
    for number in range(64):
        queue.put(frame(stuck[number], 1.0, 1000))
    for number in range(64, 100):
        queue.put(frame(stuck[number], 1.0 + number, 1000))
        job = frame(slow, 2.0 + number)
        assert job not in queue.put(job)
        assert queue.take() is job


def test_who_invents_a_device_id_for_each_message_has_the_share_of_as_many_cameras_as_there_are_places() -> None:
    cameras = fleet(50, 0.7, 0)
    strangers = [camera(f"stranger-{i}", 1, jitter=0, start=5 + i / 1000, until=5.5 + i / 1000) for i in range(30_000)]
    ledger = simulate(schedule(), [*cameras, *strangers], capacity=CAPACITY, seconds=35)
    alone = 5 * 0.7
    theirs = [ledger.served[each.name] - alone for each in cameras]
    assert sum(theirs) >= 0.9 * 50 / (50 + 64) * CAPACITY * 30
    assert min(theirs) >= 0.5 * max(theirs)


def test_the_memory_of_services_is_bounded_and_the_longest_ago_is_forgotten_first() -> None:
    services = Services(remembered=100)
    for number in range(1_000_000):
        services.standing(0, (f"stranger-{number}", "m", ""))
    assert len(services) == 0
    for number in range(1000):
        lane = (f"camera-{number}", "m", "")
        services.serve(0, lane, services.standing(0, lane))
    assert len(services) == 100
    assert services.standing(0, ("camera-950", "m", "")) < services.standing(0, ("camera-999", "m", ""))


# --- freshness -------------------------------------------------------------------------------------


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


def test_a_camera_that_is_a_little_too_fast_is_answered_about_what_it_sees_now() -> None:
    ledger = simulate(schedule(), fleet(4, 12, 0), capacity=CAPACITY, seconds=120)
    late = [age for ages in ledger.ages.values() for age in ages[len(ages) // 4 :]]
    assert percentile(late, 0.99) < 0.4
    assert sum(ledger.served.values()) >= 0.97 * CAPACITY * 120, "no capacity is lost for that"
    assert ledger.emptied_at - 120 < 1


def test_when_the_pressure_ends_no_camera_answers_about_what_it_saw_seconds_ago() -> None:
    cameras = [camera(f"fast-{number}", 30.0) for number in range(6)]
    ledger = simulate(schedule(), cameras, capacity=8, seconds=60)
    assert max(ages[-1] for ages in ledger.ages.values()) < STALE_S + IN_FLIGHT / 8 + EXPIRY_S
    assert ledger.emptied_at - 60 < 2


def test_a_backlog_that_fits_is_served_whole_and_in_order() -> None:
    queue = schedule()
    jobs = [frame(camera("a", 1), number / 100) for number in range(64)]
    assert not any(gone for job in jobs for gone in queue.put(job))
    queue.take()
    queue.put(late := frame(camera("a", 1), 5.0))
    assert [queue.take() for _ in range(64)] == [*jobs[1:], late]


def under_pressure(queue: Schedule, until: float) -> None:
    """Let twice as much come as is served."""
    for number in range(20):
        at = until - 2 + number / 10
        for name in "xyz":
            queue.put(frame(camera(name, 1), at))
        queue.take()
    queue.drain()


def test_after_the_pressure_a_backlog_is_served_whole_again() -> None:
    queue = schedule(2)
    under_pressure(queue, until=2.0)
    queue.limit(64, 2**23)
    queue.put(late := frame(camera("a", 1), 2.0))
    assert queue.put(frame(camera("a", 1), 2.1 + FRESH_S)) == [late]
    queue.drain()
    calm = [frame(camera("a", 1), 4 + PRESSURE_S + number) for number in range(10)]
    assert not any(gone for job in calm for gone in queue.put(job))
    assert [queue.take() for _ in calm] == calm


def test_a_burst_that_does_not_fit_costs_what_does_not_fit_and_no_more() -> None:
    queue, cameras = schedule(), [camera(name, 1) for name in "abcd"]
    queue.put(frame(cameras[0], 0.0))
    queue.take()
    gone = [job for number in range(100) for job in queue.put(frame(cameras[number % 4], number / 300))]
    for number in range(20):
        gone += queue.expired(at := 0.4 + number / 10) + queue.outpaced(at)
        assert queue.take()
        gone += queue.put(frame(cameras[number % 4], at))
    assert len(gone) == 100 - 64


def test_while_nothing_can_be_served_only_what_does_not_fit_goes() -> None:
    queue, cameras = schedule(), [camera(name, 1) for name in "abcd"]
    queue.put(frame(cameras[0], 0.0))
    queue.take()
    gone: list[Job] = []
    for number in range(120):
        at = number / 14
        gone += queue.expired(at) + queue.outpaced(at) + queue.put(frame(cameras[number % 4], at))
    assert len(gone) == 120 - 64
    served_again = 0
    while queue.take() is not None:
        served_again += 1
        gone += queue.expired(at := 9 + served_again / 40) + queue.outpaced(at)
    assert (served_again, len(gone)) == (64, 120 - 64)


def test_what_was_not_served_in_time_is_pressure_too_unless_its_model_did_not_serve() -> None:
    for model, gives_way in ((MODEL, True), (OTHER, False)):
        queue = Schedule(64, 2**23, lambda name: name != "other", Metrics())
        queue.put(frame(camera("a", 1, model=model), 0.0, deadline_s=1))
        queue.put(frame(camera("b", 1, priority=1), 0.5))
        queue.take()
        queue.put(old := frame(camera("a", 1, model=model), 1.0))
        queue.expired(1.0)
        assert queue.put(frame(camera("a", 1, model=model), 1.1 + FRESH_S)) == ([old] if gives_way else [])


def test_a_high_priority_waits_for_one_place_in_flight_whatever_else_comes() -> None:
    urgent = camera("urgent", 2, priority=5)
    ledger = simulate(schedule(), [*fleet(20, 20, 0), urgent], capacity=CAPACITY, seconds=60)
    assert ledger.share("urgent") == 1
    assert max(ledger.ages["urgent"]) < 4 / CAPACITY * 1.25
    low = sum(count for name, count in ledger.served.items() if name != "urgent")
    assert low >= 0.95 * (CAPACITY - 2) * 60


def test_a_busy_high_priority_leaves_the_others_as_fair_as_they_were() -> None:
    queue, urgent = schedule(), camera("urgent", 8, priority=5)
    simulate(queue, [*fleet(0, 0, 100), urgent], capacity=CAPACITY, seconds=11)
    ledger = simulate(queue, [*fleet(100, 4, 100), urgent], capacity=CAPACITY, seconds=60)
    slow = [name for name in ledger.sent if name.startswith("slow")]
    assert sum(ledger.share(name) for name in slow) / len(slow) >= 0.95
    assert percentile([age for name in slow for age in ledger.ages[name]], 0.5) < 0.2


# --- its own cost ----------------------------------------------------------------------------------


def test_many_places_cost_no_more_than_a_few() -> None:
    def seconds(places: int, cameras: int) -> float:
        queue = schedule(places, 2**40)
        all_of_them = [camera(f"{number}", 1) for number in range(cameras)]
        jobs: list[Job] = [frame(all_of_them[number % cameras], 0.0) for number in range(places + 1000)]
        for job in jobs[:places]:
            queue.put(job)
        started = time.process_time()
        for job in jobs[places:]:
            queue.put(job)
            queue.expired(0.0)
            queue.take()
            queue.put(job)
        return time.process_time() - started

    few = seconds(64, 64)
    assert seconds(20_000, 20_000) < 0.5 + 20 * few
    assert seconds(20_000, 10) < 0.5 + 20 * few
