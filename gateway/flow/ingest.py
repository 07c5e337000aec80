"""1: a payload becomes a snapshot or a reading. JSON, the raw bytes of a picture, or one number."""

from __future__ import annotations

import binascii
import math
import re
import secrets
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pybase64

from gateway.errors import ImageUndecodable, PayloadInvalid, PayloadTooLarge
from gateway.flow.identify import MAX_NAME, NUMBER, is_time
from gateway.flow.picture_headers import READ_FORMATS, READABLE, looks_like
from gateway.messages import Message, Origin, Reading, Snapshot
from gateway.ports import MAX_PROPERTIES, MAX_PROPERTIES_BYTES

MAX_METADATA_BYTES = 64 * 1024
MAX_VALUES = 65_536
MAX_VALUES_BYTES = 32 * MAX_VALUES
"""No number needs more than 25 characters, a comma and a blank."""
_WHITESPACE = b" \t\r\n\v\f"
_PICTURE = re.compile(rb'"image_data"\s{0,8}:\s{0,8}"')
"""What stands before a picture in JSON."""
_CUT_BYTES = 4096
"""A picture in base64 that is longer is cut out of the JSON before that is read."""
_STAND_IN = secrets.token_hex(16)
"""Read in place of a picture that was cut out; no sender knows it."""


class InputMessage(msgspec.Struct):
    """The JSON that cameras and sensors send; unknown keys are skipped, wrong types are refused."""

    image_data: str | None = None
    values: msgspec.Raw = msgspec.Raw(b"null")
    value: float | None = None
    device_id: str | None = None
    camera_id: str | None = None
    sensor_id: str | None = None
    timestamp: int | float | str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    message_type: str | None = None
    model_name: str | None = None
    backend_preference: str | None = None
    priority: int | None = None
    deadline_ms: float | None = None


class _Whoever(msgspec.Struct):
    """What of a message tells its sender, of whatever types the rest is."""

    device_id: object = None
    camera_id: object = None
    sensor_id: object = None
    timestamp: object = None


_decoder = msgspec.json.Decoder(InputMessage)
_numbers = msgspec.json.Decoder(list[float] | float | None)
_whoever = msgspec.json.Decoder(_Whoever)


@dataclass(frozen=True, slots=True)
class Envelope:
    """An opened message: who sent it and what it asks for, its contents not yet taken out.

    `content` is a picture, a picture in base64, as text or as it stands in the JSON, or numbers.
    """

    origin: Origin
    content: bytes | str | memoryview | tuple[float, ...]
    fields: InputMessage = field(default_factory=InputMessage)


def open_message(message: Message, origin: Origin, max_payload_bytes: int) -> Envelope:
    """Tell JSON, a picture and a number apart and read the JSON.

    Raises PayloadTooLarge, PayloadInvalid, ImageUndecodable.
    """
    payload = message.payload
    if message.oversize and message.oversize.properties:
        raise PayloadTooLarge(
            "the message has too many MQTT properties, or too long ones",
            fix=f"Send at most {MAX_PROPERTIES}, user properties included, of {MAX_PROPERTIES_BYTES} bytes in all",
        )
    if message.oversize or len(payload) > max_payload_bytes:
        raise PayloadTooLarge(f"the message has {origin.payload_bytes} bytes, the limit is {max_payload_bytes}")
    if not payload:
        raise PayloadInvalid("the message is empty (0 bytes)")
    if payload.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return _with_user_properties(_open_json(payload.removeprefix(b"\xef\xbb\xbf"), origin), message)
    if looks_like(payload) in READABLE:
        return _with_user_properties(Envelope(origin, payload), message)
    if NUMBER.fullmatch(payload):
        return _with_user_properties(Envelope(origin, (_number(payload),)), message)
    _refuse_other_pictures(payload)
    if payload.lstrip()[:1] in (b"[", b'"'):
        raise PayloadInvalid("the JSON is not an object")
    said = message.properties.content_type
    raise PayloadInvalid(
        f"the message is neither JSON nor a picture nor a number; it begins with {payload[:8].hex(' ')}"
        + (f", and its content type is {said[:60]!r}" if said else "")
    )


