"""`edge-gateway bench`: a short run of all of it, and the parts that judge, plan and draw."""

from __future__ import annotations

import json
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import paho.mqtt.client as paho
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion

from gateway.bench.decoder import wanted
from gateway.bench.driver import Driver
from gateway.bench.files import save
from gateway.bench.frames import Feed, Frames, Outgoing
from gateway.bench.latency import HIGHEST_US, Latencies
from gateway.bench.open_loop import own_share
from gateway.bench.plan import BASE, PARTS, SIZES, Case, Filters, make_plan
from gateway.bench.plots import draw
from gateway.bench.records import (
    Accuracy,
    Batching,
    Contestant,
    Dual,
    FrameSet,
    Memory,
    OpenLoop,
    Pinned,
    Precision,
    Report,
    Spread,
    Start,
    Steady,
    Throughput,
)
from gateway.bench.stub_model import CLASSES, stub_model
from gateway.bench.tables import as_markdown, as_text
from gateway.bench.targets import targets
from gateway.bench.usage import Usage, memory
from gateway.errors import ConfigError
from gateway.local.broker import EmbeddedBroker
from tests.command_line import one_line, run

STALL_S = 1.0


# ------------------------------------------------------------------------------------------------ the whole


@pytest.mark.triton
@pytest.mark.mosquitto
def test_a_quick_run_answers_every_snapshot_and_has_every_figure(tmp_path: Path) -> None:
    file, plots = tmp_path / "bench.json", tmp_path / "plots"
    done = run("bench", "--quick", "--seconds", "0.4", "--rate", "20", "--json", str(file), "--plots", str(plots))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    (closed,) = report["throughput"]
    assert closed["ratio"]["median"] > 0
    assert 0 < closed["decode_ms"] < closed["contestants"]["gateway"]["cpu_ms"]["median"]
    assert set(closed["contestants"]) == {"gateway", "script"}
    for one in closed["contestants"].values():
        assert one["snapshots"] >= Case(**closed["case"]).window
        assert one["errors"] == one["unanswered"] == 0
        assert one["rate"]["low"] > 0
        assert one["cpu_ms"]["low"] > 0
        memory = one["memory"]
        assert 10 < memory["anonymous"] < memory["resident"] <= memory["peak"]
        assert 0 < memory["proportional"] <= memory["resident"]
        assert set(one["others_ms"]) == {"triton", "broker", "driver"}
    assert [run["contestant"] for run in report["open_loop"]] == ["gateway", "script"]
    for loop in report["open_loop"]:
        assert loop["errors"] == 0
        assert 0 < loop["percentiles"]["p50"] <= loop["percentiles"]["p99"] <= loop["percentiles"]["p99.9"]
    own = report["open_loop"][0]["own_percentiles"]
    assert 0 < own["p50"] <= report["open_loop"][0]["percentiles"]["p50"]
    assert {row["transport"] for row in report["triton"]} == {"bytes", "shared-memory"}
    assert all(row["best_rate"] > 0 and row["triton_ms"] > 0 for row in report["triton"])
    assert all(row["gateway_ms"] < row["full_ms"] for row in report["decoder"])
    assert report["machine"]["packages"]["pillow"]
    (frames,) = report["frames"]
    assert (frames["quality"], frames["width"]) == (75, 1920)
    assert 100 < frames["mean_kb"] < 300
    for name in ("throughput", "cpu", "latency"):
        ET.fromstring((plots / f"{name}.svg").read_bytes())
    assert "Figures to reach" in done.stdout
    assert "Starting the broker and Triton" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sizes", "225"], "'225' is none of 224, 320, 640"),
        (["--only", "gateway,everything"], "'everything' is none of gateway, script"),
        (["--cameras", "0"], "'0' is no number from 1 up"),
        (["--set", "NO_SUCH_SETTING=1"], "'NO_SUCH_SETTING=1' is no NAME=VALUE of a setting"),
        (["--json", "/no/such/folder/bench.json"], "Name a file in an existing folder"),
        (["--json", "--markdown"], "--json without a file takes the place of the tables"),
        (["--json", "/proc/sys/bench.json"], "Name another place with --json"),
        (["--plots", "/proc/sys/plots"], "Name another place with --plots"),
        (["--quality", "101"], "--quality"),
        (["--quick", "--full"], "exclude each other"),
        (["--seconds", "nan"], "is no finite number"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(arguments: list[str], says: str) -> None:
    assert says in one_line("bench", *arguments)


# ---------------------------------------------------------------------------------------------- open loop


@pytest.fixture
def stalling_server() -> Iterator[EmbeddedBroker]:
    """Answers every snapshot at once, but for the tenth, over which it thinks for a second: alone, one by one."""
    with EmbeddedBroker() as broker:
        if broker.protocol != "5":
            pytest.skip("there is no Mosquitto here, and it cannot be installed")
        seen = 0

        def answer(client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
            nonlocal seen
            seen += 1
            if seen == 10:
                time.sleep(STALL_S)
            client.publish("answers", b"", qos=1, properties=message.properties)

        server = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        server.on_message = answer
        subscribed = threading.Event()
        server.on_subscribe = lambda *_: subscribed.set()
        server.connect(broker.host, broker.port)
        server.loop_start()
        server.subscribe("snapshots", qos=1)
        assert subscribed.wait(10)
        yield broker
        server.disconnect()
        server.loop_stop()


@pytest.mark.mosquitto
def test_all_who_wait_behind_a_stall_count_as_late(stalling_server: EmbeddedBroker) -> None:
    with Driver(stalling_server.host, stalling_server.port, ("answers",)) as driver:
        done = driver.open_loop(lambda number: Outgoing(number, "snapshots", b"x"), seconds=1.5, rate=100)
    assert done.unanswered == 0
    assert len(done.due) == 150
    late = [milliseconds for milliseconds in done.milliseconds() if milliseconds > 100]
    # A hundred were due within that second; had each waited for the answer before, one alone would have been late.
    assert len(late) >= 80
    assert Latencies(done.milliseconds()).percentile(99) >= 0.9 * 1000 * STALL_S
    assert Latencies(done.milliseconds()).percentile(50) >= 0.2 * 1000 * STALL_S


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.001, HIGHEST_US / 1000), min_size=1, max_size=200))
def test_percentiles_rise_and_lie_within_what_was_recorded(values: list[float]) -> None:
    latencies = Latencies(values)
    found = list(latencies.percentiles().values())
    assert found == sorted(found)
    assert latencies.count == len(values)
    assert min(values) * 0.99 - 0.001 <= found[0]
    assert found[-1] <= max(values) * 1.01 + 0.001
    curve = [value for _, value in latencies.curve()]
    assert curve == sorted(curve)


