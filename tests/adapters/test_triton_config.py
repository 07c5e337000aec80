"""config.pbtxt and whole model folders, read without Triton: what it would serve, and what it would refuse."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from gateway.adapters.triton_config import TritonConfig, VersionPolicy, read_config
from gateway.adapters.triton_drop import DropFacts, read_drop
from gateway.doctor.drops import examine_drop
from gateway.errors import ConfigError
from gateway.messages import ModelSignature, TensorSpec

REPOSITORY = Path(__file__).parents[2] / "model_repository"
Value = tuple[str, int, list[int | str]]

FULL = """
name: "detector"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "images" data_type: TYPE_FP16 dims: [ 3, -1, -1 ] },
  { name: "sizes" data_type: TYPE_INT64 dims: [ 2 ] }
]
output { name: "scores" data_type: TYPE_FP32 dims: [ 300 ] label_filename: "labels.txt" }
version_policy { specific { versions: [ 3, 1 ] } }
dynamic_batching { }
"""


def config_of(folder: Path, text: str) -> TritonConfig:
    path = folder / "config.pbtxt"
    path.write_text(text)
    return read_config(path)


def test_a_configuration_becomes_a_signature_with_the_batch_in_front(tmp_path: Path) -> None:
    assert config_of(tmp_path, FULL) == TritonConfig(
        signature=ModelSignature(
            "detector",
            "",
            (TensorSpec("images", "FP16", (-1, 3, -1, -1)), TensorSpec("sizes", "INT64", (-1, 2))),
            (TensorSpec("scores", "FP32", (-1, 300)),),
            8,
        ),
        platform="onnxruntime_onnx",
        label_filename="labels.txt",
        version_policy=VersionPolicy(latest=None, specific=(3, 1)),
        dynamic_batching=True,
    )


def test_without_a_batch_axis_shapes_are_as_written(tmp_path: Path) -> None:
    config = config_of(tmp_path, 'input { name: "t" data_type: TYPE_STRING dims: 1 dims: 5 }')
    assert config.signature == ModelSignature(tmp_path.name, "", (TensorSpec("t", "BYTES", (1, 5)),), (), 0)


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("", (10,)),
        ("version_policy { latest { num_versions: 2 } }", (2, 10)),
        ("version_policy { all { } }", (1, 2, 10)),
        ("version_policy { specific { versions: [ 2, 7 ] } }", (2,)),
        ("version_policy { specific { versions: [ 7 ] } }", ()),
    ],
)
def test_the_version_policy_chooses(tmp_path: Path, text: str, served: tuple[int, ...]) -> None:
    assert config_of(tmp_path, text).version_policy.choose([10, 2, 1]) == served


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('\nplatfrom: "x"', "line 2: unknown field 'platfrom' (did you mean 'platform'?)"),
        ('input { name: "x"\n dtype: TYPE_FP32 }', "line 2: unknown field 'dtype'"),
        ('input { name: "x" data_type: FP32 }', "unknown value 'FP32' (did you mean 'TYPE_FP32'?)"),
        ("instance_group { kind: KIND_CUDA }", "unknown value 'KIND_CUDA'"),
        ("max_batch_size: many", "line 1"),
        ("max_batch_size: -1", "max_batch_size is -1"),
        ('input { name: "x"', 'Expected "}"'),
        ("input { data_type: TYPE_FP32 dims: 1 }", "an input has no name"),
        ('output { name: "x" dims: 1 }', "output 'x' has no data_type"),
        ('input { name: "x" data_type: TYPE_FP32 }', "input 'x' has dims []"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 0 }', "input 'x' has dims [0]"),
        ("#" * (1 << 20) + "\n", "larger than 1 MiB"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_nearest_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config_of(tmp_path, text)
    assert said in str(refusal.value)
    assert refusal.value.where == str(tmp_path / "config.pbtxt")
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_bytes(b'name: "x"\n# caf\xe9\n')
    with pytest.raises(ConfigError, match="UTF-8 in line 2"):
        read_config(tmp_path / "config.pbtxt")


@given(st.text(max_size=80) | st.text('{}[]:"\n#-1 namedims', max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_raises_anything_but_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes(text.encode(errors="surrogatepass"))
    said = ""
    try:
        read_config(path)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said


# --- whole folders -------------------------------------------------------------------------------------


def onnx_bytes(inputs: list[Value], outputs: list[Value]) -> bytes:
    graph = helper.make_graph(
        [],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
    made = helper.make_model(graph)
    helper.set_model_props(made, {"names": "{0: 'person'}"})
    return bytes(made.SerializeToString())


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
DETR = onnx_bytes(
    [("images", FLOAT, ["n", 3, 640, 640]), ("sizes", INT64, ["n", 2])],
    [("labels", INT64, ["n", 300]), ("count", INT64, ["n"])],
)
FIXED = onnx_bytes([("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3]), ("mean", FLOAT, [])])


def torchscript_bytes() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("model/constants.pkl", "")
        archive.writestr("model/extra/config.txt", '{"task": "detect"}')
    return made.getvalue()


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """An empty model folder."""
    folder = tmp_path / "detector"
    folder.mkdir()
    return folder


def fill(folder: Path, config: str | None, files: dict[str, bytes | None]) -> DropFacts:
    """Write a drop and read it; a path that stands for None becomes a folder."""
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    return read_drop(folder)


def test_without_a_configuration_all_comes_from_the_onnx_file(drop: Path) -> None:
    facts = fill(drop, None, {"1/model.onnx": DETR})
    assert facts.config.signature == ModelSignature(
        "detector",
        "",
        (TensorSpec("images", "FP32", (-1, 3, 640, 640)), TensorSpec("sizes", "INT64", (-1, 2))),
        (TensorSpec("labels", "INT64", (-1, 300)), TensorSpec("count", "INT64", (-1, 1))),
        4,
    )
    assert (facts.config.platform, facts.config.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert facts.config.dynamic_batching
    assert not facts.has_config
    assert facts.files == {1: drop / "1" / "model.onnx"}
    assert facts.metadata == {"names": "{0: 'person'}"}


def test_a_fixed_first_axis_is_not_batched(drop: Path) -> None:
    facts = fill(drop, None, {"1/model.onnx": FIXED})
    assert facts.config.signature.max_batch_size == 0
    assert not facts.config.dynamic_batching
    assert facts.config.signature.outputs == (TensorSpec("y", "FP32", (1, 3)), TensorSpec("mean", "FP32", (1,)))


@pytest.mark.parametrize(("size", "batching"), [(8, True), (1, False)])
def test_platform_and_batch_size_are_enough(drop: Path, size: int, batching: bool) -> None:
    facts = fill(drop, f'platform: "onnxruntime_onnx" max_batch_size: {size}', {"1/model.onnx": DETR})
    assert facts.config.signature.max_batch_size == size
    assert facts.config.signature.inputs[1] == TensorSpec("sizes", "INT64", (-1, 2))
    assert facts.config.dynamic_batching == batching


def test_what_the_configuration_says_stays(drop: Path) -> None:
    inputs = (
        'input { name: "images" data_type: TYPE_FP32 dims: [ 3, 640, 640 ] }'
        ' input { name: "sizes" data_type: TYPE_INT64 dims: [ 1, 2 ] reshape { shape: [ 2 ] } }'
    )
    facts = fill(drop, inputs, {"1/model.onnx": DETR})
    assert facts.config.signature.max_batch_size == 4
    assert facts.config.signature.inputs[1].shape == (-1, 1, 2)
    assert [spec.name for spec in facts.config.signature.outputs] == ["labels", "count"]


def test_versions_are_numbers_without_leading_zeros(drop: Path) -> None:
    files: dict[str, bytes | None] = {f"{name}/model.onnx": DETR for name in ("1", "2", "10", "03", "configs", "²")}
    facts = fill(drop, "version_policy { latest { num_versions: 2 } }", files)
    assert (facts.versions, facts.served) == ((1, 2, 10), (2, 10))
    assert sorted(facts.files) == [2, 10]


def test_a_folder_for_the_weights_and_a_name_of_ones_own(drop: Path) -> None:
    assert fill(drop, None, {"1/model.onnx/model.onnx": DETR}).files[1] == drop / "1" / "model.onnx" / "model.onnx"
    named = 'platform: "onnxruntime_onnx" default_model_filename: "yolo.onnx"'
    assert fill(drop, named, {"2/yolo.onnx": DETR}).files == {2: drop / "2" / "yolo.onnx"}


def test_torchscript_with_its_metadata(drop: Path) -> None:
    config = "".join(f'{side} {{ name: "x__0" data_type: TYPE_FP32 dims: 3 }}\n' for side in ("input", "output"))
    facts = fill(drop, config, {"1/model.pt": torchscript_bytes()})
    assert (facts.config.platform, facts.config.backend) == ("pytorch_libtorch", "pytorch")
    assert facts.metadata == {"task": "detect"}
    assert facts.onnx is None


def test_what_only_triton_can_look_into_is_left_to_it(drop: Path) -> None:
    facts = fill(drop, 'platform: "tensorrt_plan"', {"1/model.plan": b"engine"})
    assert facts.config.signature.inputs == ()
    assert facts.files == {1: drop / "1" / "model.plan"}


def test_a_backend_of_somebody_else_is_not_looked_into(drop: Path) -> None:
    assert fill(drop, 'backend: "dali"', {"1/model.dali": b"pipeline"}).files == {}


@pytest.mark.parametrize("name", ["industrial-safety", "walkway"])
@pytest.mark.parametrize("variant", ["onnx", "torch"])
def test_the_sample_models_are_in_order(name: str, variant: str) -> None:
    folder = REPOSITORY / f"{name}-{variant}"
    facts = read_drop(folder)
    assert facts.config.signature == read_config(folder / "config.pbtxt").signature
    assert sorted(facts.files) == [1]


ONNX_PLATFORM = 'platform: "onnxruntime_onnx"\n'
IMAGES = 'input { name: "images" data_type: TYPE_FP32 dims: [ 3, 640, 640 ] }\n'
SIZES = 'input { name: "sizes" data_type: TYPE_INT64 dims: 2 }\n'
LABELS = 'output { name: "labels" data_type: TYPE_INT64 dims: 300 }\n'
BATCH = ONNX_PLATFORM + "max_batch_size: 4\n"

REFUSED: dict[str, tuple[str | None, dict[str, bytes | None], list[str]]] = {
    "nothing": (None, {}, ["no version folder", "1/model.onnx"]),
    "loose": (None, {"model.onnx": DETR}, ["no version folder: model.onnx lies beside", "1/model.onnx"]),
    "other-folders": (None, {"v1/model.onnx": DETR}, ["there is only v1"]),
    "empty-version": (None, {"1": None}, ["the version folder is empty"]),
    "empty-version-config": (ONNX_PLATFORM, {"1": None}, ["the version folder is empty", "as model.onnx"]),
    "empty-file": (None, {"1/model.onnx": b""}, ["0 bytes"]),
    "wrong-name": (None, {"1/yolo.onnx": DETR}, ["no model file 'model.onnx', only yolo.onnx", "Rename"]),
    "wrong-name-config": (ONNX_PLATFORM, {"1/yolo.onnx": DETR}, ["only yolo.onnx", "default_model_filename"]),
    "other-name": ('name: "detectr"', {"1/model.onnx": DETR}, ["names the model 'detectr', its folder is 'detector'"]),
    "other-file": (ONNX_PLATFORM, {"1/model.pt": b"PK"}, ["'onnxruntime_onnx', the folder holds model.pt",
                                                          'platform: "pytorch_libtorch"']),
    "other-content": (None, {"1/model.onnx": torchscript_bytes()}, ["is a zip archive", "TorchScript"]),
    "other-content-torch": (
        'platform: "pytorch_libtorch" ' + IMAGES + LABELS, {"1/model.pt": DETR}, ["no complete TorchScript archive"]
    ),
    "bare-torch": (None, {"1/model.pt": torchscript_bytes()}, ["lacks input and output", "INPUT__0"]),
    "typo": ('platform: "onnxruntime-onnx"', {"1/model.onnx": DETR}, ["did you mean 'onnxruntime_onnx'?"]),
    "disagree": (
        'platform: "onnxruntime_onnx" backend: "pytorch"', {"1/model.onnx": DETR}, ["which disagree"]
    ),
    "absent-version": (
        "version_policy { specific { versions: [ 2 ] } }", {"1/model.onnx": DETR}, ["asks for 2, there is 1"]
    ),
    "bad-version": (
        "version_policy { all { } }", {"1/model.onnx": b"not a model", "2/model.onnx": DETR}, ["1/model.onnx"]
    ),
    "not-batching": (BATCH, {"1/model.onnx": FIXED}, ["max_batch_size is 4", "first axis"]),
    "unknown-input": (
        BATCH + IMAGES.replace("images", "image") + LABELS,
        {"1/model.onnx": DETR},
        ["declares input 'image', the model has 'images', 'sizes'"],
    ),
    "missing-input": (BATCH + IMAGES + LABELS, {"1/model.onnx": DETR}, ["lacks input 'sizes'"]),
    "wrong-type": (
        BATCH + IMAGES + SIZES.replace("INT64", "INT32") + LABELS,
        {"1/model.onnx": DETR},
        ["input 'sizes' is INT32, in the model it is INT64", "TYPE_INT64"],
    ),
    "wrong-dims": (
        BATCH + IMAGES + SIZES + LABELS.replace("300", "80"),
        {"1/model.onnx": DETR},
        ["output 'labels' has dims [80], in the model [300]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_triton_would_refuse_is_refused_with_the_reason(drop: Path, name: str) -> None:
    config, files, expected = REFUSED[name]
    with pytest.raises(ConfigError) as refusal:
        fill(drop, config, files)
    for text in [*expected, str(drop)]:
        assert text in str(refusal.value)
    assert refusal.value.fix


def test_one_version_is_read_as_if_it_alone_were_served(drop: Path) -> None:
    fill(drop, "version_policy { specific { versions: [ 2 ] } }", {"1/model.onnx": FIXED, "2/model.onnx": DETR})
    for version in (1, 2):
        facts = read_drop(drop, version)
        assert (facts.served, list(facts.files)) == ((version,), [version])
    (drop / "1" / "model.onnx").write_bytes(b"not a model")
    assert read_drop(drop, 2).files == {2: drop / "2" / "model.onnx"}
    assert examine_drop(drop, version=2).problem is None
    for version, said in ((1, str(drop / "1")), (3, "has no version 3, there is 1, 2")):
        with pytest.raises(ConfigError) as refusal:
            read_drop(drop, version)
        assert said in str(refusal.value)
        assert said in str(examine_drop(drop, version=version).problem)


def test_a_folder_that_is_not_there(drop: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        read_drop(drop / "none")
