"""2: which model answers a snapshot, by when, and where the answers go."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from gateway.config import Settings
from gateway.errors import PayloadInvalid, VariantUnknown
from gateway.messages import Asked, Job, Origin, Place, Reading, ReplyTopics, Snapshot, Window
from gateway.models.catalog import Catalog, ServedModel
from gateway.models.spec import MqttSpec
from gateway.topics import fill, is_publishable, topic_matches

MAX_RESPONSE_TOPIC = 1024
CAMERAS = 256
"""As many have their topics kept; strangers invent names, and each takes some kilobytes."""
GATEWAYS = "edge-ai/{business_unit}/{facility}/{gateway_id}/ai/#"
"""Where gateways publish, this one and others."""


def model_for(asked: Asked, catalog: Catalog, topic: str = "") -> ServedModel:
    """The model that the message names, else the one for its topic and kind; `topic` is all of a long topic.

    Raises ModelUnknown, and PayloadInvalid for numbers to a model on pictures and the reverse.
    """
    origin, numbers = asked.origin, isinstance(asked, Reading)
    if origin.model_name:
        model = catalog.named(origin.model_name)
    else:
        model = catalog.for_topic(topic or origin.topic, pictures=not numbers)
    if model.spec.takes_pictures is numbers:
        wants, got = ("numbers", "a picture") if not numbers else ("a picture", "numbers")
        raise PayloadInvalid(
            f"model '{model.spec.name}' takes {wants}, the message has {got}",
            fix="Name another model, or none: the topic finds one of the right kind",
        )
    return model


def refuse_unknown_variant(asked: Asked, model: ServedModel) -> None:
    """Raise VariantUnknown when the message wants a variant that the model does not have."""
    preference = model.meant_by(asked.backend_preference)
    if preference is not None and preference != "dual" and preference not in model.variants:
        known = ", ".join(f"'{name}'" for name in model.variants)
        raise VariantUnknown(f"model '{model.spec.name}' has no variant '{preference[:100]}' (it has {known})")
    if preference == "dual" and len(model.variants) < 2:
        raise VariantUnknown(f"model '{model.spec.name}' has one variant only; 'dual' needs two")


def route(snapshot: Snapshot | Window, model: ServedModel, settings: Settings, expiry_s: int | None) -> Job:
    """Set the deadline and the topics of the answers.

    The deadline counts from arrival: deadline_ms of the message, else its MQTT message expiry, but never later than
    SNAPSHOT_DEADLINE_MS, since a snapshot that waits holds back the acknowledgements of all that came after it.
    """
    origin = snapshot.origin
    asked_ms = snapshot.deadline_ms or (expiry_s * 1000 if expiry_s else settings.snapshot_deadline_ms)
    deadline_ms = min(asked_ms, settings.snapshot_deadline_ms)
    return Job(
        snapshot=snapshot,
        model=model,
        deadline_at=origin.received_at + deadline_ms / 1000,
        topics=reply_topics(origin, model, settings),
    )


def reply_topics(origin: Origin, model: ServedModel | None, settings: Settings) -> ReplyTopics:
    """The output templates, those of the model before those of the gateway, filled for this snapshot."""
    own = model.spec.mqtt if model else None
    vision = model is None or model.spec.takes_pictures
    usual = settings.result_topic if vision else settings.sensor_result_topic
    templates = (
        (own and own.output_topic_template) or usual,
        (own and own.comparison_topic_template) or settings.comparison_topic,
        (own and own.error_topic_template) or settings.error_topic,
        (own and own.alert_topic_template) or settings.alert_topic,
    )
    result, comparison, error, alert = _filled(
        templates, origin.place, origin.device_id, model.spec.name if model else "none"
    )
    return ReplyTopics(result, comparison, error, alert, _response_topic(origin, own, settings))


@functools.lru_cache(CAMERAS)
def _filled(templates: tuple[str, ...], place: Place, device_id: str, model_name: str) -> tuple[str, ...]:
    parts = _parts(place, device_id, model_name)
    return tuple(fill(template, parts) for template in templates)


def topic_parts(origin: Origin, model_name: str | None) -> dict[str, str]:
    """What fills the named parts of an output topic."""
    return _parts(origin.place, origin.device_id, model_name or "none")


def _parts(place: Place, device_id: str, model_name: str) -> dict[str, str]:
    return {
        "business_unit": place.business_unit,
        "facility": place.facility,
        "gateway_id": place.gateway_id,
        "device_id": device_id,
        "model_name": model_name,
    }


def _response_topic(origin: Origin, model: MqttSpec | None, settings: Settings) -> str | None:
    """The topic that the message asks its answer on, unless that would do harm."""
    topic = origin.response_topic
    return topic if topic and may_answer_on(topic, settings, [model] if model else []) else None


def may_answer_on(topic: str, settings: Settings, models: Iterable[MqttSpec]) -> bool:
    """Whether an answer to somebody may be published there without harm.

    An answer on an input topic would be answered in turn, and one on a gateway's own topics could pass for its status,
    an alert, or another camera's result.
    """
    if len(topic) > MAX_RESPONSE_TOPIC or not is_publishable(topic) or topic.startswith("$"):
        return False
    inputs = (pattern.text for pattern in settings.patterns)
    templates = (text for model in models for text in model.templates)
    return not any(topic_matches(text, topic) for text in (*inputs, *settings.own_topics, GATEWAYS, *templates))