def test_without_a_snapshot_there_are_no_latencies() -> None:
    assert Latencies().percentile(99) == 0.0


def test_the_gateways_own_share_is_all_but_the_time_in_triton() -> None:
    result = json.dumps({"metadata": {"timings_ms": {"total": 9.0, "infer": 4.0, "decode": 3.0}}}).encode()
    own = own_share([result, b'{"message_type": "ai_inference_error"}', b"not JSON"])
    assert own.count == 1
    assert own.percentile(50) == pytest.approx(5.0, rel=0.01)


# --------------------------------------------------------------------------------------------------- plan


def test_by_default_each_dimension_is_varied_alone() -> None:
    plan = make_plan("default", Filters(), cores=2)
    assert plan.parts == PARTS
    assert plan.cases[0] == BASE
    assert len(set(plan.cases)) == len(plan.cases)
    for case in plan.cases:
        differences = [name for name in Case.__slots__ if getattr(case, name) != getattr(BASE, name)]
        assert len(differences) <= 1
    assert {case.size for case in plan.cases} == {*SIZES, 0}
    assert {case.workers for case in plan.cases} == {1, 2}


def test_what_is_named_is_crossed_and_nothing_else_measured() -> None:
    plan = make_plan("quick", Filters(only=("gateway",), sizes=(224, 640), payloads=("json", "raw"), workers=(1, 2)))
    assert plan.parts == ("gateway",)
    assert len(plan.cases) == 8
    assert {case.resolution for case in plan.cases} == {"1080p"}
    sample = make_plan("quick", Filters(models=("sample",), modes=("dual",)))
    assert sample.cases == (replace(BASE, size=0, mode="dual"),)
    assert set(make_plan("full", Filters()).cases) >= set(make_plan("default", Filters()).cases)


# ----------------------------------------------------------------------------------------- frames and stub


