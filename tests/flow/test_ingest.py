"""Every payload becomes a snapshot or an error with its code and fix."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgspec
import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config_broker import DEFAULT_INPUT_TOPICS
from gateway.errors import ImageUndecodable, PayloadInvalid, SnapshotError
from gateway.flow.identify import identify
from gateway.flow.ingest import MAX_VALUES, open_message, take_contents
from gateway.messages import Message, MessageProperties, Origin, Oversize, Reading, Snapshot
from gateway.topics import TopicPattern
from tests.flow.builders import PLACE, SNAPSHOT_TOPIC, jpeg, message, png, snapshot_json, user_properties

PATTERNS = tuple(TopicPattern(text) for text in (*DEFAULT_INPUT_TOPICS, "factory/+/jpg"))
USUAL = tuple(TopicPattern(text) for text in DEFAULT_INPUT_TOPICS)
LIMIT = 1 << 20
IMAGE = jpeg()


def origin_of(item: Message) -> Origin:
    return identify(item, PATTERNS, PLACE, USUAL)


def contents(item: Message) -> Snapshot | Reading:
    return take_contents(open_message(item, origin_of(item), LIMIT))


def ingest(item: Message) -> Snapshot:
    found = contents(item)
    assert isinstance(found, Snapshot)
    return found


def reading(payload: bytes, **more: Any) -> Reading:
    found = contents(message(payload, topic="edge-ai/bu/plant/gw/sensors/t-1", **more))
    assert isinstance(found, Reading)
    return found


def test_json_snapshot() -> None:
    metadata = {"location": "line-3"}
    snapshot = ingest(message(snapshot_json(IMAGE, timestamp=1697385600, metadata=metadata, priority=3)))
    assert snapshot.image == IMAGE
    assert snapshot.origin.device_id == "camera-01"
    assert snapshot.origin.timestamp == 1697385600
    assert snapshot.metadata == metadata
    assert snapshot.priority == 3


TIMES = (
    0,
    1697385600,
    1697385600.25,
    1697385600123,
    253402300799999,
    "2025-10-15T12:00:00Z",
    "2025-10-15t12:00:00.123456789z",
    "2025-10-15 12:00:00+02:00",
    "2025-10-15T12:00:00",
)


@pytest.mark.parametrize("timestamp", TIMES)
def test_the_timestamp_stays_as_it_came(timestamp: Any) -> None:
    assert ingest(message(snapshot_json(IMAGE, timestamp=timestamp))).origin.timestamp == timestamp


NO_TIMES = (
    "20231015",
    "2023-W42-7",
    "2023-10-15",
    "2023-10-15T12:00Z",
    "2023-13-15T12:00:00Z",
    "2023-10-15T12:00:00+24:00",
    "2023-10-15T12:00:00Z\n",
    "",
    "1697385600",
    1e300,
    3e14,
    -1,
    10**30,
)


@pytest.mark.parametrize("timestamp", NO_TIMES)
def test_what_is_no_time_is_refused(timestamp: Any) -> None:
    with pytest.raises(SnapshotError, match="timestamp is neither epoch seconds, nor epoch milliseconds, nor RFC 3339"):
        ingest(message(snapshot_json(IMAGE, timestamp=timestamp)))


@pytest.mark.parametrize("text", ["20231015", "2023-W42-7", "2023-10-15"])
def test_a_user_property_that_is_no_time_gives_way_to_the_clock(text: str) -> None:
    assert origin_of(message(IMAGE, properties=user_properties(time=text))).timestamp != text


def test_null_counts_as_left_out() -> None:
    names = ("device_id", "timestamp", "metadata", "priority", "deadline_ms", "model_name", "backend_preference")
    snapshot = ingest(message(snapshot_json(IMAGE, **dict.fromkeys(names))))
    assert (snapshot.metadata, snapshot.priority, snapshot.backend_preference) == ({}, 0, None)
    assert snapshot.origin.device_id == "gw"


def test_camera_id_stands_for_device_id() -> None:
    body = {"camera_id": "cam-9", "image_data": pybase64.b64encode_as_string(IMAGE)}
    assert ingest(message(msgspec.json.encode(body))).origin.device_id == "cam-9"


@pytest.mark.parametrize("image", [IMAGE, png()], ids=["jpeg", "png"])
def test_raw_picture_takes_the_device_from_the_topic(image: bytes) -> None:
    snapshot = ingest(message(image, topic="azure-iot-operations/data/cam7/snapshot"))
    assert (snapshot.origin.device_id, snapshot.image) == ("cam7", image)


@pytest.mark.parametrize(
    ("topic", "device"),
    [
        ("factory/cam-3/jpg", "cam-3"),
        (SNAPSHOT_TOPIC, "gw"),
        ("edge-ai/bu/plant/camera/snapshots", "test"),
        ("azure-iot-operations/data//snapshot", "unknown"),
        ("somewhere/else", "somewhere/else"),
    ],
)
def test_the_device_of_other_topics(topic: str, device: str) -> None:
    assert origin_of(message(IMAGE, topic=topic)).device_id == device


def test_the_place_comes_from_the_topic_and_else_from_the_configuration() -> None:
    place = origin_of(message(IMAGE, topic="edge-ai/bu/plant/camera/snapshots")).place
    assert (place.business_unit, place.facility, place.gateway_id) == ("bu", "plant", "test")


def test_a_user_property_may_name_the_device() -> None:
    assert origin_of(message(IMAGE, properties=user_properties(device_id="cam-x"))).device_id == "cam-x"


def test_the_same_message_has_the_same_id_and_another_one_another() -> None:
    one, again, other = message(IMAGE), message(IMAGE, duplicate=True), message(jpeg(seed=1))
    correlated = message(IMAGE, properties=MessageProperties(correlation_data=b"1"))
    ids = [origin_of(item).result_id for item in (one, again, other, correlated)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("said", "one"),
    {
        '"timestamp": 1': True,
        '"timestamp": "2023-10-15T12:00:00Z"': True,
        '"timestamp": null': False,
        '"metadata": {"timestamp": "boot"}': False,
        '"device_id": "timestamp"': False,
        '"timestamp": [1]': True,  # refused, under the same id each time
        '"image_data": "AA", "metadata": {"value": 1}': True,
    }.items(),
)
def test_equal_readings_are_one_only_if_they_say_when_they_were_taken(said: str, one: bool) -> None:
    item = message(b'{"values": [1, 2], %s}' % said.encode())
    assert (origin_of(item).result_id == origin_of(item).result_id) == one


def test_base64_with_line_breaks_and_as_data_url() -> None:
    text = pybase64.b64encode_as_string(IMAGE)
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for data in (lines, f"data:image/jpeg;base64,{text}"):
        assert ingest(message(msgspec.json.encode({"image_data": data}))).image == IMAGE


BAD = {
    "empty": (b"", "PAYLOAD_INVALID"),
    "text": (b"hello", "PAYLOAD_INVALID"),
    "array": (b"[1, 2]", "PAYLOAD_INVALID"),
    "cut off": (b'{"image_data": "abc', "PAYLOAD_INVALID"),
    "no image": (b'{"device_id": "a"}', "PAYLOAD_INVALID"),
    "picture and numbers": (b'{"image_data": "", "values": [1]}', "PAYLOAD_INVALID"),
    "no numbers": (b'{"values": []}', "PAYLOAD_INVALID"),
    "too many numbers": (b'{"values": [' + b"1," * 70_000 + b"1]}", "PAYLOAD_INVALID"),
    "numbers that are none": (b'{"values": ["1"]}', "PAYLOAD_INVALID"),
    "infinite number": (b'{"value": 1e999}', "PAYLOAD_INVALID"),
    "an endless number": (b"1" * 65, "PAYLOAD_INVALID"),
    "a number beyond all": (b"1e999", "PAYLOAD_INVALID"),
    "a number in pieces": (b"1.2.3", "PAYLOAD_INVALID"),
    "bad base64": (b'{"image_data": "@@@@"}', "PAYLOAD_INVALID"),
    "half base64": (b'{"image_data": "/9j/4"}', "PAYLOAD_INVALID"),
    "empty image": (b'{"image_data": ""}', "IMAGE_UNDECODABLE"),
    "image is no picture": (b'{"image_data": "aGVsbG8="}', "IMAGE_UNDECODABLE"),
    "gif": (b"GIF89a....", "IMAGE_UNDECODABLE"),
    "wrong type": (snapshot_json(IMAGE, device_id=7), "PAYLOAD_INVALID"),
    "metadata of a wrong type": (snapshot_json(IMAGE, metadata=[1]), "PAYLOAD_INVALID"),
    "NaN": (b'{"timestamp": NaN, "image_data": ""}', "PAYLOAD_INVALID"),
    "infinite": (b'{"timestamp": 1e999, "image_data": ""}', "PAYLOAD_INVALID"),
    "nested": (b'{"metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b', "image_data": ""}', "PAYLOAD_INVALID"),
    "nested, unknown key": (b'{"x": ' + b"[" * 50_000 + b"]" * 50_000 + b', "image_data": ""}', "PAYLOAD_INVALID"),
    "invalid UTF-8": (b'{"device_id": "\xff\xfe", "image_data": ""}', "PAYLOAD_INVALID"),
    "deadline of the past": (snapshot_json(IMAGE, deadline_ms=-1), "PAYLOAD_INVALID"),
    "endless priority": (snapshot_json(IMAGE, priority=10**9), "PAYLOAD_INVALID"),
    "long timestamp": (snapshot_json(IMAGE, timestamp="9" * 300), "PAYLOAD_INVALID"),
    "timestamp in words": (snapshot_json(IMAGE, timestamp="yesterday"), "PAYLOAD_INVALID"),
    "metadata without end": (snapshot_json(IMAGE, metadata={"a": "x" * 70_000}), "PAYLOAD_INVALID"),
    "too large": (b"\xff\xd8\xff" + bytes(LIMIT), "PAYLOAD_TOO_LARGE"),
}


@pytest.mark.parametrize(("payload", "code"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_code_and_fix(payload: bytes, code: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        ingest(message(payload))
    assert caught.value.code == code
    assert caught.value.message
    assert caught.value.fix
    assert len(caught.value.message) < 500


def test_nothing_of_the_payload_comes_back_at_length() -> None:
    item = message(snapshot_json(IMAGE, device_id="d" * 10_000, model_name="m" * 10_000, timestamp="t" * 10_000))
    origin = open_message(item, origin_of(item), LIMIT).origin
    assert len(origin.device_id) <= 256
    assert len(origin.model_name or "") <= 256
    assert not isinstance(origin.timestamp, str)


def test_an_oversize_message_is_refused_though_its_payload_was_never_kept() -> None:
    item = message(b"", oversize=Oversize(size=50_000_000, sha256="ab" * 32))
    with pytest.raises(SnapshotError, match="50000000 bytes") as caught:
        ingest(item)
    assert caught.value.code == "PAYLOAD_TOO_LARGE"
    assert origin_of(item).payload_bytes == 50_000_000


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=400)
    | st.builds(
        lambda d: msgspec.json.encode(d),
        st.dictionaries(
            st.sampled_from(
                ["device_id", "timestamp", "image_data", "metadata", "priority", "deadline_ms", "values", "value", "x"]
            ),
            st.recursive(
                st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**53), 2**53) | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=5,
            ),
        ),
    )
)
def test_no_payload_does_anything_but_pass_or_be_refused(payload: bytes) -> None:
    with contextlib.suppress(SnapshotError):
        assert contents(message(payload)).origin


@pytest.mark.parametrize(
    ("payload", "values"),
    [
        (b'{"sensor_id": "s", "timestamp": 1, "values": [21.5, 3]}', (21.5, 3.0)),
        (b'{"device_id": "s", "values": 21}', (21.0,)),
        (b'{"sensor_id": "s", "value": 0}', (0.0,)),
        (b"21.5", (21.5,)),
        (b" -3e2\n", (-300.0,)),
    ],
)
def test_readings(payload: bytes, values: tuple[float, ...]) -> None:
    found = reading(payload)
    assert found.values == values
    assert found.origin.device_id == ("s" if b"{" in payload else "t-1")


def test_a_picture_says_in_user_properties_what_it_asks_for() -> None:
    properties = user_properties(model_name="gate", backend_preference="torch")
    snapshot = ingest(message(IMAGE, properties=properties))
    assert (snapshot.origin.model_name, snapshot.backend_preference) == ("gate", "torch")


def test_cloud_events_attributes_are_carried_on_but_never_the_schema() -> None:
    user = user_properties(
        specversion="1.0", id="1", type="t", source="s", dataschema="aio-sr://x", datacontenttype="image/jpeg",
        subject="cam", site="north", __ts="now", Upper="no", traceparent="00-1-2-03",
    )  # fmt: skip
    origin = origin_of(message(IMAGE, properties=user))
    assert origin.attributes == (("subject", "cam"), ("site", "north"))
    assert origin.trace == (("traceparent", "00-1-2-03"),)
    assert origin_of(message(IMAGE, properties=user_properties(site="north"))).attributes == ()


def test_wildcards_without_names_mean_what_the_usual_topics_name_there() -> None:
    patterns = (TopicPattern("edge-ai/+/+/camera/snapshots"), TopicPattern("edge-ai/#"))
    place = identify(message(IMAGE, topic="edge-ai/acme/plant-1/camera/snapshots"), patterns, PLACE, USUAL).place
    assert (place.business_unit, place.facility, place.gateway_id) == ("acme", "plant-1", "test")
    place = identify(message(b"1", topic="edge-ai/acme/plant-1/gw-7/sensors/t"), patterns, PLACE, USUAL).place
    assert (place.business_unit, place.facility, place.gateway_id) == ("acme", "plant-1", "gw-7")


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (b'{"values": [' + b"0," * 4_000_000 + b"0]}", "too many numbers, 1 to 65536 are read"),
        (b'{"values": [' + b"0," * MAX_VALUES + b"0]}", "too many numbers"),
        (b'{"image_data": "' + b"abc\\n" * 1_600_000 + b'"}', "image_data is not base64|no picture"),
        (b'{"values": []}', "0 numbers"),
        (b'{"value": 1, "metadata": {"\xed\xa0\x80": 1}}', "metadata is not a JSON object"),
        (b'{"values": [null]}', "no list of numbers"),
    ],
)
def test_small_parts_in_large_numbers_cost_no_more_memory_than_the_message(payload: bytes, match: str) -> None:
    asked = message(payload)
    tracemalloc.start()
    try:
        with pytest.raises((PayloadInvalid, ImageUndecodable), match=match):
            take_contents(open_message(asked, origin_of(asked), 2**23))
        assert tracemalloc.get_traced_memory()[1] < 2.5 * len(payload) + 10_000
    finally:
        tracemalloc.stop()
