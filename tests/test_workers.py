"""Several workers are one gateway: what it answers, acknowledges, counts and raises alerts for."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.errors import GatewayError
from gateway.flow.identify import identify
from gateway.flow.ingest import open_message
from gateway.messages import Message, MessageProperties, Publication
from gateway.metrics import CATALOGUE, PREFIX, Metrics
from gateway.workers import relay as relay_module
from gateway.workers.acknowledgements import Acknowledgements
from gateway.workers.aggregation import FRONT_COUNTERS, RULES, Merged, families
from gateway.workers.frames import BUFFER_BYTES, Channel, Publish, ToFront, WorkerState
from gateway.workers.owners import Owners, Senders
from gateway.workers.relay import Seat, add_counts
from gateway.workers.relayed_broker import RelayedBroker
from gateway.workers.socket_folder import private_folder
from gateway.workers.standing import Standing
from tests.broker_session import running
from tests.flow.builders import PLACE, jpeg, message, sensor_spec, settings, snapshot_json
from tests.flow.test_sensor_flow import TOPIC as SENSOR_TOPIC
from tests.flow.test_sensor_flow import reading, thermometer
from tests.harness import until, write_model
from tests.mosquitto_server import Mosquitto
from tests.worker_site import worker_site

CAMERAS = tuple(f"camera-{number}" for number in range(4))


# --- the whole -----------------------------------------------------------------------------------------


async def test_forty_snapshots_of_four_cameras_are_answered_once_each_by_both_workers(tmp_path: Path) -> None:
    async with worker_site(tmp_path) as place:
        for number in range(40):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id=CAMERAS[number % 4]))
        await place.answered(40)
        await place.acknowledged()
        assert len(place.results) == 40
        assert await place.outcomes() == {"published": 40}
        owners = {camera: place.relay.owner(message(snapshot_json(b"", device_id=camera))) for camera in CAMERAS}
        assert sorted(owners.values()) == [0, 0, 1, 1]


async def test_an_event_of_200_frames_is_one_start_and_one_end_for_each_camera(tmp_path: Path) -> None:
    write_model(tmp_path, alerts={"hold_off_s": 1.0})
    async with worker_site(tmp_path) as place:
        for number in range(200):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id=CAMERAS[number % 2]))
            if number % 20 == 19:
                await place.answered(number + 1)
        await until(lambda: len(place.of("ai_alert")) == 4, "two starts and two ends")
    alerts = place.of("ai_alert")
    assert sorted((each["device_id"], each["event"]) for each in alerts) == sorted(
        (camera, event) for camera in CAMERAS[:2] for event in ("start", "end")
    )
    assert all(each["frames"] >= 95 for each in alerts if each["event"] == "end")


async def test_readings_of_a_sensor_join_one_window(tmp_path: Path) -> None:
    write_model(tmp_path, **sensor_spec().model_dump(mode="json", exclude_unset=True))
    async with worker_site(tmp_path, thermometer) as place:
        for number in (0, 0, 0, 2, 0, 0, 0):
            place.snapshot(reading(number), topic=SENSOR_TOPIC)
        await place.answered(2)
        await place.acknowledged()
        assert await place.outcomes() == {"published": 2, "windowed": 5}


async def test_the_limit_of_a_topic_counts_what_all_workers_get(tmp_path: Path) -> None:
    async with worker_site(tmp_path, rate_limit_per_topic=1) as place:
        for number in range(8):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id=CAMERAS[number % 4]))
        await place.answered(8)
        await place.acknowledged()
        outcomes = await place.outcomes()
    assert outcomes["published"] <= 3
    assert outcomes["published"] + outcomes["dropped_limited"] == 8


async def test_what_a_dead_worker_had_comes_again_to_the_one_in_its_place(tmp_path: Path) -> None:
    async with worker_site(tmp_path) as place:
        for camera in CAMERAS:
            place.snapshot(snapshot_json(jpeg(), device_id=camera))
        await place.answered(4)
        await place.acknowledged()
        assert await place.outcomes() == {"published": 4}
        await place.kill(1)
        report = place.standing.report()
        assert report.ready
        assert report.degraded == ("worker 2 of 2 is starting",)
        assert await place.outcomes() == {"published": 4}, "what the dead one had counted still counts"
        for number in range(20):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id=CAMERAS[number % 4]))
        await place.answered(14)  # those of the other one's cameras
        await place.start(1)
        await place.answered(24)
        await place.acknowledged()
        assert place.reopened == ["worker 2 has started again"]


async def test_the_others_take_the_cameras_of_a_worker_that_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "HAND_OVER_S", 0.2)
    async with worker_site(tmp_path) as place:
        for camera in CAMERAS:
            place.snapshot(snapshot_json(jpeg(), device_id=camera))
        await place.answered(4)
        await place.kill(0)
        for number in range(8):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id=CAMERAS[number % 4]))
        await place.answered(12)
        assert place.reopened == ["worker 1 stays away"]


async def test_the_lead_alone_says_how_models_stand(tmp_path: Path) -> None:
    async with worker_site(tmp_path) as place:
        await until(lambda: bool(place.of("ai_model")), "the state of the model")
        await place.workers.pop(1).stop()
    assert not place.of("ai_status"), "that is for the front to say"
    assert all(body["model_name"] == "detector" for body in place.of("ai_model"))


async def test_a_refused_publication_ends_as_one_in_the_worker(tmp_path: Path) -> None:
    async with worker_site(tmp_path) as place:
        place.broker.deny("edge-ai/+/+/+/ai/inference/#")
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(1)
    (error,) = place.of("ai_inference_error")
    assert "refused" in error["error"]["message"]


# --- who has which camera --------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=5), max_size=200), st.integers(1, 8))
def test_devices_are_shared_out_evenly_and_stay_where_they_are(devices: list[str], workers: int) -> None:
    owners, present = Owners(workers), set(range(workers))
    first = {device: owners.of(device, present) for device in devices}
    assert {device: owners.of(device, present) for device in devices} == first
    counts = [list(first.values()).count(index) for index in present]
    assert max(counts) - min(counts) <= 1


@given(st.lists(st.text(max_size=5), min_size=1, max_size=50), st.integers(2, 8), st.data())
def test_only_the_devices_of_an_absent_worker_move_and_they_come_back(
    devices: list[str], workers: int, data: st.DataObject
) -> None:
    owners, everybody = Owners(workers), set(range(workers))
    usual = {device: owners.of(device, everybody) for device in devices}
    absent = data.draw(st.integers(0, workers - 1))
    for device, owner in usual.items():
        stand_in = owners.of(device, everybody - {absent})
        assert stand_in != absent
        assert owner == absent or stand_in == owner
    assert {device: owners.of(device, everybody) for device in devices} == usual


def test_no_more_devices_are_remembered_than_wanted() -> None:
    owners = Owners(2, remembered=3)
    for number in range(10):
        owners.of(str(number), {0, 1})
    assert len(owners._owners) == sum(owners._counts) == 3


NAMES = st.one_of(st.none(), st.text(max_size=8), st.integers())


@given(
    st.fixed_dictionaries(
        {}, optional={"device_id": NAMES, "camera_id": NAMES, "sensor_id": NAMES, "values": st.just([1])}
    ),
    st.sampled_from((None, "by-property")),
    st.sampled_from((b"", b" ", b"\xef\xbb\xbf")),
)
def test_a_message_goes_to_the_worker_of_the_device_that_it_is_answered_for(
    body: dict[str, Any], user_property: str | None, before: bytes
) -> None:
    config = settings()
    user = (("device_id", user_property),) if user_property else ()
    incoming = message(before + msgspec.json.encode(body), properties=MessageProperties(user_properties=user))
    origin = identify(incoming, config.patterns, PLACE)
    try:
        device = open_message(incoming, origin, 10_000).origin.device_id
    except GatewayError:
        return  # what cannot be read may go to any of them
    assert Senders(config).of(incoming) == device


@given(st.binary(max_size=80))
def test_whatever_comes_has_a_sender(payload: bytes) -> None:
    assert Senders(settings()).of(message(payload)) == "gw"


# --- acknowledgements ------------------------------------------------------------------------------------


class Listening:
    """As much of a broker as acknowledgements need."""

    def __init__(self) -> None:
        self.acknowledged: list[object] = []
        self.lost: set[object] = set()

    def awaits(self, message: Message) -> bool:
        return message.delivery not in self.lost

    def acknowledge(self, message: Message) -> None:
        self.acknowledged.append(message.delivery)


@given(st.permutations(range(12)), st.integers(0, 12))
def test_acknowledged_in_the_order_of_arrival_whichever_worker_is_done_first(order: list[int], lost: int) -> None:
    broker = Listening()
    acks = Acknowledgements(broker)  # type: ignore[arg-type]  # all that it asks of one
    numbers = [acks.open(message(b"", delivery=each), each % 3) for each in range(12)]
    for each in order[:6]:
        acks.settle(numbers[each])
    assert broker.acknowledged == list(range(len(broker.acknowledged)))
    broker.lost = set(range(lost))  # their connection is gone
    last = acks.open(message(b"", delivery="new"), 0)
    for each in order[6:]:
        acks.settle(numbers[each])
    acks.settle(last)
    assert broker.acknowledged[-1] == "new"
    assert len(acks) == 0
    assert not any(acks.owed_by(worker) for worker in range(3))


# --- the channel -----------------------------------------------------------------------------------------


@effort(max_examples=30)
@given(st.lists(st.integers(0, 3 * BUFFER_BYTES), max_size=12))
def test_frames_of_any_size_arrive_whole_and_in_order(sizes: list[int]) -> None:
    async def talk() -> list[tuple[Any, int, bool]]:
        got: list[tuple[Any, int, bool]] = []
        gone = asyncio.Event()

        def take(record: Any, content: bytes) -> None:
            got.append((record.number, len(content), content == bytes([record.number % 256]) * len(content)))

        ends = socket.socketpair()
        sender: Channel[Any] = Channel(ToFront, lambda *_: None, lambda: None)
        receiver: Channel[Any] = Channel(ToFront, take, gone.set)
        await sender.open(ends[0])
        await receiver.open(ends[1])
        for number, size in enumerate(sizes):
            sender.send(Publish(number, "t", 1, False, None, None, ()), bytes([number % 256]) * size)
            await asyncio.sleep(0)
        sender.close()
        await gone.wait()
        return got

    assert asyncio.run(talk()) == [(number, size, True) for number, size in enumerate(sizes)]


async def test_what_is_no_frame_ends_the_channel() -> None:
    mine, its = socket.socketpair()
    lost = asyncio.Event()
    channel: Channel[Any] = Channel(ToFront, lambda *_: None, lost.set)
    await channel.open(its)
    mine.sendall(b"\xff" * 20)
    async with asyncio.timeout(5):
        await lost.wait()
    mine.close()


async def test_a_worker_without_its_front_publishes_nothing_and_ends() -> None:
    mine, its = socket.socketpair()
    broker = RelayedBroker()
    await broker.channel.open(its)
    waiting = asyncio.create_task(broker.publish(Publication("t", b"")))
    running = asyncio.create_task(broker.run())
    await asyncio.sleep(0)
    mine.close()
    for task in (waiting, running):
        with pytest.raises(GatewayError):
            await task
    assert not broker.connected
    assert broker.backlog == 0


# --- metrics -----------------------------------------------------------------------------------------------


def test_each_gauge_has_a_rule_and_nothing_else_has() -> None:
    gauges = {meaning.name for meaning in CATALOGUE if meaning.kind == "gauge"}
    assert set(RULES) == gauges
    assert {f"{name}_total" for name in FRONT_COUNTERS} <= {meaning.name for meaning in CATALOGUE}


def page(merged: Merged) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(merged)
    return generate_latest(registry).decode()


@effort(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(("published", "failed")), st.integers(0, 99)),
            st.lists(st.floats(0.001, 20), max_size=5),
            st.integers(0, 9),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_workers_counts_add_up_and_each_metric_is_described_once(
    given_workers: list[tuple[dict[str, int], list[float], int, bool]],
) -> None:
    processes = []
    for outcomes, durations, waiting, ready in given_workers:
        metrics = Metrics()
        for outcome, count in outcomes.items():
            metrics.snapshots.labels(outcome).inc(count)
        for seconds in durations:
            metrics.snapshot_duration_seconds.labels("m").observe(seconds)
        metrics.queue_messages.set(waiting)
        metrics.triton_ready.set(ready)
        metrics.http_refusals.labels("slow").inc()
        processes.append(families(metrics.registry))
    merged = Merged(families(Metrics().registry), processes)
    for outcome in ("published", "failed"):
        total = sum(outcomes.get(outcome, 0) for outcomes, *_ in given_workers)
        assert merged.value("snapshots_total", outcome=outcome) == total
    observed = [seconds for _, durations, *_ in given_workers for seconds in durations]
    assert merged.value("snapshot_duration_seconds_count", model="m") == len(observed)
    assert merged.value("snapshot_duration_seconds_sum", model="m") == pytest.approx(sum(observed))
    for edge in (0.01, 1.0):
        below = sum(seconds <= edge for seconds in observed)
        assert merged.value("snapshot_duration_seconds_bucket", model="m", le=str(edge)) == below
    assert merged.value("queue_messages") == sum(waiting for _, _, waiting, _ in given_workers)
    assert merged.value("triton_ready") == min(ready for *_, ready in given_workers)
    assert merged.value("http_refusals_total", reason="slow") == 0, "the front counts those, for all"
    lines = page(merged).splitlines()
    for kind in ("# HELP ", "# TYPE "):
        names = [line.split()[2] for line in lines if line.startswith(kind)]
        assert len(names) == len(set(names))
        assert {PREFIX + meaning.name for meaning in CATALOGUE if not meaning.labels} <= set(names)
    samples = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(samples) == len(set(samples))


def test_no_count_goes_back_when_a_worker_ends() -> None:
    ended: list[Any] = []
    for count in (3, 4):
        metrics = Metrics()
        metrics.snapshots_received.inc(count)
        metrics.queue_messages.set(5)
        ended = add_counts(ended, families(metrics.registry))
    merged = Merged([], [ended])
    assert merged.value("snapshots_received_total") == 7
    assert merged.value("queue_messages") == 0


# --- how they stand ------------------------------------------------------------------------------------------


class Session:
    """As much of a broker as Standing asks."""

    connected = True
    trouble = ""


def standing(*states: WorkerState | None) -> Standing:
    seats = [Seat(index, state=state) for index, state in enumerate(states)]
    return Standing(seats, Session())  # type: ignore[arg-type]  # all that it asks of one


def state(*reasons: str, degraded: tuple[str, ...] = ()) -> WorkerState:
    return WorkerState(not reasons, True, reasons, degraded, {}, None, 20.0, "info", "json")


def test_ready_when_all_are_and_afterwards_as_long_as_those_that_run_are() -> None:
    assert standing(state(), None).report().reasons == ("worker 2 of 2 is starting",)
    place = standing(state(), state())
    assert place.report().ready
    place._seats[1].state = None
    assert place.report().ready
    assert place.report().degraded == ("worker 2 of 2 is starting",)
    place._seats[0].state = None
    assert not place.report().ready


def test_what_all_say_is_said_once_and_what_one_says_with_its_number() -> None:
    report = standing(state("Triton is away", degraded=("a",)), state("Triton is away", "no disk")).report()
    assert report.reasons == ("Triton is away", "worker 2: no disk")
    assert report.degraded == ("worker 1: a",)


async def test_the_lead_runs_the_rollouts_for_it_is_told_the_commands(tmp_path: Path) -> None:
    async with worker_site(tmp_path) as place:
        rollers = {index: worker.gateway._metrics for index, worker in place.workers.items()}
        await until(lambda: rollers[0].value("roller") == 1, "the lead to have the lease")
        assert rollers[1].value("roller") == 0


def test_the_front_loads_nothing_that_only_workers_need() -> None:
    """It would be 15 MB more."""
    program = (
        "import sys, gateway.adapters.mqtt, gateway.commands.serve, gateway.commands.workers, gateway.workers.front\n"
        "print({'numpy', 'PIL', 'grpc', 'gateway.models.catalog'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_what_one_worker_would_unload_under_another_is_refused() -> None:
    with pytest.raises(ValueError, match="WORKERS above 1"):
        settings(workers=2, model_idle_unload_s=60)


def test_the_sockets_are_private_and_their_names_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("a" * 90)
    long.mkdir()
    for place in (str(long), str(tmp_path / "nowhere")):
        monkeypatch.setattr(tempfile, "tempdir", place)
        with private_folder() as folder:
            assert len(str(folder)) <= 90
            assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.mosquitto
async def test_a_broker_sends_again_what_it_is_asked_for_and_nothing_else(tmp_path: Path) -> None:
    server, events = Mosquitto(tmp_path), list[str]()
    await server.start()
    gateway = MqttBroker(MqttSettings(client_id="gateway", port=server.port, subscriptions=("in",)), events.append)
    camera = MqttBroker(MqttSettings(client_id="camera", port=server.port))
    async with running(camera), running(gateway) as session:
        for payload in (b"done", b"owed", b"owed too"):
            await camera.publish(Publication("in", payload))
        gateway.acknowledge((await session.take(3))[0])
        gateway.ask_again("a worker has ended")
        again = await session.take(2)
        await until(lambda: len(events) == 3, "the next connection")
    assert [(each.payload, each.duplicate) for each in again] == [(b"owed", True), (b"owed too", True)]
    await server.stop()
    assert events == ["connected", "asked_again", "connected"]