@pytest.mark.parametrize("size", SIZES)
def test_the_stub_is_a_small_valid_model_that_answers_in_shares_of_one(size: int) -> None:
    content = stub_model(size)
    assert len(content) < 1000
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content)
    import numpy as np

    (output,) = session.run(None, {"images": np.random.default_rng(0).random((2, 3, size, size), np.float32)})
    assert output.shape == (2, CLASSES)
    assert output.sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_every_snapshot_differs_and_json_carries_the_picture() -> None:
    frames = Frames({"1080p": (b"\xff\xd8first", b"\xff\xd8second")})
    feed = Feed(replace(BASE, cameras=3, mode="dual"), frames, "topic", "stub224")
    bodies = [json.loads(feed.make(number).payload) for number in range(12)]
    assert len({(body["device_id"], body["timestamp"]) for body in bodies}) == 12
    assert {body["device_id"] for body in bodies} == {"camera-000", "camera-001", "camera-002"}
    assert bodies[0]["backend_preference"] == "dual"
    assert bodies[0]["image_data"] != bodies[1]["image_data"]
    raw = Feed(replace(BASE, payload="raw"), frames, "topic", "stub224").make(3)
    assert raw.payload == b"\xff\xd8second"
    assert dict(raw.user_properties)["device_id"] == "camera-003"


# -------------------------------------------------------------------------------------------------- report


MEMORY = Memory(120.0, 105.0, 80.0, 10.0, 130.0)


def _contestant(rate: float, cpu: float) -> Contestant:
    others = {"triton": 1.0, "broker": 0.2, "driver": 0.5}
    return Contestant(Spread(rate, rate - 1, rate + 1), Spread.of([cpu]), others, MEMORY, 100, 0, 0)


def _pinned(placement: str, share: float, *, apart: bool = False) -> Pinned:
    busy = {"triton": 0.99, "gateway": 0.2, "broker": 0.01, "driver": 0.03}
    rates = Spread.of([100 * share]), Spread.of([100.0])
    return Pinned(placement, apart, *rates, Spread.of([share]), 30.0, 29.0, busy, 0.99)


@pytest.fixture
def report() -> Report:
    """As of a run that measured nearly everything."""
    machine: dict[str, Any] = dict.fromkeys(("date", "cores", "cpu", "memory_gb", "kernel", "python", "gateway"), "1")
    machine |= {"broker": "mosquitto 2.0", "packages": {"pillow": "12.0"}, "load_average": [0.1, 0.2, 0.3]}
    found = Report(machine, make_plan("default", Filters()))
    for cameras, rate in ((10, 350.0), (1, 360.0), (200, 350.0)):
        both = {"gateway": _contestant(rate, 4.5), "script": _contestant(35.0, 27.0)}
        figures = Spread.of([10.0, 9.5]), 3.0, 4.0, 1.5, 1.1
        found.throughput.append(Throughput(replace(BASE, cameras=cameras), both, *figures))
    latencies = Latencies([5.0, 6.0, 50.0])
    case = replace(BASE, cameras=1)
    curve, own = latencies.curve(), Latencies([5.0, 16.0]).percentiles()
    found.open_loop.append(OpenLoop("gateway", case, 5.0, 3, 0, latencies.percentiles(), curve, own, 4.5))
    found.dual = Dual(BASE, 40.0, Spread.of([4.0]), Spread.of([4.4]), 1.0, 2.0, 1.0, 2.0, Spread.of([0.1]))
    found.start = Start(Spread.of([0.5, 0.6]), MEMORY)
    found.frames.append(FrameSet("1080p", 1920, 1080, 75, 211.4))
    found.memory.append(Steady(BASE, 8.0, 2800, replace(MEMORY, peak=151.0)))
    found.pinned.extend((_pinned("all unpinned", 0.8), _pinned("a core each", 0.96, apart=True)))
    found.batching.append(Batching(True, None, "16", Spread.of([30.0]), 4.0, 20.0, 0))
    found.accuracy = Accuracy(100, Precision(0.98, 0.73), Precision(0.98, 0.7325))
    found.targets = targets(found)
    return found


