"""Before all else: which message this is, from where, and whom its answer concerns; never fails."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from datetime import datetime
from typing import TypeGuard

import msgspec

from gateway.messages import Message, Origin, Place, Timestamp
from gateway.topics import DEVICE_PARTS, TopicPattern, safe_text

MAX_NAME = 256
MAX_TOPIC = 1024
"""Letters of a topic that are kept and repeated; MQTT allows 64 KiB, and an answer may wait for long."""
NUMBER = re.compile(rb"\s{0,8}[-+]?[0-9.][0-9.eE+-]{0,63}\s{0,8}")
"""A payload that is one number, or looks like one."""
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,18})?(Z|[+-]\d\d:\d\d)?", re.ASCII)
"""In upper case; many a camera leaves the zone out."""
_LATEST = 2.6e14
"""The year 9999 in epoch milliseconds."""
_MAX_TRACE = 512
_MAX_ATTRIBUTES = 16
_TRACE_CONTEXT = ("traceparent", "tracestate")
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,20}")
"""How CloudEvents 1.0 lets an attribute be named; this also leaves out the reserved `__` names of other systems."""
_ASKED_BY_PROPERTY = ("time", "device_id", "model_name", "backend_preference")
"""What a message may say beside its payload; another time or another model makes it another snapshot."""
_OWN_ATTRIBUTES = frozenset(
    ("specversion", "type", "source", "id", "time", "datacontenttype", "dataschema", *_TRACE_CONTEXT)
)
"""What an answer says of itself; of `dataschema` nothing is repeated: it describes the snapshot, and data flows drop
a message that does not keep to it."""


class _Timed(msgspec.Struct):
    """What of a JSON object tells when it was taken, of the types that are read."""

    timestamp: int | float | str | None = None


_timed = msgspec.json.Decoder(_Timed)


def identify(
    message: Message, patterns: tuple[TopicPattern, ...], place: dict[str, str], usual: tuple[TopicPattern, ...] = ()
) -> Origin:
    """Say which message this is; never fails.

    `patterns` are the input topics; where one has wildcards without names, the `usual` ones tell what stands there.
    `result_id` is made from the topic, the payload and, where present, correlation data, CloudEvents id and what the
    user properties ask for, so a message that is delivered again gets the same id. A reading without a time gets a new
    one each time: that a sensor says the same twice is usual.
    """
    digest = message.oversize.sha256 if message.oversize else hashlib.sha256(message.payload).hexdigest()
    size = message.oversize.size if message.oversize else len(message.payload)
    named, device = _from_topic(message.topic, patterns, usual, place)
    user = dict(message.properties.user_properties)
    nonce = b"" if _has_an_identity(message) else uuid.uuid4().bytes
    correlation = message.properties.correlation_data or b""
    parts: list[str | bytes] = [message.topic, digest, correlation, user.get("id", ""), nonce]
    parts += [text for name in _ASKED_BY_PROPERTY if name in user for text in (name, user[name])]
    encoded = [part if isinstance(part, bytes) else part.encode() for part in parts]
    identity = hashlib.sha256(b"".join([len(data).to_bytes(4, "big") + data for data in encoded]))
    return Origin(
        result_id=identity.hexdigest()[:32],
        device_id=user.get("device_id", device)[:MAX_NAME] or "unknown",
        timestamp=user["time"] if is_time(user.get("time")) else round(time.time(), 3),
        topic=message.topic[:MAX_TOPIC],
        payload_bytes=size,
        payload_sha256=digest,
        received_at=message.received_at,
        place=Place(**{name: named.get(name, "")[:MAX_NAME] or default for name, default in place.items()}),
        correlation_data=message.properties.correlation_data,
        response_topic=message.properties.response_topic,
        trace=tuple((name, user[name]) for name in _TRACE_CONTEXT if _is_whole(user.get(name, ""))),
        attributes=_attributes(user),
    )


def _has_an_identity(message: Message) -> bool:
    """False for a reading that nothing tells from the next one: neither a time of its own nor an id."""
    payload = message.payload
    if _is_named(message):
        return True
    if NUMBER.fullmatch(payload):
        return False
    if payload[:1] == b"\xff" or b'"image_data"' in payload:  # in this order: a picture is searched once at most
        return True
    return b'"value' not in payload or _has_a_time(payload) is not False


def tells_itself_apart(message: Message) -> bool:
    """Whether a message says itself which one it is: two that are equal are then one, sent twice.

    Raw pictures and others without a time or an id are not: a camera may see the very same thing again.
    """
    if _is_named(message):
        return True
    return _has_a_time(message.payload) is True


def _has_a_time(payload: bytes) -> bool | None:
    """Whether a JSON object has a timestamp of its own; None for what is no such object, or is refused."""
    try:
        return _timed.decode(payload.removeprefix(b"\xef\xbb\xbf")).timestamp is not None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_named(message: Message) -> bool:
    """Whether the properties of MQTT 5 tell it from the next one."""
    user = dict(message.properties.user_properties)
    return bool(message.properties.correlation_data) or "id" in user or is_time(user.get("time"))


def is_time(value: float | str | None) -> TypeGuard[Timestamp]:
    """Whether a camera's timestamp is one: epoch seconds or milliseconds, or a date and time of RFC 3339."""
    if not isinstance(value, str):
        return value is not None and 0 <= value <= _LATEST
    text = value.upper()
    if not _RFC_3339.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_whole(value: str) -> bool:
    """Whether a trace context can be passed on as it is; a part of one would be wrong."""
    return 0 < len(value) <= _MAX_TRACE and safe_text(value) == value


def _attributes(user: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """What a CloudEvent says beside the things that its answer says of itself: its subject and its extensions."""
    if "specversion" not in user:
        return ()
    found = [
        (name, value[:MAX_NAME])
        for name, value in user.items()
        if _ATTRIBUTE.fullmatch(name) and name not in _OWN_ATTRIBUTES
    ]
    return tuple(found[:_MAX_ATTRIBUTES])


def _from_topic(
    topic: str, patterns: tuple[TopicPattern, ...], usual: tuple[TopicPattern, ...], place: dict[str, str]
) -> tuple[dict[str, str], str]:
    """The named parts of a topic, and the device that it names as well as one can tell."""
    for pattern in patterns:
        parsed = pattern.parse(topic)
        if parsed is not None:
            named, unnamed = parsed
            if any(name in named for name in DEVICE_PARTS):
                return named, next((named[name] for name in DEVICE_PARTS if named.get(name)), "")
            if not named and unnamed and (known := _first_named(topic, usual)):
                device = next((known[name] for name in DEVICE_PARTS if known.get(name)), "")
                return known, device or known.get("gateway_id", "") or "/".join(unnamed)
            return named, "/".join(unnamed) or named.get("gateway_id", "") or place["gateway_id"]
    return {}, topic


def _first_named(topic: str, patterns: tuple[TopicPattern, ...]) -> dict[str, str]:
    return next((parsed[0] for pattern in patterns if (parsed := pattern.parse(topic)) and parsed[0]), {})
