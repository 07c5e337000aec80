"""Which model answers, by when, and where the answer goes."""

from __future__ import annotations

import pytest

from gateway.errors import ModelUnknown, PayloadInvalid, VariantUnknown
from gateway.flow.route import model_for, refuse_unknown_variant, reply_topics, route
from gateway.messages import Reading, Snapshot
from tests.flow.builders import catalog, origin, sensor_spec, served, settings, spec

DETECTOR = served(spec("detector", mqtt={"input_topics": ["edge-ai/#"]}))
GATE = served(spec("gate", mqtt={"input_topics": ["edge-ai/+/+/+/camera/snapshots"]}))
SPARE = served(spec("spare", variants={"onnx": "spare-onnx"}))
THERMOMETER = served(sensor_spec("thermometer"))
CATALOG = catalog(DETECTOR, GATE, SPARE)


def snapshot(topic: str = "edge-ai/bu/plant/gw/camera/snapshots", model: str | None = None, **more: object) -> Snapshot:
    return Snapshot(origin=origin(topic=topic, model_name=model), image=b"x", metadata={}, **more)  # type: ignore[arg-type]


def reading(topic: str = "edge-ai/bu/plant/gw/sensors/t-1", model: str | None = None) -> Reading:
    return Reading(origin=origin(topic=topic, model_name=model), values=(21.5,))


def test_the_message_names_the_model() -> None:
    assert model_for(snapshot(model="spare"), CATALOG) is SPARE


def test_otherwise_the_narrowest_topic_filter_decides() -> None:
    assert model_for(snapshot(), CATALOG) is GATE
    assert model_for(snapshot("edge-ai/bu/plant/camera/snapshots"), CATALOG) is DETECTOR


def test_the_only_model_takes_everything() -> None:
    assert model_for(snapshot("x/y"), catalog(SPARE, THERMOMETER)) is SPARE
    assert model_for(reading("x/y"), catalog(SPARE, THERMOMETER)) is THERMOMETER


def test_numbers_do_not_go_to_a_model_on_pictures_nor_pictures_to_one_on_numbers() -> None:
    with pytest.raises(PayloadInvalid, match="'spare' takes a picture, the message has numbers"):
        model_for(reading(model="spare"), CATALOG)
    with pytest.raises(PayloadInvalid, match="'thermometer' takes numbers, the message has a picture"):
        model_for(snapshot(model="thermometer"), catalog(THERMOMETER))
    with pytest.raises(ModelUnknown, match="no model on plain numbers takes topic"):
        model_for(reading(), CATALOG)


def test_unknown_models_and_topics_are_errors_that_name_what_is_known() -> None:
    with pytest.raises(ModelUnknown, match="detector, gate, spare"):
        model_for(snapshot(model="nope"), CATALOG)
    with pytest.raises(ModelUnknown, match="no model on pictures takes topic 'x/y'"):
        model_for(snapshot("x/y"), CATALOG)


@pytest.mark.parametrize(("model", "preference"), [("detector", "tensorflow"), ("spare", "torch"), ("spare", "dual")])
def test_unknown_variants_are_errors(model: str, preference: str) -> None:
    asked = snapshot(model=model, backend_preference=preference)
    found = model_for(asked, CATALOG)
    with pytest.raises(VariantUnknown):
        refuse_unknown_variant(asked, found)


def test_candle_is_the_native_variant_unless_a_variant_bears_the_name() -> None:
    assert GATE.meant_by("candle") == "torch"
    assert served(spec(variants={"candle": "x", "torch": "y"})).meant_by("candle") == "candle"
    refuse_unknown_variant(snapshot(model="gate", backend_preference="candle"), GATE)
    with pytest.raises(VariantUnknown):
        refuse_unknown_variant(snapshot(model="spare", backend_preference="candle"), SPARE)


@pytest.mark.parametrize(
    ("deadline_ms", "expiry_s", "expected_s"),
    [(250.0, 60, 0.25), (None, 1, 1), (None, None, 1.5), (86_400_000.0, None, 1.5), (None, 4_000_000_000, 1.5)],
)
def test_the_deadline_is_the_messages_else_its_expiry_but_never_later_than_the_default(
    deadline_ms: float | None, expiry_s: int | None, expected_s: float
) -> None:
    job = route(snapshot(model="gate", deadline_ms=deadline_ms), GATE, settings(snapshot_deadline_ms=1500), expiry_s)
    assert job.deadline_at - job.snapshot.origin.received_at == pytest.approx(expected_s)


def test_output_topics_of_the_model_come_before_those_of_the_gateway() -> None:
    own = served(spec(mqtt={"output_topic_template": "site/{facility}/{model_name}/{device_id}"}))
    topics = reply_topics(origin(device_id="cam/1"), own, settings())
    assert topics.result == "site/default/detector/cam_1"
    assert topics.error == "edge-ai/default/default/test/ai/errors"


@pytest.mark.parametrize(
    "topic",
    [
        "edge-ai/bu/plant/gw/camera/snapshots",
        "azure-iot-operations/data/cam/snapshot",
        "edge-ai/default/default/test/ai/status",
        "edge-ai/default/default/test/ai/alerts",
        "edge-ai/default/default/test/ai/inference/vision",
        "edge-ai/other/plant/gw/ai/models",
        "a" * 2000,
        "$SYS/broker",
        "a/+/b",
        "a/#",
        "",
        "a\x00b",
    ],
)
def test_a_response_topic_that_would_do_harm_is_not_used(topic: str) -> None:
    assert reply_topics(origin(response_topic=topic), GATE, settings()).response is None


def test_a_response_topic_is_used_beside_the_usual_one() -> None:
    topics = reply_topics(origin(response_topic="answers/42"), GATE, settings())
    assert (topics.response, topics.result) == ("answers/42", "edge-ai/default/default/test/ai/inference/vision")


def test_readings_are_answered_on_a_topic_of_their_own() -> None:
    assert reply_topics(origin(), THERMOMETER, settings()).result == "edge-ai/default/default/test/ai/inference/sensor"
