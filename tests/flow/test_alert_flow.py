"""One event is one alert with a start and an end, whatever the number of frames."""

from __future__ import annotations

from pathlib import Path

from gateway.testing import MemoryTriton
from tests.flow.builders import SNAPSHOT_TOPIC, head, jpeg, signature, snapshot_json
from tests.harness import HELMET, NO_HELMET, site, until, write_model

ALERTS = {"hold_off_s": 5.0, "severity": "critical"}


def looking_at(scene: list[tuple[float, float, float, float, int, float]]) -> MemoryTriton:
    """A detector that sees what is in the scene when it is asked."""
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), lambda _: {"output0": head(*scene)})
    return triton


async def test_a_worker_without_a_helmet_in_200_frames_is_one_start_and_one_end(tmp_path: Path) -> None:
    write_model(tmp_path, alerts=ALERTS)
    async with site(tmp_path, triton=looking_at([NO_HELMET])) as place:
        for number in range(200):
            place.snapshot(snapshot_json(jpeg(seed=number)))
            if number % 20 == 19:
                await place.answered(number + 1)
        await place.answered(200)
        await until(lambda: len(place.of("ai_alert")) == 2, "the end")
        assert place.outcomes() == {"published": 200}
    start, end = place.of("ai_alert")
    assert (start["event"], end["event"], end["reason"]) == ("start", "end", "gone")
    assert start["alert_id"] == end["alert_id"]
    assert (start["label"], start["class_name"], start["severity"]) == ("person_without_helmet",) * 2 + ("critical",)
    assert end["frames"] >= 197  # those that were served before an older one do not count it
    assert place.metrics.value("alerts_total", model="detector", event="start") == 1
    assert place.metrics.value("alerts_total", model="detector", event="end") == 1


async def test_no_alert_for_other_classes_and_the_end_at_a_stop(tmp_path: Path) -> None:
    write_model(tmp_path)
    scene = [HELMET]
    async with site(tmp_path, triton=looking_at(scene)) as place:
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(1)
        scene.append((10.0, 10.0, 8.0, 16.0, 1, 0.8))
        place.snapshot(snapshot_json(jpeg(seed=1)))
        await place.answered(2)
        await until(lambda: bool(place.of("ai_alert")), "the start")
        await place.stop()
        await until(lambda: len(place.of("ai_alert")) == 2, "the end")
    assert place.of("ai_alert")[1]["reason"] == "gateway_stopped"
    assert {topic for topic, body, _ in place.seen if body["message_type"] == "ai_alert"} == {
        SNAPSHOT_TOPIC.replace("camera/snapshots", "ai/alerts")
    }


async def test_what_lies_in_an_ignored_zone_is_not_there(tmp_path: Path) -> None:
    write_model(tmp_path, cameras={"camera-*": {"ignore": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}})
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(jpeg()))
        place.snapshot(snapshot_json(jpeg(seed=1), device_id="yard"))
        await place.answered(2)
    by_device = {result["device_id"]: len(result["predictions"]) for result in place.results}
    assert by_device == {"camera-01": 0, "yard": 1}


async def test_an_end_that_falls_into_an_outage_at_the_stop_is_said_when_the_broker_is_back(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with site(tmp_path, triton=looking_at([NO_HELMET]), drain_timeout_s=15) as place:
        place.snapshot(snapshot_json(jpeg()))
        await until(lambda: bool(place.of("ai_alert")), "the start")
        place.broker.stop()
        await until(lambda: not place.gateway.health.report().ready, "the outage")
        place.gateway.stop()
        await until(lambda: place.gateway.health.stopping, "the stop")
        place.broker.start()
        assert await place.stop() == 0
        await until(lambda: len(place.of("ai_alert")) == 2, "the end")
    assert [alert["event"] for alert in place.of("ai_alert")] == ["start", "end"]
