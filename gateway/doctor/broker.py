"""The broker: whether it lets us in, what it grants, and whether its limits leave room for our work."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from gateway.adapters.mqtt_connack import NO_QOS_1, impossible
from gateway.adapters.mqtt_probe import BrokerFacts, Grant, probe_broker
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.config import Settings
from gateway.doctor.findings import Area, Finding
from gateway.messages import JSON_TYPE, Publication
from gateway.terminal.threads import apart
from gateway.topics import TopicPattern, fill, without_share

AREA = Area("Broker")
PROBE_S = 8.0
CERTIFICATE_DAYS = 30
LEAST_RECEIVE_MAXIMUM = 10
DAY_S = 86_400


async def check_broker(settings: Settings, mqtt: MqttSettings) -> list[Finding]:
    """All that a short session of our own can tell; raises ConnectionEnded when there is none."""
    facts = await apart(lambda: probe_broker(mqtt, _harmless(settings), PROBE_S))
    return [
        _session(settings, mqtt, facts),
        *_certificate(facts),
        *_subscriptions(settings, facts),
        _publication(settings, facts),
        *_limits(settings, facts),
    ]


def probed_topics(settings: Settings, client_id: str) -> tuple[str, ...]:
    """What to subscribe in place of the input topics.

    A shared one with a group of our own: as a member of the real group we would take snapshots away from it.
    """
    return tuple(
        f"$share/{client_id}/{without_share(pattern.subscription)}"
        if pattern.text.startswith("$share/")
        else pattern.subscription
        for pattern in settings.patterns
    )


def _harmless(settings: Settings) -> Publication:
    """Below the status topic, where nobody listens: on a topic of answers others would have to put up with it."""
    topic = f"{fill(settings.status_topic, settings.place)}/doctor"
    body = {"message_type": "ai_doctor", "timestamp": round(time.time(), 3), "gateway_id": settings.gateway_id}
    return Publication(topic, msgspec.json.encode(body), content_type=JSON_TYPE)


def _session(settings: Settings, mqtt: MqttSettings, facts: BrokerFacts) -> Finding:
    who = f"user '{settings.aio_mqtt_username}'" if settings.aio_mqtt_username else "without a user"
    if settings.aio_sat_file is not None:
        who = f"with the service-account token of {settings.aio_sat_file}"
    if settings.aio_tls_cert_file is not None:
        who += f" and the certificate of {settings.aio_tls_cert_file}"
    over = facts.tls or "not encrypted"
    return AREA.ok(
        f"lets us in {who}, MQTT {mqtt.protocol}, {over}; asked as '{mqtt.client_id}', the gateway is "
        f"'{settings.client_id}', for whom its rules may differ",
        where=mqtt.address,
    )


def _certificate(facts: BrokerFacts) -> Iterator[Finding]:
    if facts.certificate_ends_at is None:
        return
    days = (facts.certificate_ends_at - time.time()) / DAY_S
    text = f"its certificate ends in {days:.0f} days"
    if days < CERTIFICATE_DAYS:
        yield AREA.warning(text, fix="Renew the broker's certificate")
    else:
        yield AREA.ok(text)


def _subscriptions(settings: Settings, facts: BrokerFacts) -> Iterator[Finding]:
    for text, grant in zip(settings.mqtt_input_topics, facts.subscriptions, strict=True):
        topic = TopicPattern(text).subscription
        if grant.refused:
            yield AREA.problem(
                f"refuses the subscription: {grant.reason}",
                where=topic,
                fix=f"Allow the client to subscribe it ({settings.client_id}), or change MQTT_INPUT_TOPICS",
            )
        elif grant.qos == 0:
            yield AREA.warning(
                "grants QoS 0 only, so snapshots can be lost", where=topic, fix="Allow QoS 1 at the broker"
            )
        else:
            yield AREA.ok("subscription granted with QoS 1", where=topic)
    if not all(grant.refused for grant in facts.subscriptions):
        yield AREA.unknown(
            "whether it also hands over what cameras publish there shows with a snapshot only: some grant every "
            "subscription and withhold the messages, as Mosquitto with an acl_file does"
        )


def _publication(settings: Settings, facts: BrokerFacts) -> Finding:
    grant = facts.publication or Grant("", refused=True, reason="not tried")
    if grant.refused:
        return AREA.warning(
            f"refuses a message: {grant.reason}; the topics of answers were not tried, for others would see it",
            where=grant.topic,
            fix="Allow the client to publish there, unless the broker lists the topics of answers one by one",
        )
    if settings.mqtt_protocol != "5":
        return AREA.unknown("may take a message of ours or drop it: MQTT 3.1.1 has no word for no", where=grant.topic)
    return AREA.ok("takes a message of ours; the topics of answers were not tried", where=grant.topic)


def _limits(settings: Settings, facts: BrokerFacts) -> Iterator[Finding]:
    granted = facts.limits
    largest = granted.maximum_packet_size
    if largest is None:
        yield AREA.unknown("says nothing of a largest packet; Mosquitto keeps its message_size_limit to itself")
    elif largest < settings.max_payload_bytes:
        yield AREA.warning(
            f"takes packets of {largest} bytes at most, MAX_PAYLOAD_BYTES is {settings.max_payload_bytes}",
            fix="Raise the broker's maximum packet size if cameras send larger pictures",
        )
    else:
        yield AREA.ok(f"takes packets of up to {largest} bytes")
    if granted.maximum_qos < 1:
        yield AREA.problem(NO_QOS_1[0].removeprefix("The broker "), fix=NO_QOS_1[1])
    if not granted.retain_available:
        text = "has no retained messages: who listens later sees no status, and no state of models, until they change"
        yield AREA.warning(text, fix="Allow retained messages at the broker")
    topics = [pattern.subscription for pattern in settings.patterns]
    for topic, (why, fix) in impossible(granted, topics).items():
        yield AREA.problem(f"cannot take the subscription: {why}", where=topic, fix=fix)
    if granted.receive_maximum < LEAST_RECEIVE_MAXIMUM:
        yield AREA.warning(
            f"takes {granted.receive_maximum} unacknowledged messages at a time, which slows the answers down",
            fix="Raise the broker's receive maximum",
        )
    else:
        yield AREA.ok(f"takes {granted.receive_maximum} unacknowledged messages at a time")
    if facts.server_keep_alive_s is not None:
        yield AREA.ok(f"wants a sign of life every {facts.server_keep_alive_s} s, in place of AIO_MQTT_KEEP_ALIVE")
