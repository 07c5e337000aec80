"""2: which model answers a snapshot, by when, and where the answers go."""

from __future__ import annotations

from gateway.config import Settings
from gateway.errors import VariantUnknown
from gateway.messages import Job, Origin, ReplyTopics, Snapshot
from gateway.models.catalog import Catalog, ServedModel
from gateway.topics import fill


def route(snapshot: Snapshot, catalog: Catalog, settings: Settings, expiry_s: int | None) -> Job:
    """Find the model by the message, else by the topic; raises ModelUnknown, VariantUnknown.

    The deadline counts from arrival: deadline_ms of the message, else its MQTT message expiry, but never later than
    SNAPSHOT_DEADLINE_MS, since a snapshot that waits holds back the acknowledgements of all that came after it.
    """
    origin = snapshot.origin
    model = catalog.named(origin.model_name) if origin.model_name else catalog.for_topic(origin.topic)
    preference = snapshot.backend_preference
    if preference is not None and preference != "dual" and preference not in model.variants:
        known = ", ".join(f"'{name}'" for name in model.variants)
        raise VariantUnknown(f"model '{model.spec.name}' has no variant '{preference[:100]}' (it has {known})")
    if preference == "dual" and len(model.variants) < 2:
        raise VariantUnknown(f"model '{model.spec.name}' has one variant only; 'dual' needs two")
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
    parts = {
        "business_unit": origin.place.business_unit,
        "facility": origin.place.facility,
        "gateway_id": origin.place.gateway_id,
        "device_id": origin.device_id,
        "model_name": model.spec.name if model else "none",
    }
    own = model.spec.mqtt if model else None
    return ReplyTopics(
        result=fill((own and own.output_topic_template) or settings.result_topic, parts),
        comparison=fill((own and own.comparison_topic_template) or settings.comparison_topic, parts),
        error=fill((own and own.error_topic_template) or settings.error_topic, parts),
    )