def sender_of(message: Message, origin: Origin) -> Origin:
    """As much as a JSON object of the wrong form still says of who sent it, for the answer to that."""
    try:
        given = _whoever.decode(message.payload.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return origin
    names = [name for name in (given.device_id, given.camera_id, given.sensor_id) if isinstance(name, str) and name]
    timestamp = given.timestamp if isinstance(given.timestamp, int | float | str) else None
    return replace(
        origin,
        device_id=(*names, origin.device_id)[0][:MAX_NAME],
        timestamp=timestamp if is_time(timestamp) else origin.timestamp,
    )


def _with_user_properties(envelope: Envelope, message: Message) -> Envelope:
    """What the fields leave open, MQTT 5 user properties of the same names may say; a picture has no fields."""
    user = dict(message.properties.user_properties)
    model, backend = user.get("model_name"), user.get("backend_preference")
    if model and not envelope.origin.model_name:
        envelope = replace(envelope, origin=replace(envelope.origin, model_name=model[:MAX_NAME]))
    if backend and not envelope.fields.backend_preference:
        fields = msgspec.structs.replace(envelope.fields, backend_preference=backend)
        envelope = replace(envelope, fields=fields)
    return envelope


def _open_json(payload: bytes, origin: Origin) -> Envelope:
    cut = _cut(payload)
    try:
        fields, picture = cut or (_decoder.decode(payload), None)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_snapshot(error) from error
    except RecursionError as error:
        raise PayloadInvalid("the JSON is nested too deeply") from error
    device = fields.device_id or fields.camera_id or fields.sensor_id or origin.device_id
    # Cut to size here, since error messages repeat them: the payload must not come back through the error topic.
    evolved = replace(
        origin,
        device_id=device[:MAX_NAME],
        timestamp=fields.timestamp if is_time(fields.timestamp) else origin.timestamp,
        model_name=fields.model_name and fields.model_name[:MAX_NAME],
    )
    values = _values(fields.values)
    if values is None and fields.value is not None:
        values = [fields.value]
    if (fields.image_data is None) == (values is None):
        given = "neither image_data nor values" if values is None else "both image_data and values"
        raise PayloadInvalid(f"the JSON has {given}; a snapshot has the one, a reading the other")
    if fields.image_data is not None:
        return Envelope(evolved, fields.image_data if picture is None else picture, fields)
    return Envelope(evolved, tuple(values or ()), fields)


def _cut(payload: bytes) -> tuple[InputMessage, memoryview] | None:
    """The fields without a long picture, and its base64 where it stands; None where that cannot be told apart.

    A JSON parser looks at every byte of a string, which takes five times as long as to decode that from base64. So the
    string goes past it. That it was the value of `image_data`, the last one, is sure when its stand-in is read there;
    and what has no backslash ends at the next quotation mark.
    """
    key = _PICTURE.search(payload)
    if key is None:
        return None
    start, end = key.end(), payload.find(b'"', key.end())
    if end - start < _CUT_BYTES or payload.find(b"\\", start, end) >= 0:
        return None
    try:
        fields = _decoder.decode(b"".join((payload[:start], _STAND_IN.encode(), payload[end:])))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the error is that of the whole
    return (fields, memoryview(payload)[start:end]) if fields.image_data == _STAND_IN else None


def _no_snapshot(error: Exception) -> PayloadInvalid:
    return PayloadInvalid(f"the JSON is not a snapshot: {str(error)[:300]}")


def take_contents(envelope: Envelope) -> Snapshot | Reading:
    """Take the picture or the numbers out of the envelope; raises PayloadInvalid, ImageUndecodable."""
    fields = envelope.fields
    if fields.timestamp is not None and not is_time(fields.timestamp):
        raise PayloadInvalid("timestamp is neither epoch seconds, nor epoch milliseconds, nor RFC 3339")
    if fields.deadline_ms is not None and not 0 < fields.deadline_ms <= 86_400_000:
        raise PayloadInvalid(f"deadline_ms must lie above 0 and within a day, not {fields.deadline_ms}")
    priority = fields.priority or 0
    if not -1000 <= priority <= 1000:
        raise PayloadInvalid(f"priority must lie between -1000 and 1000, not {priority}")
    asked: dict[str, Any] = {
        "origin": envelope.origin,
        "backend_preference": fields.backend_preference or None,
        "priority": priority,
        "deadline_ms": fields.deadline_ms,
    }
    content = envelope.content
    if isinstance(content, tuple):
        return Reading(values=content, metadata=_metadata(fields.metadata), **asked)
    if isinstance(content, bytes):
        return Snapshot(image=content, **asked)
    image = _from_base64(content) if isinstance(content, str) else _from_json_string(content)
    if looks_like(image) not in READABLE:
        _refuse_other_pictures(image)
        raise ImageUndecodable(f"image_data is no picture; it begins with {image[:8].hex(' ') or 'nothing'}")
    return Snapshot(image=image, metadata=_metadata(fields.metadata), **asked)


def _number(payload: bytes) -> float:
    try:
        number = float(payload)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise PayloadInvalid("the message looks like a number and is none")
    return number


def _values(raw: msgspec.Raw) -> list[float] | None:
    """The numbers of a reading, counted before they are built: one takes 2 bytes in JSON, and 32 in memory."""
    text = bytes(memoryview(raw)[: MAX_VALUES_BYTES + 1])
    if len(text) > MAX_VALUES_BYTES or text.count(b",") >= MAX_VALUES:
        raise PayloadInvalid(f"values has {len(raw)} bytes or too many numbers, 1 to {MAX_VALUES} are read")
    try:
        values = _numbers.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadInvalid(f"values is no list of numbers: {str(error)[:200]}") from error
    if values == []:
        raise PayloadInvalid(f"values has 0 numbers, 1 to {MAX_VALUES} are read")
    return [values] if isinstance(values, float) else values


def _metadata(raw: msgspec.Raw) -> dict[str, Any]:
    """The metadata, which the result repeats; measured before it is built."""
    if len(raw) > MAX_METADATA_BYTES:
        raise PayloadInvalid(
            f"metadata has {len(raw)} bytes, the limit is {MAX_METADATA_BYTES}",
            fix="Keep metadata small: the result repeats it",
        )
    try:
        return msgspec.json.decode(raw, type=dict[str, Any] | None) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadInvalid(f"metadata is not a JSON object: {str(error)[:200]}") from error


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):  # a data URL, as browsers and some cameras write it
        text = text.partition(",")[2]
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        # base64(1) and MIME break lines. As bytes: a pattern would cut the text into as many pieces as it has lines.
        compact = text.encode("ascii", "replace").translate(None, _WHITESPACE)
        if len(compact) == len(text):
            raise PayloadInvalid(f"image_data is not base64: {error}") from error
        return _from_compact(compact)


def _from_json_string(text: memoryview) -> bytes:
    """The bytes of a string that was cut out of JSON; what is no base64 has not been looked at as text so far."""
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:
        return _from_base64(msgspec.json.decode(b"".join((b'"', text, b'"')), type=str))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_snapshot(error) from error


def _from_compact(text: bytes) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PayloadInvalid(f"image_data is not base64: {error}") from error


def _refuse_other_pictures(data: bytes) -> None:
    if name := looks_like(data):
        raise ImageUndecodable(f"the picture looks like {name}; {READ_FORMATS} are read")
