"""The metrics of each camera: what came of its snapshots, and when the last one came; bounded in number."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.camera_counts import FORGOTTEN_AFTER_S, MOST_CAMERAS, OTHERS, OUTCOMES, CameraCounts
from gateway.errors import Outcome
from gateway.metrics import Metrics
from gateway.workers.aggregation import Merged, counted, families
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import site, until
from tests.worker_site import worker_site

PUBLISHED = OUTCOMES.index(Outcome.PUBLISHED)
HOSTILE = '"}\n# HELP x y\nedge_gateway_ready{a="\\'


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def counts(clock: Clock) -> CameraCounts:
    return CameraCounts(("c_total", "How many."), ("last", "When."), clock)


def samples(cameras: CameraCounts) -> dict[tuple[str, ...], float]:
    """What a scrape would read, by the name and the values of the labels."""
    registry = CollectorRegistry()
    registry.register(cameras)
    page = generate_latest(registry).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=20) | st.just(HOSTILE), st.sampled_from(OUTCOMES), st.integers(1, 9))))
def test_every_device_id_can_be_scraped_and_the_sums_hold(sent: list[tuple[str, Outcome, int]]) -> None:
    clock = Clock()
    cameras = counts(clock)
    expected: dict[tuple[str, ...], float] = {}
    for device_id, outcome, number in sent:
        cameras.count(device_id, OUTCOMES.index(outcome), number, clock())
        key = ("c_total", device_id, outcome.value)
        expected[key] = expected.get(key, 0) + number
    found = samples(cameras)
    assert {key: value for key, value in found.items() if key[0] == "c_total"} == expected
    assert {key[1] for key in found if key[0] == "last"} == {device_id for device_id, *_ in sent} - {OTHERS}


def test_one_who_invents_device_ids_makes_no_more_series_and_pushes_no_camera_out() -> None:
    clock = Clock()
    cameras = counts(clock)
    cameras.count("entrance", PUBLISHED, 1, clock())
    for number in range(3 * MOST_CAMERAS):
        cameras.count(f"invented-{number}", PUBLISHED, 1, clock())
    cameras.count("entrance", PUBLISHED, 1, clock())
    found = samples(cameras)
    assert found["c_total", "entrance", "published"] == 2
    assert found["c_total", OTHERS, "published"] == 2 * MOST_CAMERAS + 1
    assert len(found) == 2 * MOST_CAMERAS + 1
    assert ("last", OTHERS) not in found, "nobody is silent who is not known"


def test_a_name_that_nobody_could_read_is_counted_with_the_others() -> None:
    cameras = counts(Clock())
    for name in ("x" * 128, "x" * 129):
        cameras.count(name, PUBLISHED, 1, 0.0)
    assert {key[1] for key in samples(cameras) if key[0] == "c_total"} == {"x" * 128, OTHERS}


def test_a_camera_that_was_silent_for_a_day_is_forgotten_and_makes_room() -> None:
    clock = Clock()
    cameras = counts(clock)
    for number in range(MOST_CAMERAS):
        cameras.count(f"old-{number}", PUBLISHED, 1, clock())
    clock.now += FORGOTTEN_AFTER_S / 2
    cameras.count("old-0", PUBLISHED, 1, clock())
    clock.now += FORGOTTEN_AFTER_S / 2 + 1
    cameras.count("new", PUBLISHED, 1, clock())
    found = samples(cameras)
    assert {key[1] for key in found} == {"old-0", "new"}
    assert found["last", "new"] == pytest.approx(time.time(), abs=5)
    assert found["last", "new"] - found["last", "old-0"] == pytest.approx(FORGOTTEN_AFTER_S / 2 + 1, abs=0.01)


def test_an_answer_that_is_late_does_not_put_the_time_of_the_last_one_back() -> None:
    clock = Clock()
    cameras = counts(clock)
    for seen_at in (990.0, 980.0):
        cameras.count("gate", PUBLISHED, 1, seen_at)
    assert samples(cameras)["last", "gate"] == pytest.approx(time.time() - 10, abs=5)
    assert cameras.totals("gate") == (2, 0, 0)
    assert cameras.totals("unknown") is None


async def test_what_came_of_a_snapshot_is_counted_for_the_camera_that_it_names(tmp_path: Path) -> None:
    async with site(tmp_path) as place:

        def count(device_id: str, outcome: str) -> float:
            return place.metrics.value("camera_snapshots_total", device_id=device_id, outcome=outcome)

        place.snapshot(snapshot_json(jpeg(), device_id=HOSTILE))
        place.snapshot(snapshot_json(jpeg()[:-200], device_id="cam-cut"))
        place.snapshot(jpeg(), "azure-iot-operations/data/gate-7/snapshot")
        await until(lambda: sum(place.outcomes().values()) == 3, "three outcomes")
        assert count(HOSTILE, "published") == count("gate-7", "published") == count("cam-cut", "rejected") == 1
        seen_at = place.metrics.value("camera_last_snapshot_timestamp_seconds", device_id="gate-7")
        assert seen_at == pytest.approx(time.time(), abs=20)


async def test_one_who_asks_over_http_is_no_camera_and_is_missed_by_nobody(tmp_path: Path) -> None:
    async with site(tmp_path) as place, httpx.AsyncClient() as client:
        for body in (jpeg(), b"no picture"):
            url = f"http://127.0.0.1:{place.gateway.http_port}/v1/infer?device=gate-7"
            await client.post(url, content=body, headers={"Content-Type": "image/jpeg"})
        assert place.outcomes() == {"published": 1, "rejected": 1}
        assert place.metrics.value("camera_last_snapshot_timestamp_seconds", device_id="gate-7") == 0


async def test_several_workers_tell_of_all_their_cameras(tmp_path: Path) -> None:
    async with worker_site(tmp_path) as place:
        for number in range(8):
            place.snapshot(snapshot_json(jpeg(), device_id=f"cam-{number}"))
        await place.answered(8)
        await place.acknowledged()
        merged = await place.merged()
    for number in range(8):
        assert merged.value("camera_snapshots_total", device_id=f"cam-{number}", outcome="published") == 1
        assert merged.value("camera_last_snapshot_timestamp_seconds", device_id=f"cam-{number}") > time.time() - 60


def test_the_cameras_of_a_worker_that_has_ended_are_not_kept() -> None:
    metrics = Metrics()
    metrics.cameras.count("gate", PUBLISHED, 3, time.monotonic())
    metrics.snapshots_received.inc(3)
    merged = Merged([], [counted(families(metrics.registry))])
    assert merged.value("snapshots_received_total") == 3
    assert merged.value("camera_snapshots_total", device_id="gate", outcome="published") == 0
