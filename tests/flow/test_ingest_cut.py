"""A long picture goes past the JSON parser; what is read must be the same as if it had not."""

from typing import Any

import msgspec
import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import PayloadInvalid, SnapshotError
from gateway.flow import ingest
from gateway.flow.identify import identify
from gateway.flow.ingest import open_message, take_contents
from gateway.messages import Origin, Snapshot
from gateway.topics import TopicPattern
from tests.flow.builders import PLACE, SNAPSHOT_TOPIC, jpeg, message

PICTURE = jpeg(96, 72)
LONG = pybase64.b64encode_as_string(PICTURE)
assert len(LONG) > ingest._CUT_BYTES
PATTERNS = (TopicPattern(SNAPSHOT_TOPIC),)
OTHER = pybase64.b64encode_as_string(jpeg(96, 72, seed=1))


def read(payload: bytes, origin: Origin | None = None) -> Any:
    """The snapshot that a payload is, or its error."""
    given = message(payload)
    try:
        snapshot = take_contents(open_message(given, origin or identify(given, PATTERNS, PLACE), 1 << 24))
    except SnapshotError as error:
        return type(error)
    assert isinstance(snapshot, Snapshot)
    return snapshot.image, snapshot.metadata, snapshot.origin.device_id, snapshot.origin.timestamp, snapshot.priority


def read_whole(payload: bytes, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same with a parser that sees all of it."""
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_CUT_BYTES", 1 << 30)
        return read(payload, origin)


_keys = st.sampled_from(["image_data", "metadata", "device_id", "timestamp", "x", 'a"image_data', "image\\u005fdata"])
_texts = st.sampled_from(
    [LONG, LONG[:-1], OTHER, "", "AAAA", LONG + "\\n", LONG + '\\"', "data:image/jpeg;base64," + LONG]
)
_texts |= st.sampled_from(
    [LONG + "é", LONG + "\x01", f'\\"image_data\\":\\"{LONG}\\"', LONG + "\\u0041\\u0041\\u0041\\u0041"]
)
_raw = _texts.map(lambda text: f'"{text}"') | st.sampled_from(["null", "1697385600", "{}", "[1]", "nonsense"])
_values = _raw | st.lists(st.tuples(_keys, _raw), max_size=2).map(lambda pairs: _object(pairs))
_gaps = st.sampled_from(["", " ", "\n\t", "\v"])


def _object(pairs: list[tuple[str, str]], gap: str = "") -> str:
    written = (f'{gap}"{_escaped(key)}"{gap}:{gap}{value}{gap}' for key, value in pairs)
    return "{" + ",".join(written) + "}"


def _escaped(key: str) -> str:
    return key.replace('"', '\\"')


@given(st.lists(st.tuples(_keys, _values), max_size=4), _gaps, st.sampled_from(["", "}", "garbage"]))
def test_reads_what_a_parser_of_the_whole_reads(pairs: list[tuple[str, str]], gap: str, rest: str) -> None:
    payload = (_object(pairs, gap) + rest).encode()
    # One for both: what comes without a time gets that of its arrival, in milliseconds.
    origin = identify(message(payload), PATTERNS, PLACE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert read(payload, origin) == read_whole(payload, origin, monkeypatch)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"image_data": "{LONG}", "device_id": "cam", "timestamp": 5, "priority": 3, "metadata": {{"a": 1}}}}',
        f'{{"device_id":"cam","timestamp":5,"priority":3,"metadata":{{"a":1}},"image_data":"{LONG}"}}',
        f'{{"image_data":"{OTHER}","image_data":"{LONG}","device_id":"cam","timestamp":5,"priority":3,"metadata":{{"a":1}}}}',
    ],
)
def test_reads_a_long_picture_wherever_it_stands(text: str) -> None:
    assert read(text.encode()) == (PICTURE, {"a": 1}, "cam", 5, 3)


def test_a_picture_in_the_metadata_is_not_the_picture() -> None:
    text = f'{{"metadata":{{"image_data":"{OTHER}"}},"image_data":"{LONG}"}}'
    image, metadata, *_ = read(text.encode())
    assert (image, metadata) == (PICTURE, {"image_data": OTHER})


def test_the_picture_is_not_copied_out_of_the_payload() -> None:
    given = message(msgspec.json.encode({"image_data": LONG}))
    envelope = open_message(given, identify(given, PATTERNS, PLACE), 1 << 24)
    assert isinstance(envelope.content, memoryview)
    assert envelope.content.obj is given.payload


@pytest.mark.parametrize(("text", "said"), [(LONG + "!", "not base64"), (LONG + "\x01", "not a snapshot")])
def test_says_what_is_wrong_with_a_long_picture(text: str, said: str) -> None:
    given = message(f'{{"image_data":"{text}"}}'.encode())
    envelope = open_message(given, identify(given, PATTERNS, PLACE), 1 << 24)
    with pytest.raises(PayloadInvalid, match=said):
        take_contents(envelope)
