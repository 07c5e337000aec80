"""An input topic that also receives the gateway's answers is refused at start: it would never end."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.models.loops import read_models
from gateway.topics import overlap
from tests.flow.builders import settings
from tests.harness import site, write_model


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+/c", "+/b/c", True),
        ("a/{name}/c", "a/b/+", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("#", "x/y", True),
        ("$share/g/a/#", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "a/b/c", False),
        ("a/b/#", "a/c/#", False),
    ],
)
def test_overlap_of_filters(first: str, second: str, expected: bool) -> None:
    assert overlap(first, second) is expected
    assert overlap(second, first) is expected


@pytest.mark.parametrize(
    "topic", ["#", "edge-ai/#", "edge-ai/+/+/+/ai/errors", "$share/g/edge-ai/+/+/+/#", "edge-ai/{a}/{b}/{c}/ai/status"]
)
def test_a_filter_over_the_own_answers_is_refused(tmp_path: Path, topic: str) -> None:
    write_model(tmp_path)
    with pytest.raises(ConfigError, match="also receives what the gateway publishes") as caught:
        read_models(settings(model_repository=tmp_path, mqtt_input_topics=topic))
    assert caught.value.where == "MQTT_INPUT_TOPICS"


@pytest.mark.parametrize(
    ("commands", "inputs"),
    [
        ("cameras/orders", "cameras/+"),
        ("cameras/orders", "$share/g/cameras/#"),
        ("cameras/{gateway_id}", "cameras/{camera}"),
        ("edge-ai/{business_unit}/{facility}/{gateway_id}/ai/status", "cameras/+"),
        ("edge-ai/default/default/test/ai/models/detector", "cameras/+"),
    ],
)
def test_a_topic_of_commands_is_used_for_nothing_else(tmp_path: Path, commands: str, inputs: str) -> None:
    write_model(tmp_path)
    with pytest.raises(ConfigError, match="falls together with") as caught:
        read_models(settings(model_repository=tmp_path, mqtt_input_topics=inputs, mqtt_command_topics=commands))
    assert caught.value.where == "MQTT_COMMAND_TOPICS"


async def test_a_model_that_publishes_among_the_inputs_is_refused_and_takes_service_from_no_other(
    tmp_path: Path,
) -> None:
    write_model(tmp_path)
    mqtt = {"output_topic_template": "azure-iot-operations/data/{device_id}/result"}
    write_model(tmp_path, "other", mqtt=mqtt)
    async with site(tmp_path, wait=False) as place:
        assert set(place.gateway.models.current.models) == {"detector"}
        assert any("azure-iot-operations" in reason for reason in place.gateway.health.report().reasons)


def test_the_defaults_do_not_loop(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert read_models(settings(model_repository=tmp_path))[0]