def test_targets_say_yes_no_or_not_measured(report: Report) -> None:
    reached = {row.what: row.reached for row in report.targets}
    assert reached["throughput over the script's, 1080p to 224"] is True
    assert reached["throughput over the script's, 1080p to 640"] is None
    assert reached["all but Triton, 1 camera at 5/s, 1080p to 224, p50"] is True
    assert reached["all but Triton, 1 camera at 5/s, 1080p to 224, p99"] is False
    assert reached["mAP with scaled decoding against full decoding"] is False
    assert reached["200 cameras against 1, throughput"] is True
    assert reached["dual over single at the same rate, the gateway's added CPU"] is True
    assert reached["CPU a snapshot over decoding alone, 1080p to 224, to the smallest sufficient size"] is True
    assert reached["CPU a snapshot over decoding alone, 1080p to 640, to the size that the gateway decodes to"] is None


def test_a_gateway_on_a_core_of_its_own_and_the_peak_of_all_loops_are_judged(report: Report) -> None:
    measured = {row.what: (row.measured, row.reached) for row in report.targets}
    (share,) = (found for what, found in measured.items() if "on a core each" in what)
    assert share == ("96.0%", True)
    (memory,) = (found for what, found in measured.items() if "resident memory" in what)
    assert memory == ("151 MB, 10 MB of it shared in the end", False)


def test_tables_are_whole(report: Report) -> None:
    report.not_measured.append("accuracy: no sources here")
    markdown = as_markdown(report)
    for block in markdown.split("### ")[1:]:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
    assert "| 1080p, 1920x1080 | 75 | 211 |" in markdown
    assert "| on, max_queue_delay not set | 16 |" in markdown
    assert "| throughput over the script's, 1080p to 224 | >= 9x | 9.8x | yes |" in markdown
    assert "- accuracy: no sources here" in markdown
    assert "not measured" in as_text(report)
    report.failed.append("start to ready")
    assert "Failed:\n  start to ready" in as_text(report)


def test_plots_are_well_formed_and_load_nothing(report: Report, tmp_path: Path) -> None:
    files = draw(report, tmp_path / "new")
    assert [file.stem for file in files] == ["throughput", "cpu", "latency", "cameras"]
    for file in files:
        root = ET.fromstring(file.read_bytes())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not root.findall(".//{http://www.w3.org/2000/svg}script/[@href]")
        assert b"<script xlink" not in file.read_bytes()


def test_a_full_disk_is_said_once_and_all_else_is_written(report: Report, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"/dev/full: No space left on device\. The tables are whole\. Make room"):
        save(report, Path("/dev/full"), tmp_path / "plots", said.append)
    assert len(said) == len(list((tmp_path / "plots").iterdir())) == 4


def test_half_a_report_is_not_left_behind(report: Report, tmp_path: Path) -> None:
    file, (soft, hard) = tmp_path / "bench.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ConfigError, match=r"File too large.* and .*File too large"):
            save(report, file, tmp_path / "plots", lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not file.exists()


def test_the_memory_of_a_process_tells_shared_memory_apart() -> None:
    size = 32_000_000
    before = memory(os.getpid())
    segment = mmap.mmap(-1, size)  # shared and anonymous, which the kernel keeps as shared memory
    segment.write(bytes(size))
    during = memory(os.getpid())
    segment.close()
    after = memory(os.getpid())
    assert during.shared - before.shared == pytest.approx(size / 1e6, abs=0.5)
    assert after.shared == pytest.approx(before.shared, abs=0.5)
    assert after.peak >= during.resident - 0.5 > after.resident


def test_a_process_that_has_ended_takes_no_time_from_the_others() -> None:
    with subprocess.Popen([sys.executable, "-c", "sum(range(3 * 10**7)); input()"], stdin=subprocess.PIPE) as child:
        pids = {"child": child.pid}
        until = time.monotonic() + 10
        while (before := Usage.read(pids)).seconds(Usage({"child": {}}, 0.0))["child"] < 0.1:
            assert time.monotonic() < until
        child.communicate(b"\n")
    assert Usage.read(pids).since(before, 1) == {"child": 0.0}


def test_the_gateway_decodes_at_least_what_is_enough() -> None:
    small, large = wanted((1920, 1080), 224, 224), wanted((1280, 720), 640, 640)
    assert small.smallest == small.gateway == (224, 126)
    assert large.smallest == (640, 360)
    assert large.gateway == (800, 450)


def test_an_empty_report_has_a_table_of_targets_only(tmp_path: Path, report: Report) -> None:
    empty = Report(report.machine, report.plan, interrupted=True)
    empty.targets = targets(empty)
    assert {row.reached for row in empty.targets} == {None}
    assert "interrupted" in as_text(empty)
    assert draw(empty, tmp_path) == []
