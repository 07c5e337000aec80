"""1: a payload becomes a snapshot. JSON with base64, or the raw bytes of a JPEG or PNG."""

from __future__ import annotations

import binascii
import hashlib
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeGuard

import msgspec
import pybase64

from gateway.errors import ImageUndecodable, PayloadInvalid, PayloadTooLarge
from gateway.messages import Message, Origin, Place, Snapshot, Timestamp
from gateway.topics import DEVICE_PARTS, TopicPattern

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_OTHER_PICTURES = {b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF"}
_TRACE_CONTEXT = ("traceparent", "tracestate")
_MAX_NAME = 256
_MAX_TIME = 64
MAX_METADATA_BYTES = 64 * 1024
_WHITESPACE = re.compile(r"\s+")


class SnapshotMessage(msgspec.Struct):
    """The JSON that cameras send; unknown keys are skipped, wrong types are refused."""

    image_data: str
    device_id: str | None = None
    camera_id: str | None = None
    timestamp: int | float | str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    message_type: str | None = None
    model_name: str | None = None
    backend_preference: str | None = None
    priority: int | None = None
    deadline_ms: float | None = None


_decoder = msgspec.json.Decoder(SnapshotMessage)


@dataclass(frozen=True, slots=True)
class Envelope:
    """An opened message: who sent it and what it asks for, the picture not yet taken out."""

    origin: Origin
    image: bytes | str
    fields: SnapshotMessage | None


def identify(message: Message, patterns: tuple[TopicPattern, ...], place: dict[str, str]) -> Origin:
    """Say which message this is; never fails.

    `result_id` is made from the topic, the payload and, where present, correlation data and CloudEvents id, so a
    message that is delivered again gets the same id.
    """
    digest = message.oversize.sha256 if message.oversize else hashlib.sha256(message.payload).hexdigest()
    size = message.oversize.size if message.oversize else len(message.payload)
    named, device = _from_topic(message.topic, patterns, place)
    user = dict(message.properties.user_properties)
    identity = hashlib.sha256()
    for part in (message.topic, digest, message.properties.correlation_data or b"", user.get("id", "")):
        data = part if isinstance(part, bytes) else part.encode()
        identity.update(len(data).to_bytes(4, "big") + data)
    return Origin(
        result_id=identity.hexdigest()[:32],
        device_id=user.get("device_id", device)[:_MAX_NAME] or "unknown",
        timestamp=user["time"] if _is_time(user.get("time")) else round(time.time(), 3),
        topic=message.topic,
        payload_bytes=size,
        payload_sha256=digest,
        received_at=message.received_at,
        place=Place(**{name: named.get(name) or default for name, default in place.items()}),
        correlation_data=message.properties.correlation_data,
        trace=tuple((name, user[name][:_MAX_NAME]) for name in _TRACE_CONTEXT if name in user),
    )


def _from_topic(topic: str, patterns: tuple[TopicPattern, ...], place: dict[str, str]) -> tuple[dict[str, str], str]:
    """The named parts of a topic, and the device that it names as well as one can tell."""
    for pattern in patterns:
        parsed = pattern.parse(topic)
        if parsed is not None:
            named, unnamed = parsed
            if any(name in named for name in DEVICE_PARTS):
                return named, next((named[name] for name in DEVICE_PARTS if named.get(name)), "")
            return named, "/".join(unnamed) or named.get("gateway_id", "") or place["gateway_id"]
    return {}, topic


def open_message(message: Message, origin: Origin, max_payload_bytes: int) -> Envelope:
    """Tell JSON from a picture and read the JSON; raises PayloadTooLarge, PayloadInvalid, ImageUndecodable."""
    payload = message.payload
    if message.oversize or len(payload) > max_payload_bytes:
        raise PayloadTooLarge(f"the message has {origin.payload_bytes} bytes, the limit is {max_payload_bytes}")
    if not payload:
        raise PayloadInvalid("the message is empty (0 bytes)")
    if payload.startswith((JPEG_MAGIC, PNG_MAGIC)):
        return Envelope(origin, payload, None)
    if payload.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return _open_json(payload.removeprefix(b"\xef\xbb\xbf"), origin)
    _refuse_other_pictures(payload)
    if payload.lstrip()[:1] in (b"[", b'"'):
        raise PayloadInvalid("the JSON is not an object")
    raise PayloadInvalid(f"the message is neither JSON nor a JPEG or PNG; it begins with {payload[:8].hex(' ')}")


def _open_json(payload: bytes, origin: Origin) -> Envelope:
    try:
        fields = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PayloadInvalid(f"the JSON is not a snapshot: {str(error)[:300]}") from error
    except RecursionError as error:
        raise PayloadInvalid("the JSON is nested too deeply") from error
    device = fields.device_id or fields.camera_id or origin.device_id
    # Cut to size here, since error messages repeat them: the payload must not come back through the error topic.
    evolved = replace(
        origin,
        device_id=device[:_MAX_NAME],
        timestamp=fields.timestamp if _is_time(fields.timestamp) else origin.timestamp,
        model_name=fields.model_name and fields.model_name[:_MAX_NAME],
    )
    return Envelope(evolved, fields.image_data, fields)


def take_snapshot(envelope: Envelope) -> Snapshot:
    """Take the picture out of its envelope; raises PayloadInvalid, ImageUndecodable."""
    fields = envelope.fields
    if fields is None:
        assert isinstance(envelope.image, bytes)
        return Snapshot(origin=envelope.origin, image=envelope.image, metadata={})
    if fields.timestamp is not None and not _is_time(fields.timestamp):
        raise PayloadInvalid("timestamp is neither epoch seconds, nor epoch milliseconds, nor RFC 3339")
    if fields.deadline_ms is not None and not 0 < fields.deadline_ms <= 86_400_000:
        raise PayloadInvalid(f"deadline_ms must lie above 0 and within a day, not {fields.deadline_ms}")
    priority = fields.priority or 0
    if not -1000 <= priority <= 1000:
        raise PayloadInvalid(f"priority must lie between -1000 and 1000, not {priority}")
    image = _from_base64(fields.image_data)
    if not image.startswith((JPEG_MAGIC, PNG_MAGIC)):
        _refuse_other_pictures(image)
        raise ImageUndecodable(f"image_data is no JPEG or PNG; it begins with {image[:8].hex(' ') or 'nothing'}")
    return Snapshot(
        origin=envelope.origin,
        image=image,
        metadata=_metadata(fields.metadata),
        backend_preference=fields.backend_preference or None,
        priority=priority,
        deadline_ms=fields.deadline_ms,
    )


def _is_time(value: float | str | None) -> TypeGuard[Timestamp]:
    """Whether a camera's timestamp is one: a number, or a text of RFC 3339."""
    if not isinstance(value, str):
        return value is not None
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return len(value) <= _MAX_TIME


def _metadata(raw: msgspec.Raw) -> dict[str, Any]:
    """The metadata, which the result repeats; measured before it is built."""
    if len(raw) > MAX_METADATA_BYTES:
        raise PayloadInvalid(
            f"metadata has {len(raw)} bytes, the limit is {MAX_METADATA_BYTES}",
            fix="Keep metadata small: the result repeats it",
        )
    try:
        return msgspec.json.decode(raw, type=dict[str, Any] | None) or {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise PayloadInvalid(f"metadata is not a JSON object: {str(error)[:200]}") from error


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):  # a data URL, as browsers and some cameras write it
        text = text.partition(",")[2]
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        compact = _WHITESPACE.sub("", text)  # base64(1) and MIME break lines
        if len(compact) == len(text):
            raise PayloadInvalid(f"image_data is not base64: {error}") from error
        return _from_base64(compact)


def _refuse_other_pictures(data: bytes) -> None:
    for magic, name in _OTHER_PICTURES.items():
        if data.startswith(magic):
            raise ImageUndecodable(f"the picture looks like {name}; JPEG and PNG are read")
