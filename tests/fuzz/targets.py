"""What is fuzzed: each target takes any bytes, and may raise nothing but what its parser documents.

A target returns for what is read and for what is refused with one of our errors. Everything else is a finding: another
exception, a text that no message could carry, or a broken promise of the parser.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from PIL import Image

from gateway.adapters.mqtt_framing import Framing
from gateway.adapters.triton_config import read_config
from gateway.errors import ConfigError, GatewayError, SnapshotError
from gateway.flow.identify import identify
from gateway.flow.ingest import open_message, sender_of, take_contents
from gateway.flow.preprocess import prepare_picture
from gateway.messages import Message, MessageProperties, Snapshot
from gateway.models.input_plan import InputPlan
from gateway.models.manifest import read_manifest
from gateway.models.onnx_file import labels_of, read_onnx
from gateway.models.preprocessing_spec import PreprocessingSpec
from gateway.models.repository import read_model
from gateway.models.torchscript_file import read_torchscript_metadata
from gateway.topics import TopicPattern, fill, is_publishable, names_in, overlap, problem, safe_text, topic_matches

PLACE = {"business_unit": "b", "facility": "f", "gateway_id": "g"}
MAX_PAYLOAD = 1 << 20
MAX_PIXELS = 1_000_000
PATTERNS = (TopicPattern("edge-ai/{business_unit}/{facility}/{gateway_id}/camera/snapshots"), TopicPattern("+/raw/#"))
PLAN = InputPlan("images", 16, 16)
SPEC = PreprocessingSpec()
MAX_ERROR = 4000
"""Characters of an error: nobody's file comes back in one."""


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edge-gateway-fuzz-")) / "model"
    (folder / "1").mkdir(parents=True)
    return folder


def _written(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.unlink(missing_ok=True)  # some file systems flush a file that is cut to nothing and written again
    path.write_bytes(data)
    return path


def _judge(error: GatewayError) -> None:
    """One of our errors is short, can be sent, and says how to mend what is wrong."""
    assert error.fix, error
    assert len(str(error)) < MAX_ERROR, str(error)[:200]
    msgspec.json.encode([error.message, error.fix, error.where])


def ingest(data: bytes) -> None:
    """A whole message: topic, properties and payload, up to the tensor."""
    name, _, payload = data.partition(b"\n")
    text = name.decode("utf-8", "replace")
    properties = MessageProperties(content_type=text, user_properties=(("model_name", text), ("time", text)))
    topic = f"edge-ai/bu/plant/{text[:20]}/camera/snapshots"
    message = Message(topic=topic, payload=payload, received_at=0.0, qos=1, properties=properties)
    origin = identify(message, PATTERNS, PLACE)
    assert len(origin.result_id) == 32
    assert len(origin.device_id) <= 256
    try:
        contents = take_contents(open_message(message, origin, MAX_PAYLOAD))
    except SnapshotError as error:
        _judge(error)
        sender_of(message, origin)
        return
    msgspec.json.encode([contents.metadata, contents.origin.timestamp])
    if isinstance(contents, Snapshot):
        pictures(contents.image)


def pictures(data: bytes) -> None:
    """The bytes of a picture, to the tensor."""
    try:
        prepared = prepare_picture(data, SPEC, [PLAN], MAX_PIXELS)[PLAN]
    except SnapshotError as error:
        _judge(error)
        return
    except Image.DecompressionBombError as error:  # pragma: no cover - would be a finding
        raise AssertionError("a bomb reached Pillow") from error
    assert prepared.tensors["images"].shape == (1, 3, 16, 16)


def model_yaml(data: bytes) -> None:
    """A model.yaml, with a labels.txt that holds the same bytes."""
    _written("labels.txt", data)
    try:
        model = read_model(_written("model.yaml", data))
    except ConfigError as error:
        _judge(error)
        return
    json.dumps(model.spec.model_dump(mode="json")).encode()
    msgspec.json.encode(model.labels)


def labels(data: bytes) -> None:
    """A labels.txt beside a good model.yaml."""
    _written("labels.txt", data)
    try:
        model = read_model(_written("model.yaml", b"name: m\nmodel_type: image-classification\n"))
    except ConfigError as error:
        _judge(error)
        return
    assert all(label.strip() for label in model.labels)
    msgspec.json.encode(model.labels)


def pbtxt(data: bytes) -> None:
    """A config.pbtxt."""
    try:
        config = read_config(_written("config.pbtxt", data))
    except ConfigError as error:
        _judge(error)
        return
    msgspec.json.encode(config.signature)


def manifest(data: bytes) -> None:
    """A SHA256SUMS."""
    try:
        found = read_manifest(_written("SHA256SUMS", data).parent)
    except ConfigError as error:
        _judge(error)
        return
    assert found is not None
    assert not any(path.startswith(("/", "../")) or path == ".." for path in found.digests)


def topics(data: bytes) -> None:
    """Two filters or templates, and a topic."""
    first, second, topic = ([*data.decode("utf-8", "replace").split("\n", 2), "", ""])[:3]
    assert overlap(first, second) == overlap(second, first)
    both = not problem(first) and not problem(second) and bool(topic) and not set(topic) & set("+#")
    if both and topic_matches(first, topic) and topic_matches(second, topic):
        assert overlap(first, second), "a topic matches both"
    levels = first.count("/")
    filled = fill(first, dict.fromkeys(names_in(first), topic[:256]))
    assert filled.count("/") == levels
    assert set(filled) & set("+#") <= set(first) & set("+#")
    if is_publishable(topic):
        assert safe_text(topic) == topic
        topic.encode()


def onnx(data: bytes) -> None:
    """A model.onnx."""
    try:
        facts = read_onnx(_written("model.onnx", data))
    except ConfigError as error:
        _judge(error)
        return
    msgspec.json.encode([facts, labels_of(facts.metadata)])


def names(data: bytes) -> None:
    """The class names in a file's metadata, a Python literal."""
    msgspec.json.encode(labels_of({"names": data.decode("utf-8", "replace")}))


def torchscript(data: bytes) -> None:
    """A model.pt."""
    try:
        found = read_torchscript_metadata(_written("model.pt", data))
    except ConfigError as error:
        _judge(error)
        return
    msgspec.json.encode([found, labels_of(found)])


def framing(data: bytes) -> None:
    """What a broker sends: the first byte says how it is cut; paho gets the same however that is."""
    whole, cut = (Framing(2000, properties=True) for _ in range(2))
    step = (data[0] if data else 0) + 1
    together = whole.feed(data[1:])
    apart = [piece for at in range(1, len(data), step) for piece in cut.feed(data[at : at + step])]
    for pieces in (together, apart):
        assert sum(len(piece.data) for piece in pieces) <= len(data) + 8
    assert b"".join(piece.data for piece in together) == b"".join(piece.data for piece in apart)
    assert [piece.oversize for piece in together if piece.oversize] == [
        piece.oversize for piece in apart if piece.oversize
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        ingest, pictures, model_yaml, labels, pbtxt, manifest, topics, onnx, names, torchscript, framing,
    )
}  # fmt: skip
