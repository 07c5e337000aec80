"""Home Assistant's MQTT discovery: what is announced, what is not, and that templates and topics stay ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin import home_assistant
from gateway.admin.home_assistant_messages import (
    alert_key,
    camera_announcement,
    camera_components,
    camera_id,
    detections_key,
    gateway_id,
)
from gateway.errors import ConfigError
from gateway.flow.route import may_answer_on
from gateway.testing import MemoryBroker
from tests.flow.builders import jpeg, settings, snapshot_json
from tests.flow.test_alert_flow import looking_at
from tests.harness import HELMET, NO_HELMET, Site, site, until, write_model

PREFIX = "homeassistant"
OBJECT_ID = re.compile(r"[a-zA-Z0-9_-]+")
TEMPLATE = re.compile(r"\{\{ value_json\.([a-z_]+|[ad][0-9a-f]{12} \| default\(''\)) \}\}")
# What Home Assistant documents for a device's discovery message, and refuses or ignores beyond it.
ROOT = {"device", "origin", "components", "state_topic", "availability_topic", "availability_template", "qos"}
DEVICE = {"identifiers", "name", "manufacturer", "model", "sw_version", "via_device"}
ENTITY = {
    "platform", "unique_id", "name", "device_class", "state_class", "entity_category", "value_template", "options",
    "json_attributes_topic", "json_attributes_template",
}  # fmt: skip


class Listener:
    """All that is said below Home Assistant's prefix: the last word on each topic, and how often there was one."""

    def __init__(self) -> None:
        self.last: dict[str, dict[str, Any]] = {}
        self.count: dict[str, int] = {}

    def configs(self) -> dict[str, dict[str, Any]]:
        """The discovery messages by the name of their device."""
        return {body["device"]["name"]: body for topic, body in self.last.items() if topic.endswith("/config")}

    def state(self, camera: str) -> dict[str, Any]:
        """The state of a camera by its name; empty before there is one."""
        config = self.configs().get(camera)
        return self.last.get(config["state_topic"], {}) if config else {}

    def value(self, camera: str, entity: str) -> Any:
        """What an entity shows, by the names that people see."""
        components = self.configs().get(camera, {"components": {}})["components"]
        keys = [key for key, each in components.items() if each.get("name") == entity]
        return self.state(camera).get(keys[0]) if keys else None


@contextlib.asynccontextmanager
async def listening(broker: MemoryBroker) -> AsyncIterator[Listener]:
    heard, client = Listener(), broker.client("home-assistant", [f"{PREFIX}/#"])

    async def listen() -> None:
        async for message in client.messages():
            client.acknowledge(message)
            heard.count[message.topic] = heard.count.get(message.topic, 0) + 1
            if message.payload:
                heard.last[message.topic] = json.loads(message.payload)
            else:
                heard.last.pop(message.topic, None)

    tasks = [asyncio.create_task(client.run()), asyncio.create_task(listen())]
    await until(lambda: client.connected, "the listener")
    yield heard
    await client.close()
    await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def announced(folder: Path, **more: Any) -> AsyncIterator[tuple[Site, Listener]]:
    broker = MemoryBroker()
    async with listening(broker) as heard, site(folder, broker=broker, home_assistant_topic=PREFIX, **more) as place:
        yield place, heard


def as_documented(topic: str, body: dict[str, Any]) -> None:
    """Hold one message against what Home Assistant documents."""
    prefix, kind, object_id, last = topic.split("/")
    assert (prefix, kind, last) == (PREFIX, "device", "config")
    assert OBJECT_ID.fullmatch(object_id)
    assert set(body) <= ROOT
    assert {"device", "origin", "components"} <= set(body)
    assert set(body["device"]) <= DEVICE
    assert body["device"]["identifiers"] == [object_id]
    assert body["origin"]["name"]
    unique = [each["unique_id"] for each in body["components"].values()]
    assert len(set(unique)) == len(unique)
    for each in body["components"].values():
        assert set(each) <= ENTITY
        assert each["platform"] in ("sensor", "binary_sensor")


async def test_a_gateway_and_its_camera_come_with_their_alerts(tmp_path: Path) -> None:
    write_model(tmp_path, alerts={"hold_off_s": 5.0})
    async with announced(tmp_path, triton=looking_at([HELMET, NO_HELMET])) as (place, heard):
        place.snapshot(snapshot_json(jpeg()))
        await until(lambda: heard.value("camera-01", "person_without_helmet") == "ON", "the alert")
        for topic, body in heard.last.items():
            if topic.endswith("/config"):
                as_documented(topic, body)
        gateway, camera = heard.configs()["Edge gateway test"], heard.configs()["camera-01"]
        assert [camera["device"]["via_device"]] == gateway["device"]["identifiers"]
        assert camera["availability_topic"] == gateway["state_topic"]
        assert camera["availability_topic"] in {
            topic for topic, body, _ in place.seen if body["message_type"] == "ai_status"
        }
        assert heard.value("camera-01", "detector detections") == 2
        assert heard.value("camera-01", "Last result").endswith("+00:00")
        await place.stop()
        await until(lambda: heard.value("camera-01", "person_without_helmet") == "OFF", "the end of the alert")
        assert heard.count[f"{PREFIX}/device/{camera['device']['identifiers'][0]}/config"] == 1


