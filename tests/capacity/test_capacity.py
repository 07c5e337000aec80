"""The capacity model agrees with a simulation, with what was measured, and with its page."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.capacity.broker import Traffic, measure
from tests.capacity.model import (
    BROKER_MS_PER_MB,
    BROKER_MS_PER_MESSAGE,
    BURST_USED,
    DEADLINE_S,
    MODELS,
    MOST_USED,
    SAMPLE,
    SERIES_PER_CAMERA,
    SERIES_PER_GATEWAY,
    YOLO_N,
    Machine,
    Model,
    Site,
    most_cameras,
    plan,
    used,
)
from tests.capacity.queueing import erlang_c, mean_wait_s, servers_for
from tests.capacity.simulation import Arrivals, Line, as_planned, simulate
from tests.capacity.tables import SIZES, every
from tests.command_line import ROOT
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import site

TOLERANCE = 0.1
"""Of the formula; half of it is the chance of 200,000 arrivals."""
ARRIVALS = 200_000
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
quick = settings(derandomize=True, deadline=None, max_examples=12, database=None)


def decoding_only(servers: int, load: float, service_s: float) -> Line:
    """Cameras before so many decoders; Triton is never short."""
    return Line(500, load * servers / service_s / 500, servers, service_s, 500, 1e-9, 10**9)


def seconds_of(line: Line) -> float:
    return ARRIVALS / (line.cameras * line.rate_per_camera)


@quick
@given(servers=st.integers(1, 8), load=st.floats(0.3, 0.85), seed=st.integers(0, 9))
def test_the_formula_of_waits_agrees_with_the_simulation(servers: int, load: float, seed: int) -> None:
    line = decoding_only(servers, load, 0.004)
    seen = simulate(line, seconds=seconds_of(line), seed=seed)
    expected = mean_wait_s(load * servers / line.decode_s, line.decode_s, servers)
    # Where hardly anybody waits, a thousandth of the time of service is as good as nothing.
    assert seen.wait_for_decoder_s == pytest.approx(expected, rel=TOLERANCE, abs=line.decode_s / 1000)


@quick
@given(servers=st.integers(1, 8), load=st.floats(0.3, 0.9))
def test_regular_cameras_wait_no_longer_than_the_formula_says(servers: int, load: float) -> None:
    """On average: the moments at which they began stay theirs, and one unlucky set of them waits longer every time."""
    line = replace(decoding_only(servers, load, 0.004), arrivals=Arrivals.REGULAR)
    three_turns = 3 / line.rate_per_camera
    waits = [simulate(line, seconds=three_turns, seed=seed).wait_for_decoder_s for seed in range(60)]
    limit = mean_wait_s(load * servers / line.decode_s, line.decode_s, servers)
    assert statistics.mean(waits) <= limit * (1 + TOLERANCE) + line.decode_s / 1000


@quick
@given(decoders=st.integers(2, 8), instances=st.integers(1, 4), load=st.floats(0.3, 0.8))
def test_triton_behind_the_decoders_waits_no_longer_than_on_its_own(decoders: int, instances: int, load: float) -> None:
    rate = load * instances / 0.007
    line = Line(500, rate / 500, decoders, min(0.006, load * decoders / rate), instances, 0.007, 10**9)
    seen = simulate(line, seconds=seconds_of(line), seed=3)
    assert seen.wait_for_triton_s <= mean_wait_s(rate, 0.007, instances) * (1 + TOLERANCE) + line.infer_s / 1000


def test_formulas_that_are_known_exactly() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert mean_wait_s(125, 0.004, 1) == pytest.approx(0.002)  # M/D/1, half busy: half a time of service
    assert servers_for(100, 0.0073, most_used=0.6) == 2
    with pytest.raises(ValueError, match="Erlang"):
        erlang_c(2, 2.0)


@pytest.mark.parametrize("model", MODELS, ids=[each.name for each in MODELS])
@pytest.mark.parametrize("arrivals", list(Arrivals))
@pytest.mark.parametrize("size", SIZES)
def test_what_is_planned_serves_every_snapshot_in_time(size: int, arrivals: Arrivals, model: Model) -> None:
    needed = plan(Site(size), model)
    seen = simulate(as_planned(needed, arrivals), seconds=max(3.0, 3000 / size), seed=1)
    assert seen.refused == 0
    assert seen.latency_s(100) <= BURST_USED * DEADLINE_S + 0.1


def test_less_than_is_planned_does_not() -> None:
    line = as_planned(plan(Site(1000), YOLO_N), Arrivals.REGULAR)
    starved = simulate(replace(line, instances=line.instances // 3), seconds=100, seed=1)
    assert starved.latency_s(99) > DEADLINE_S
    narrow = simulate(replace(line, arrivals=Arrivals.TOGETHER, queue=80), seconds=3, seed=1)
    assert narrow.refused_share > 0.5


@quick
@given(cameras=st.integers(1, 5000), more=st.integers(1, 5000), rate=st.floats(0.05, 5))
def test_more_cameras_never_need_less(cameras: int, more: int, rate: float) -> None:
    for model in MODELS:
        small, large = (plan(Site(each, rate), model) for each in (cameras, cameras + more))
        for name in ("replicas", "instances", "series", "broker_cores", "sessions"):
            assert getattr(small, name) <= getattr(large, name), name
        assert small.instances * MOST_USED >= small.site.rate * model.triton_ms / 1000 - 1e-6


def test_one_machine_is_full_where_it_is_said_to_be() -> None:
    for model in MODELS:
        most, part = most_cameras(model, Machine())
        assert (
            used(Site(most), model, Machine())[part] <= MOST_USED < used(Site(most + 1), model, Machine())[part] + 1e-9
        )


def test_the_costs_are_those_that_were_measured() -> None:
    rows = re.findall(r"(?m)^\| gateway: (.+?, 1080p, json, single, 10 cameras) \| ([\d.]+) \|", PERFORMANCE)
    measured = {name.split(",")[0]: float(cost) for name, cost in rows}
    assert SAMPLE.gateway_ms == pytest.approx(measured["sample"], rel=0.05)
    assert YOLO_N.gateway_ms == pytest.approx(measured["stub 640"], rel=0.05)


def test_cpu_a_snapshot_foretells_the_throughput_of_the_bench() -> None:
    """Two cores, all of whose time goes into snapshots, are never quite full: they wait for each other."""
    costs = re.findall(
        r"(?m)^\| gateway: (.+?) \| ([\d.]+) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| \d+ \|",
        PERFORMANCE,
    )
    rates = dict(re.findall(r"(?m)^\| ((?:stub|sample)[^|]*?) \| (\d+) \([^|]*\| \d+ \(", PERFORMANCE))
    shares = [sum(map(float, cost)) * float(rates[name]) / 2000 for name, *cost in costs]
    assert len(shares) >= 10
    assert all(0.68 <= share <= 0.98 for share in shares), shares


async def test_series_grow_as_they_are_counted_here(tmp_path: Path) -> None:
    cameras = 40
    async with site(tmp_path) as place:
        for number in range(cameras):
            place.snapshot(snapshot_json(jpeg(), device_id=f"camera-{number}"))
        await place.answered(cameras)
        async with httpx.AsyncClient(trust_env=False) as client:
            page = (await client.get(f"http://127.0.0.1:{place.gateway.http_port}/metrics")).text
    series = sum(not line.startswith("#") for line in page.splitlines())
    assert series == pytest.approx(SERIES_PER_GATEWAY + SERIES_PER_CAMERA * cameras, rel=0.15)


@pytest.mark.mosquitto
def test_a_message_costs_the_broker_about_what_is_assumed(tmp_path: Path) -> None:
    traffic = Traffic(3000, 100_000)
    done = measure(traffic, tmp_path)
    assumed = BROKER_MS_PER_MESSAGE + traffic.size / 1e6 * BROKER_MS_PER_MB
    assert assumed / 4 < done.cpu_ms < assumed * 4  # another machine is another figure, not another order


@pytest.mark.parametrize("heading", [heading for heading, _ in every()])
def test_the_page_has_the_tables(heading: str) -> None:
    assert dict(every())[heading] in (ROOT / "docs" / "capacity.md").read_text()
