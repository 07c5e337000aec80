"""The broker: whether it lets us in, what it grants, and whether its limits leave room for our work."""

from __future__ import annotations

import socket
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
    if unknown := await apart(lambda: _no_address(mqtt)):
        return [unknown]
    said, expiry_s = _harmless(settings), settings.aio_mqtt_session_expiry
    facts = await apart(lambda: probe_broker(mqtt, tuple(said.values()), expiry_s, PROBE_S))
    return [
        *_session(settings, mqtt, facts),
        *_certificate(facts),
        *_subscriptions(settings, facts),
        *_publications(settings, dict(zip(said, facts.publications, strict=True))),
        *_limits(settings, facts),
        *_session_expiry(settings, facts),
    ]


def _no_address(mqtt: MqttSettings) -> Finding | None:
    """What is wrong where the name of the broker leads nowhere."""
    try:
        socket.getaddrinfo(mqtt.host, mqtt.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name of a host"
        fix = "Correct AIO_BROKER_HOSTNAME, or let the DNS of this machine know it (getent hosts <name> asks it)"
        return AREA.problem(f"the name leads to no address: {reason}", where=mqtt.address, fix=fix)
    return None


def probed_topics(settings: Settings, client_id: str) -> tuple[str, ...]:
    """What to subscribe in place of the topics of snapshots and commands.

    A shared one with a group of our own: as a member of the real group we would take snapshots away from it.
    """
    inputs = (
        f"$share/{client_id}/{without_share(pattern.subscription)}"
        if pattern.text.startswith("$share/")
        else pattern.subscription
        for pattern in settings.patterns
    )
    return (*inputs, *settings.command_topics)


def _harmless(settings: Settings) -> dict[str, Publication]:
    """One message below each topic, by its setting: on a topic of answers itself others would have to put up with it.

    Of the topics of answers none is left out, for a broker may grant each by a rule of its own.
    """
    body = {"message_type": "ai_doctor", "timestamp": round(time.time(), 3), "gateway_id": settings.gateway_id}
    payload = msgspec.json.encode(body)
    parts = {**settings.place, "device_id": "doctor", "model_name": "doctor"}
    given = {name.upper(): getattr(settings, name) for name in type(settings).model_fields if name.endswith("_topic")}
    if settings.home_assistant_topic is not None:  # the first levels of what is published, and rules may name more
        given["HOME_ASSISTANT_TOPIC"] = f"{settings.home_assistant_topic}/device"
    topics = {name: f"{fill(topic, parts)}/doctor" for name, topic in given.items() if isinstance(topic, str)}
    return {name: Publication(topic, payload, content_type=JSON_TYPE) for name, topic in topics.items()}


def _session(settings: Settings, mqtt: MqttSettings, facts: BrokerFacts) -> Iterator[Finding]:
    who = f"user '{settings.aio_mqtt_username}'" if settings.aio_mqtt_username else "without a user"
    if settings.aio_sat_file is not None:
        who = f"with the service-account token of {settings.aio_sat_file}"
    if settings.aio_tls_cert_file is not None:
        who += f" and the certificate of {settings.aio_tls_cert_file}"
    over = facts.tls or "not encrypted"
    at = f" at {facts.peer}" if facts.peer not in ("", mqtt.host) else ""
    yield AREA.ok(
        f"lets us in {who}, MQTT {mqtt.protocol}, {over}{at}; asked as '{mqtt.client_id}', the gateway is "
        f"'{settings.client_id}', for whom its rules may differ",
        where=mqtt.address,
    )
    if facts.assigned_client_id is not None:
        yield AREA.warning(
            f"calls us '{facts.assigned_client_id}', whatever client id is asked for: it may not keep our session",
            fix="Let the broker accept AIO_MQTT_CLIENT_ID",
        )


def _certificate(facts: BrokerFacts) -> Iterator[Finding]:
    certificate = facts.certificate
    if certificate is None:
        return
    days = (certificate.ends_at - time.time()) / DAY_S
    until = time.strftime("%Y-%m-%d", time.gmtime(certificate.ends_at))
    text = (
        f"its certificate ends in {days:.0f} days, on {until}; it is that of '{certificate.subject}', "
        f"for whom '{certificate.issuer}' vouches"
    )
    if days < CERTIFICATE_DAYS:
        yield AREA.warning(text, fix="Renew the broker's certificate")
    else:
        yield AREA.ok(text)


def _subscriptions(settings: Settings, facts: BrokerFacts) -> Iterator[Finding]:
    wanted = [(TopicPattern(text).subscription, "MQTT_INPUT_TOPICS") for text in settings.mqtt_input_topics]
    wanted += [(topic, "MQTT_COMMAND_TOPICS") for topic in settings.command_topics]
    for (topic, setting), grant in zip(wanted, facts.subscriptions, strict=True):
        if grant.refused:
            says = AREA.problem if setting == "MQTT_INPUT_TOPICS" else AREA.warning
            yield says(
                f"refuses the subscription: {grant.reason}",
                where=topic,
                fix=f"Allow the client to subscribe it ({settings.client_id}), or change {setting}",
            )
        elif grant.qos == 0:
            yield AREA.warning(
                "grants QoS 0 only, so messages can be lost", where=topic, fix="Allow QoS 1 at the broker"
            )
        else:
            yield AREA.ok("subscription granted with QoS 1", where=topic)
    if not all(grant.refused for grant in facts.subscriptions):
        yield AREA.unknown(
            "whether it also hands over what cameras publish there shows with a snapshot only: some grant every "
            "subscription and withhold the messages, as Mosquitto with an acl_file does"
        )


def _publications(settings: Settings, grants: dict[str, Grant]) -> Iterator[Finding]:
    taken = [name for name, grant in grants.items() if not grant.refused]
    by_reason: dict[str, list[str]] = {}
    for name, grant in grants.items():
        if grant.refused:
            by_reason.setdefault(grant.reason, []).append(name)
    for reason, names in by_reason.items():
        yield AREA.warning(
            f"refuses a message below {', '.join(names)}: {reason}; those topics themselves were not tried, for others "
            "would see it",
            where=grants[names[0]].topic,
            fix=f"Let {settings.client_id} publish there, unless the broker's rules name the topics one by one",
        )
    if not taken:
        return
    below = f"below {', '.join(taken)}"
    if settings.mqtt_protocol != "5":
        text = f"may take messages of ours {below}, or drop them: MQTT 3.1.1 has no word for no"
        yield AREA.unknown(text, where=grants[taken[0]].topic)
    else:
        text = f"takes messages of ours {below}; those topics themselves were not tried, for others would see it"
        yield AREA.ok(text, where=grants[taken[0]].topic)


def _limits(settings: Settings, facts: BrokerFacts) -> Iterator[Finding]:
    if settings.mqtt_protocol != "5":
        yield AREA.unknown(
            "tells no limits: with MQTT 3.1.1 the largest packet, and whether there are retained messages and shared "
            "subscriptions, show in use only"
        )
        return
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
        yield AREA.ok(f"takes packets of up to {largest} bytes, MAX_PAYLOAD_BYTES is {settings.max_payload_bytes}")
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
        has = [
            f"{'has' if there else 'has no'} {what}"
            for what, there in (
                ("retained messages", granted.retain_available),
                ("shared subscriptions", granted.shared_available),
            )
        ]
        yield AREA.ok(f"takes {granted.receive_maximum} unacknowledged messages at a time; {', '.join(has)}")
    if facts.server_keep_alive_s is not None:
        yield AREA.ok(f"wants a sign of life every {facts.server_keep_alive_s} s, in place of AIO_MQTT_KEEP_ALIVE")


def _session_expiry(settings: Settings, facts: BrokerFacts) -> Iterator[Finding]:
    """For how long snapshots are kept while the gateway is away."""
    wanted, granted = settings.aio_mqtt_session_expiry, facts.session_expiry_s
    if not wanted:
        return
    if settings.mqtt_protocol != "5":
        yield AREA.unknown("keeps our session as long as it likes: MQTT 3.1.1 does not say how long")
    elif granted is None:
        yield AREA.unknown("did not say for how long it keeps our session: it let us in only once")
    elif granted < wanted:
        yield AREA.warning(
            f"keeps the session of a gateway that is away for {granted} s, AIO_MQTT_SESSION_EXPIRY is {wanted}: "
            "snapshots of a longer outage are lost",
            fix="Raise the broker's limit on the session expiry, or live with less",
        )
    else:
        yield AREA.ok(f"keeps the session of a gateway that is away for {granted} s")
