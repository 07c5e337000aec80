"""Which model answers, by when, and where the answer goes."""

from __future__ import annotations

import pytest

from gateway.errors import ModelUnknown, VariantUnknown
from gateway.flow.route import reply_topics, route
from gateway.messages import Snapshot
from tests.flow.builders import catalog, origin, served, settings, spec

DETECTOR = served(spec("detector", mqtt={"input_topics": ["edge-ai/#"]}))
GATE = served(spec("gate", mqtt={"input_topics": ["edge-ai/+/+/+/camera/snapshots"]}))
SPARE = served(spec("spare", variants={"onnx": "spare-onnx"}))
CATALOG = catalog(DETECTOR, GATE, SPARE)


def snapshot(topic: str = "edge-ai/bu/plant/gw/camera/snapshots", model: str | None = None, **more: object) -> Snapshot:
    return Snapshot(origin=origin(topic=topic, model_name=model), image=b"x", metadata={}, **more)  # type: ignore[arg-type]


def test_the_message_names_the_model() -> None:
    assert route(snapshot(model="spare"), CATALOG, settings(), None).model is SPARE


def test_otherwise_the_narrowest_topic_filter_decides() -> None:
    assert route(snapshot(), CATALOG, settings(), None).model is GATE
    assert route(snapshot("edge-ai/bu/plant/camera/snapshots"), CATALOG, settings(), None).model is DETECTOR


def test_the_only_model_takes_everything() -> None:
    assert route(snapshot("x/y"), catalog(SPARE), settings(), None).model is SPARE


def test_unknown_models_and_topics_are_errors_that_name_what_is_known() -> None:
    with pytest.raises(ModelUnknown, match="detector, gate, spare"):
        route(snapshot(model="nope"), CATALOG, settings(), None)
    with pytest.raises(ModelUnknown, match="no model takes topic 'x/y'"):
        route(snapshot("x/y"), CATALOG, settings(), None)


@pytest.mark.parametrize(("model", "preference"), [("detector", "tensorflow"), ("spare", "torch"), ("spare", "dual")])
def test_unknown_variants_are_errors(model: str, preference: str) -> None:
    with pytest.raises(VariantUnknown):
        route(snapshot(model=model, backend_preference=preference), CATALOG, settings(), None)


@pytest.mark.parametrize(
    ("deadline_ms", "expiry_s", "expected_s"),
    [(250.0, 60, 0.25), (None, 1, 1), (None, None, 1.5), (86_400_000.0, None, 1.5), (None, 4_000_000_000, 1.5)],
)
def test_the_deadline_is_the_messages_else_its_expiry_but_never_later_than_the_default(
    deadline_ms: float | None, expiry_s: int | None, expected_s: float
) -> None:
    job = route(snapshot(model="gate", deadline_ms=deadline_ms), CATALOG, settings(snapshot_deadline_ms=1500), expiry_s)
    assert job.deadline_at - job.snapshot.origin.received_at == pytest.approx(expected_s)


def test_output_topics_of_the_model_come_before_those_of_the_gateway() -> None:
    own = served(spec(mqtt={"output_topic_template": "site/{facility}/{model_name}/{device_id}"}))
    topics = reply_topics(origin(device_id="cam/1"), own, settings())
    assert topics.result == "site/default/detector/cam_1"
    assert topics.error == "edge-ai/default/default/test/ai/errors"
