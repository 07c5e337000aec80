"""What is read from ONNX and TorchScript files: the same as the onnx package reads, within bounds, whatever comes."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gateway.errors import ConfigError
from gateway.messages import TensorSpec
from gateway.models import onnx_file, wire_format
from gateway.models.onnx_file import OnnxFacts, labels_of, read_onnx
from gateway.models.torchscript_file import read_torchscript_metadata
from gateway.models.wire_format import WireReader

Value = tuple[str, int, list[int | str | None] | None]
REPOSITORY = Path(__file__).parents[2] / "model_repository"
ULTRALYTICS = {"names": "{0: 'person', 1: \"driver's cab\"}", "task": "detect", "imgsz": "[640, 640]"}


def model(
    inputs: list[Value],
    outputs: list[Value],
    *,
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """A graph of one node that nothing checks: only its edges matter here."""
    graph = helper.make_graph(
        [helper.make_node("Concat", [name for name, _, _ in inputs], [name for name, _, _ in outputs], axis=0)],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        value_info=[helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [3])],
    )
    made = helper.make_model(graph, producer_name="test", doc_string="a text in front")
    helper.set_model_props(made, metadata or {})
    return made


DETECTOR = model(
    [("images", TensorProto.FLOAT, ["batch", 3, "h", None]), ("sizes", TensorProto.INT64, [-1, 2]),
     ("w", TensorProto.FLOAT, [4, 4])],
    [("scores", TensorProto.FLOAT16, ["batch", 300]), ("count", TensorProto.UINT8, [])],
    weights={"w": np.ones((4, 4), np.float32)},
    metadata=ULTRALYTICS,
)  # fmt: skip
DETECTOR_BYTES = DETECTOR.SerializeToString()


def read_bytes(folder: Path, content: bytes) -> OnnxFacts:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return read_onnx(path)


def test_inputs_outputs_and_metadata_are_read(tmp_path: Path) -> None:
    facts = read_bytes(tmp_path, DETECTOR_BYTES)
    assert facts.inputs == (TensorSpec("images", "FP32", (-1, 3, -1, -1)), TensorSpec("sizes", "INT64", (-1, 2)))
    assert facts.outputs == (TensorSpec("scores", "FP16", (-1, 300)), TensorSpec("count", "UINT8", ()))
    assert facts.metadata == ULTRALYTICS
    assert labels_of(facts.metadata) == ("person", "driver's cab")


def test_a_sparse_weight_is_no_input_and_a_missing_shape_is_empty(tmp_path: Path) -> None:
    made = model([("x", TensorProto.FLOAT, None), ("w", TensorProto.FLOAT, [9])], [("y", TensorProto.BOOL, [0, 1])])
    made.graph.sparse_initializer.add().CopyFrom(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32), "w"),
            numpy_helper.from_array(np.zeros(1, np.int64), "at"),
            [9],
        )
    )
    facts = read_bytes(tmp_path, made.SerializeToString())
    assert facts.inputs == (TensorSpec("x", "FP32", ()),)
    assert facts.outputs == (TensorSpec("y", "BOOL", (0, 1)),)


@pytest.mark.parametrize("name", ["industrial-safety-onnx", "walkway-onnx"])
def test_the_sample_models_are_read_as_onnx_reads_them(name: str) -> None:
    path = REPOSITORY / name / "1" / "model.onnx"
    graph = onnx.load(str(path)).graph
    facts = read_onnx(path)
    assert [spec.name for spec in facts.inputs] == [value.name for value in graph.input]
    assert [spec.name for spec in facts.outputs] == [value.name for value in graph.output]
    for spec, value in zip(facts.inputs + facts.outputs, [*graph.input, *graph.output], strict=True):
        assert spec.shape == tuple(
            dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
        )


@given(
    values=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
            st.sampled_from(sorted(onnx_file.DATATYPES)),
            st.none() | st.lists(st.integers(0, 2**40) | st.just("n"), max_size=5),
        ),
        unique_by=lambda value: value[0],
        max_size=6,
    ),
    metadata=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=9), st.text(st.characters(codec="utf-8"), max_size=99)
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_onnx_writes_is_read_back(tmp_path: Path, values: list[Value], metadata: dict[str, str]) -> None:
    facts = read_bytes(tmp_path, model(values, values, metadata=metadata).SerializeToString())
    expected = tuple(
        TensorSpec(name, onnx_file.DATATYPES[kind], tuple(n if isinstance(n, int) else -1 for n in shape or []))
        for name, kind, shape in values
    )
    assert (facts.inputs, facts.outputs, facts.metadata) == (expected, expected, metadata)


def test_weights_cost_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weights = helper.make_tensor("w", TensorProto.FLOAT, [8 << 20], bytes(32 << 20), raw=True)
    heavy = onnx.ModelProto.FromString(DETECTOR_BYTES)
    heavy.graph.initializer.append(weights)
    path.write_bytes(heavy.SerializeToString())
    tracemalloc.start()
    try:
        read_onnx(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# --- what is no ONNX -----------------------------------------------------------------------------------


def sequence_output() -> bytes:
    made = model([("x", TensorProto.FLOAT, [1])], [])
    made.graph.output.append(helper.make_tensor_sequence_value_info("probabilities", TensorProto.FLOAT, [1]))
    return bytes(made.SerializeToString())


REFUSED = {
    "empty": (b"", "empty (0 bytes)"),
    "text": (b"404: Not Found\n", "no complete ONNX model"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "no complete ONNX model"),
    "zip": (b"PK\x03\x04" + bytes(50), "zip archive"),
    "zeros": (bytes(100), "number 0"),
    "truncated": (DETECTOR_BYTES[:-40], "ends in the middle"),
    "no-graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "no graph"),
    "sequence": (sequence_output(), "output 'probabilities' is a sequence"),
    "complex": (
        model([("x", TensorProto.COMPLEX64, [1])], []).SerializeToString(),
        "input 'x' has the ONNX type 14",
    ),
    "long-name": (model([("x" * 5000, TensorProto.FLOAT, [1])], []).SerializeToString(), "a text of 5000 bytes"),
    "many": (model([(f"x{n}", TensorProto.FLOAT, [1]) for n in range(1001)], []).SerializeToString(), "1000 inputs"),
    "many-axes": (model([("x", TensorProto.FLOAT, [1] * 65)], []).SerializeToString(), "65 dimensions"),
    "endless-number": (b"\x08" + b"\xff" * 30, "endless number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    with pytest.raises(ConfigError) as refusal:
        read_bytes(tmp_path, content)
    assert said in str(refusal.value)
    assert str(tmp_path / "model.onnx") in refusal.value.where
    assert refusal.value.fix


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_onnx(path)
        with pytest.raises(ConfigError, match="cannot be read"):
            read_torchscript_metadata(path)


@pytest.mark.parametrize(("bound", "said"), [("MAX_FIELDS", "fields"), ("MAX_READ_BYTES", "look through")])
def test_the_reader_stops_at_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, said: str) -> None:
    monkeypatch.setattr(wire_format, bound, 30)
    with pytest.raises(ConfigError, match=said):
        read_bytes(tmp_path, DETECTOR_BYTES)


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.total += len(content)
        return content


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with a few bytes changed, cut out or put in."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["change", "cut", "insert"])):
            case "change":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[at : at + draw(st.integers(1, 30))]
            case _:
                content[at:at] = draw(st.binary(max_size=12))
    return bytes(content)


@given(content=st.binary(max_size=300) | damaged(DETECTOR_BYTES))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_raises_anything_but_config_error(tmp_path: Path, content: bytes) -> None:
    said = ""
    try:
        labels_of(read_bytes(tmp_path, content).metadata)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said


@given(content=st.binary(max_size=300) | damaged(DETECTOR_BYTES), limit=st.integers(0, 2000))
@settings(max_examples=300)
def test_never_more_is_read_than_the_limit(content: bytes, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire_format, "MAX_READ_BYTES", limit)
        file = Counting(content)
        reader = WireReader(file, len(content))
        with contextlib.suppress(wire_format.WireError):
            for field in reader.whole():
                for inner in reader.inside(field):
                    reader.content(inner, 100)
        assert file.total <= limit


# --- class names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ("{0: 'person', 1: 'bicycle'}", ("person", "bicycle")),
        ("{1: 'b', 0: 'a'}", ("a", "b")),
        ("['a', \"b's\", 'c\\'s']", ("a", "b's", "c's")),
        ("{'0': 'a', '1': 'Fußgänger'}", ("a", "Fußgänger")),
        (" { 0 : 'a' } ", ("a",)),
        ("{0: 'a', 2: 'c'}", ()),
        ("{0: 'a', 0: 'b'}", ("b",)),
        ("{1: 'a'}", ()),
        ("{0: 'a', '0': 'b'}", ()),
        ("{}", ()),
        ("[]", ()),
        ("{0: 1}", ()),
        ("{0: ['a']}", ()),
        ("('a', 'b')", ()),
        ("person", ()),
        ("{0: 'a\\xz'}", ()),
        ("__import__('os').getcwd()", ()),
        ("{0: 'a' + 'b'}", ()),
        ("{" * 100_000, ()),
        ("[" + "-" * 100_000 + "1]", ()),
        ("['" + "a" * (1 << 20) + "']", ()),
    ],
)
def test_labels_come_from_a_flat_literal_with_all_ids(names: str, labels: tuple[str, ...]) -> None:
    assert labels_of({"names": names}) == labels


def test_no_names_no_labels() -> None:
    assert labels_of({}) == ()


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=30))
def test_labels_are_what_ultralytics_wrote(names: list[str]) -> None:
    assert labels_of({"names": str(dict(enumerate(names)))}) == tuple(names)
    assert labels_of({"names": str(names)}) == tuple(names)


@given(st.text(max_size=60) | st.text("{}[]():,'\"\\0 1ab-", max_size=60))
def test_any_text_gives_labels_or_none(text: str) -> None:
    assert all(isinstance(label, str) for label in labels_of({"names": text}))


# --- TorchScript ---------------------------------------------------------------------------------------


CODE = "m/constants.pkl"


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as writer:
        for name, content in {CODE: b"x", **files}.items():
            writer.writestr(name, content)
    return made.getvalue()


def read_archive(folder: Path, content: bytes) -> dict[str, str]:
    path = folder / "model.pt"
    path.write_bytes(content)
    return dict(read_torchscript_metadata(path))


def test_metadata_of_torchscript_reads_like_that_of_onnx(tmp_path: Path) -> None:
    config = {"names": {0: "person", 1: "driver's cab"}, "task": "detect", "imgsz": [640, 640]}
    files = {"m/data.pkl": b"x", "m/extra/config.txt": json.dumps(config).encode()}
    metadata = read_archive(tmp_path, archive(files))
    assert metadata["imgsz"] == ULTRALYTICS["imgsz"]
    assert labels_of(metadata) == labels_of(ULTRALYTICS)


def test_what_torch_itself_writes_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.trace(torch.nn.ReLU(), torch.ones(1))
        torch.jit.save(scripted, str(path), _extra_files={"config.txt": json.dumps({"task": "segment"})})
    assert read_torchscript_metadata(path) == {"task": "segment"}


@pytest.mark.parametrize("text", [b"", b"[1]", b"no json", b"[" * 100_000, b"\xff\xfe", bytes(2 << 20)])
def test_no_readable_metadata_is_none(tmp_path: Path, text: bytes) -> None:
    assert read_archive(tmp_path, archive({"m/extra/config.txt": text}, zipfile.ZIP_DEFLATED)) == {}


def test_no_metadata_file_is_none(tmp_path: Path) -> None:
    assert read_archive(tmp_path, archive({"m/data.pkl": b"x", "m/extra/other": b"{}"})) == {}


def test_weights_are_no_torchscript(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(1)}, tmp_path / "best.pt")
    with pytest.raises(ConfigError, match="holds weights"):
        read_torchscript_metadata(tmp_path / "best.pt")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = archive({"m/extra/config.txt": b'{"a": "' + b"0" * (64 << 20) + b'"}'}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        assert read_archive(tmp_path, bomb) == {}
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_huge_directory_is_refused(tmp_path: Path) -> None:
    names = {f"m/{'x' * 60_000}{n}": b"" for n in range(60)}
    with pytest.raises(ConfigError, match="MiB to find a file"):
        read_archive(tmp_path, archive(names))


@given(content=st.binary(max_size=100) | damaged(archive({"m/extra/config.txt": b'{"a": 1}' * 9, "m/x": b"y"}, 8)))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_archive_raises_anything_but_config_error(tmp_path: Path, content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        read_archive(tmp_path, content)