async def test_it_is_said_once_and_again_to_a_broker_that_was_away(tmp_path: Path) -> None:
    async with announced(tmp_path) as (place, heard):
        for number in range(20):
            place.snapshot(snapshot_json(jpeg(seed=number)))
        await place.answered(20)
        await until(lambda: heard.value("camera-01", "detector detections") == 1, "the camera")
        configs = {topic: count for topic, count in heard.count.items() if topic.endswith("/config")}
        assert set(configs.values()) == {1}
        assert len(configs) == 2
        state = heard.configs()["camera-01"]["state_topic"]
        assert heard.count[state] <= 3, "one in five seconds, however many results there are"
        place.broker.stop()
        place.broker.start()
        await until(lambda: all(heard.count[topic] == 2 for topic in configs), "both once more")


async def test_nothing_is_said_where_it_is_off(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with listening(broker) as heard, site(tmp_path, broker=broker) as place:
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(1)
    assert not heard.last


async def test_who_asks_over_http_is_no_camera(tmp_path: Path) -> None:
    async with announced(tmp_path, http_host="127.0.0.1") as (place, heard):
        headers = {"Content-Type": "image/jpeg"}
        url = f"http://127.0.0.1:{place.gateway.http_port}/v1/infer"
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.post(url, content=jpeg(), headers=headers)
        assert answer.status_code == httpx.codes.OK, answer.text
        place.snapshot(snapshot_json(jpeg()))
        await until(lambda: "camera-01" in heard.configs(), "the camera")
        assert set(heard.configs()) == {"Edge gateway test", "camera-01"}


async def test_cameras_that_make_up_names_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_assistant, "MAX_CAMERAS", 3)
    async with announced(tmp_path) as (place, heard):
        for number in range(8):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id=f"camera-{number}"))
        await place.answered(8)
        await until(lambda: len(heard.configs()) == 4, "three cameras and the gateway")
        await place.stop()
    assert len(heard.configs()) == 4


async def test_a_camera_that_is_silent_for_long_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_assistant, "MAX_CAMERAS", 2)
    async with announced(tmp_path) as (place, heard):
        for number, name in enumerate(("invented", "at-work", "invented", "at-work")):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id=name))
            await place.answered(number + 1)
        await until(lambda: {"invented", "at-work"} <= set(heard.configs()), "both")
        gone = [
            heard.configs()["invented"]["state_topic"],
            heard.configs()["invented"]["state_topic"].replace("/state", "/config"),
        ]
        monkeypatch.setattr(home_assistant, "SILENT_S", 0.0)
        place.snapshot(snapshot_json(jpeg(seed=9), device_id="new"))
        await until(lambda: set(heard.configs()) == {"Edge gateway test", "at-work", "new"}, "its place")
        await until(lambda: not set(gone) & set(heard.last), "nothing that is retained of it")
        place.snapshot(snapshot_json(jpeg(seed=10), device_id="invented"))
        await until(lambda: set(heard.configs()) == {"Edge gateway test", "invented", "new"}, "its return")


async def test_a_model_that_goes_takes_its_entities_with_it(tmp_path: Path) -> None:
    components = camera_components("camera", {"detector": ("person",)})
    body = json.loads(camera_announcement(settings(), PREFIX, "c", camera_components("camera", {}), components).payload)
    assert body["components"][detections_key("detector")] == {"platform": "sensor"}
    assert body["components"][alert_key("detector", "person")] == {"platform": "binary_sensor"}


@given(st.text(), st.text(), st.text(max_size=8))
def test_no_name_leaves_its_place(device_id: str, model: str, class_name: str) -> None:
    """Neither a topic nor a template is made of what a camera or a model calls itself."""
    components = camera_components(camera_id("gateway", device_id), {model: (class_name,)})
    said = camera_announcement(settings(), PREFIX, device_id, components, {})
    body = json.loads(said.payload)
    as_documented(said.topic, body)
    assert said.retain
    assert all(TEMPLATE.fullmatch(each["value_template"]) for each in body["components"].values())
    assert len(said.payload) < 4096
    shown = [body["device"]["name"], *(each["name"] for each in body["components"].values())]
    assert all(name.isprintable() for name in shown), "nothing turns the text around, or ends the line"


def test_a_name_that_turns_text_around_is_cleaned() -> None:
    components = camera_components("camera", {"detector": ("fire\u202egninraw\u2028",)})
    assert components[alert_key("detector", "fire\u202egninraw\u2028")]["name"] == "fire?gninraw?"


@given(st.text(max_size=30), st.text(max_size=30))
def test_two_cameras_never_share_an_id(first: str, second: str) -> None:
    assert (camera_id("gateway", first) == camera_id("gateway", second)) == (first == second)


def test_two_places_of_one_name_are_two_gateways() -> None:
    assert gateway_id(settings(facility="north")) != gateway_id(settings(facility="south"))


def test_no_camera_may_have_its_answer_sent_there() -> None:
    on, off = settings(home_assistant_topic=PREFIX), settings()
    for topic in (f"{PREFIX}/device/x/config", f"{PREFIX}/switch/door/config"):
        assert not may_answer_on(topic, on, [])
        assert may_answer_on(topic, off, [])


@pytest.mark.parametrize("topic", ["home/#", "+", "$SYS", "home/", "a//b", "{facility}"])
def test_a_topic_that_is_none_is_refused(topic: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=r"home_assistant_topic|HOME_ASSISTANT_TOPIC"):
        settings(home_assistant_topic=topic)
