"""`edge-gateway models new`: a drop from bare model files, the next version of one, and nothing half done."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from gateway.adapters.triton_config import read_config
from gateway.commands.models.staging import Staging
from gateway.errors import ConfigError
from gateway.layouts import named
from gateway.local.tritonserver import EmbeddedTriton
from gateway.messages import TensorSpec
from gateway.models.onnx_file import OnnxFacts
from gateway.models.rollout_spec import RolloutSpec
from gateway.models.skeleton import TorchFacts, Wishes, outline
from gateway.models.skeleton_files import config_pbtxt, labels_txt, model_yaml
from gateway.models.spec import read_labels, read_spec
from gateway.models.torchscript_forward import Forward, read_forward
from gateway.rollout.state import ModelState, RefusalRecord
from gateway.rollout.steps import Step
from gateway.rollout.store import StateStore
from tests.command_line import ROOT, TIMEOUT_S, environment, one_line, run
from tests.local.tiny_models import (
    AsDict,
    Detr,
    Double,
    FromDict,
    Halves,
    SumAndDifference,
    onnx_detr,
    torch_model,
)

SAMPLES = ROOT / "model_repository"
NAMES = sorted(path.parent.name for path in SAMPLES.glob("*/model.yaml"))
ULTRALYTICS = {
    "author": "Ultralytics",
    "task": "detect",
    "names": "{0: 'helmet', 1: 'no helmet'}",
    "imgsz": "[96, 160]",
    "stride": "32",
    "batch": "1",
}
CELLS = 12 * 20 + 6 * 10 + 3 * 5


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty model repository."""
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


def files_of(name: str, *variants: str) -> list[str]:
    """The options that name a sample's bare model files."""
    suffix = {"onnx": "onnx", "torch": "pt"}
    options = []
    for variant in variants or ("onnx", "torch"):
        options += [f"--{variant}", str(SAMPLES / f"{name}-{variant}" / "1" / f"model.{suffix[variant]}")]
    return options


def new(repository: Path, name: str, *options: str) -> str:
    """What it prints when it has written a drop, which then is accepted by `models check`."""
    done = run("models", "new", name, "--repository", str(repository), *options)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert run("models", "check", str(repository / name)).returncode == 0
    assert leftovers(repository) == []
    return done.stdout


def refused(repository: Path, name: str, *options: str) -> str:
    """The one line with which it writes nothing."""
    before = everything(repository)
    line = one_line("models", "new", name, "--repository", str(repository), *options)
    assert everything(repository) == before
    return line


def leftovers(repository: Path) -> list[Path]:
    """What a run has left beside the drop."""
    return [path for path in repository.iterdir() if path.name.startswith(".new-")]


def everything(repository: Path) -> dict[str, bytes]:
    """All files and folders by path; the content of folders is none."""
    return {
        str(path.relative_to(repository)): path.read_bytes() if path.is_file() else b""
        for path in sorted(repository.rglob("*"))
    }


def onnx_file(
    path: Path,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    **metadata: str,
) -> str:
    """A graph of nothing but its inputs and outputs, FP32; returns its path."""
    takes, gives = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in side.items()]
        for side in (inputs, outputs)
    )
    model = helper.make_model(helper.make_graph([], "graph", takes, gives))
    helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return str(path)


# --- a new model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_bare_files_of_the_samples_become_the_same_models(name: str, repository: Path) -> None:
    labels = SAMPLES / name / "labels.txt"
    new(repository, name, *files_of(name), *(["--labels", str(labels)] if labels.exists() else []))
    ours, theirs = (read_spec(root / name / "model.yaml") for root in (repository, SAMPLES))
    assert (ours.name, ours.model_type, ours.layout, ours.variants) == (
        theirs.name,
        theirs.model_type,
        theirs.layout,
        theirs.variants,
    )
    assert ours.preprocessing.resize == theirs.preprocessing.resize
    assert (ours.sensor.window, ours.sensor.channels) == (theirs.sensor.window, theirs.sensor.channels)
    for triton in ours.variants.values():
        mine, sample = (read_config(root / triton / "config.pbtxt") for root in (repository, SAMPLES))
        assert (mine.signature, mine.platform) == (sample.signature, sample.platform)
        file = next((SAMPLES / triton / "1").iterdir())
        assert (repository / triton / "1" / file.name).read_bytes() == file.read_bytes()
    assert read_labels(ours, repository / name / "model.yaml") == read_labels(theirs, SAMPLES / name / "model.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_without_labels_the_shapes_tell(name: str, repository: Path) -> None:
    new(repository, name, *files_of(name, "onnx"))
    spec = read_spec(repository / name / "model.yaml")
    assert spec.layout == read_spec(SAMPLES / name / "model.yaml").layout
    assert spec.variants == {"onnx": f"{name}-onnx"}
    assert not (repository / name / "labels.txt").exists()
    assert not (repository / f"{name}-torch").exists()


def test_several_inputs_and_outputs(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(onnx_detr())
    torch_model(Detr(), tmp_path / "a.pt")
    said = new(repository, "detr", "--onnx", str(tmp_path / "a.onnx"), "--torch", str(tmp_path / "a.pt"))
    config = read_config(repository / "detr-torch" / "config.pbtxt")
    assert [each.name for each in config.signature.inputs] == ["images__0", "orig_target_sizes__1"]
    assert [each.name for each in config.signature.outputs] == ["labels__0", "boxes__1", "scores__2"]
    assert "also fit torchvision" in said  # of which nobody but a person can tell
    assert "# The shapes fit these too: torchvision" in (repository / "detr" / "model.yaml").read_text()


def test_what_ultralytics_writes_into_its_files_is_used(repository: Path, tmp_path: Path) -> None:
    file = onnx_file(
        tmp_path / "a.onnx", {"images": ["b", 3, "h", "w"]}, {"output0": ["b", 6, "anchors"]}, **ULTRALYTICS
    )
    new(repository, "helmets", "--onnx", file)
    spec = read_spec(repository / "helmets" / "model.yaml")
    assert (spec.preprocessing.resize, spec.preprocessing.resample) == ((96, 160), "opencv")
    assert (repository / "helmets" / "labels.txt").read_text() == "helmet\nno helmet\n"


def test_ultralytics_torchscript_needs_no_shapes() -> None:
    skeleton = outline("helmets", None, TorchFacts(ULTRALYTICS, Forward(("x",), 1)), Wishes())
    assert skeleton.layout == "yolov8"
    assert skeleton.signature.inputs == (TensorSpec("images", "FP32", (1, 3, 96, 160)),)
    assert skeleton.signature.outputs == (TensorSpec("output0", "FP32", (1, 6, CELLS)),)
    suppressed = {**ULTRALYTICS, "args": "{'batch': 1, 'nms': True}"}
    for unclear in (suppressed, {**ULTRALYTICS, "end2end": "True"}, {**ULTRALYTICS, "description": "rtdetr-l"}):
        with pytest.raises(ConfigError, match="holds no shapes"):
            outline("helmets", None, TorchFacts(unclear), Wishes())


def test_a_torchscript_file_alone_has_to_be_told_its_shapes(repository: Path, tmp_path: Path) -> None:
    torch_model(Halves(), tmp_path / "halves.pt")
    file = ["--torch", str(tmp_path / "halves.pt")]
    line = refused(repository, "halves", *file)
    assert "--input 3x640x640 --output 7x8400" in line
    told = [*file, "--input", "3x64x64", "--output", "1x64x64", "--output", "1"]
    new(repository, "halves", *told)
    spec, config = (
        read_spec(repository / "halves" / "model.yaml"),
        read_config(repository / "halves-torch/config.pbtxt"),
    )
    assert spec.layout == named("anomaly-map-score")
    assert config.signature.inputs == (TensorSpec("x__0", "FP32", (-1, 3, 64, 64)),)
    assert [each.name for each in config.signature.outputs] == ["OUTPUT__0", "OUTPUT__1"]


def test_golden_examples_go_with_it(repository: Path, tmp_path: Path) -> None:
    golden = SAMPLES / "walkway" / "golden"
    labels = str(SAMPLES / "walkway" / "labels.txt")
    said = new(repository, "walkway", *files_of("walkway"), "--golden", str(golden), "--labels", labels)
    assert everything(repository / "walkway" / "golden") == everything(golden)
    assert "expected.json" not in said
    assert "x/golden/expected.json: nothing tells wrong weights" in new(repository, "x", *files_of("walkway"))
    (tmp_path / "expected.json").write_text('[{"image": "gone.jpg", "predictions": []}]')
    line = refused(repository, "y", *files_of("walkway"), "--golden", str(tmp_path))
    assert f"{repository}/y/golden/gone.jpg" in line


def test_a_name_that_yaml_reads_as_a_number_stays_a_name(repository: Path) -> None:
    new(repository, "2024", *files_of("walkway", "onnx"))
    assert read_spec(repository / "2024" / "model.yaml").name == "2024"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no model file is given"),
        (["--onnx", "nowhere.onnx"], "nowhere.onnx: cannot be read: No such file or directory"),
        (["--onnx", "/dev/null"], "it is no regular file"),
        (["--onnx", str(SAMPLES / "walkway" / "labels.txt")], "is no complete ONNX model"),
        (["--onnx", str(SAMPLES / "walkway-torch/1/model.pt")], "is a zip archive"),
        (["--torch", str(SAMPLES / "walkway-onnx/1/model.onnx")], "is no complete TorchScript archive"),
        ([*files_of("walkway"), "--labels", "nowhere.txt"], "nowhere.txt"),
        ([*files_of("walkway"), "--labels", str(SAMPLES / "industrial-safety/labels.txt")], "no layout reads"),
        ([*files_of("walkway"), "--type", "object-detecton"], "did you mean 'object-detection'?"),
        ([*files_of("walkway"), "--layout", "yolo8"], "did you mean 'yolov8'?"),
        ([*files_of("walkway"), "--layout", "yolov8"], "expected yolov8: output [4+C, N]"),
        ([*files_of("walkway"), "--layout", "yolov8", "--type", "anomaly-detection"], "is for model_type"),
        ([*files_of("walkway"), "--input", "3x640x640"], "--input says 3x640x640"),
        ([*files_of("walkway"), "--output", "2", "--output", "3"], "2 outputs are given, the ONNX file has 1"),
        ([*files_of("walkway"), "--input", "640,640"], "is no shape"),
        ([*files_of("walkway"), "--golden", "nowhere"], "nowhere: cannot be read"),
        ([*files_of("walkway"), "--version", "0"], "--version"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(options: list[str], said: str, repository: Path) -> None:
    assert said in refused(repository, "mine", *options)


@pytest.mark.parametrize("name", ["../mine", ".mine", "a/b", "", "-"])
def test_a_name_that_is_no_folder_of_the_repository(name: str, repository: Path) -> None:
    assert "name" in refused(repository, "--", name) or "name" in refused(repository, name, *files_of("walkway"))


def test_files_larger_than_the_gateway_would_take(repository: Path) -> None:
    done = run("models", "new", "x", "--repository", str(repository), *files_of("walkway"), MAX_MODEL_BYTES=str(2**21))
    assert done.returncode == 2
    assert "the limit is 2.0 MiB" in done.stderr
    assert everything(repository) == {}


def test_files_that_are_certainly_of_two_models(repository: Path, tmp_path: Path) -> None:
    torch_model(SumAndDifference(), tmp_path / "other.pt")
    line = refused(repository, "walkway", *files_of("walkway", "onnx"), "--torch", str(tmp_path / "other.pt"))
    assert "forward() of the TorchScript file has 2 inputs, 1 are expected" in line


def test_a_folder_that_is_there_is_left_alone(repository: Path) -> None:
    (repository / "walkway-torch").mkdir()
    (repository / "walkway-torch" / "mine.txt").write_text("mine")
    assert "is there already" in refused(repository, "walkway", *files_of("walkway"))


def test_a_disk_that_is_full_leaves_nothing_behind(repository: Path) -> None:
    command = [sys.executable, "-m", "gateway", "models", "new", "walkway", "--repository", str(repository)]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1024; exec "$@"', "bash", *command, *files_of("walkway")],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2, done
    assert "cannot be written" in done.stderr
    assert "nothing was put into the repository" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert everything(repository) == {}


def test_a_drop_that_is_broken_off_leaves_nothing_behind(repository: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with Staging(repository, "x") as staging:
            staging.write("x/model.yaml", "name: x")
            staging.copy(SAMPLES / "walkway-onnx/1/model.onnx", "x-onnx/1/model.onnx", interrupt)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert everything(repository) == {}


def test_all_of_a_drop_is_placed_or_none_of_it(repository: Path) -> None:
    (repository / "b").mkdir()
    with Staging(repository, "x") as staging:
        staging.write("a/one", "1")
        staging.write("b/two", "2")
        with pytest.raises(ConfigError, match="is there already"):
            staging.place(["a", "b"])
    assert everything(repository) == {"b": b""}


# --- the next version -----------------------------------------------------------------------------------


@pytest.fixture
def walkway(repository: Path) -> Path:
    """A repository in which a person has worked on the model."""
    for folder in ("walkway", "walkway-onnx", "walkway-torch"):
        shutil.copytree(SAMPLES / folder, repository / folder)
    return repository


def test_the_next_version_leaves_all_else_as_it_is(walkway: Path) -> None:
    before = everything(walkway)
    said = new(walkway, "walkway", *files_of("walkway"))
    added = {path: content for path, content in everything(walkway).items() if path not in before}
    assert set(added) == {
        "walkway-onnx/2",
        "walkway-onnx/2/model.onnx",
        "walkway-torch/2",
        "walkway-torch/2/model.pt",
    }
    assert {path: content for path, content in everything(walkway).items() if path in before} == before
    assert "version 2 written, walkway-onnx/2 and walkway-torch/2" in said
    assert "version 3 written" in new(walkway, "walkway", *files_of("walkway"))
    assert "version 7 written" in new(walkway, "walkway", *files_of("walkway"), "--version", "7")


def test_a_version_that_brings_one_variant_only_says_so(walkway: Path) -> None:
    (walkway / "walkway" / "model.sig").write_text("of version 1")
    said = new(walkway, "walkway", *files_of("walkway", "torch"))
    assert "Version 2 brings no onnx: it will be served without." in said
    assert f"model.sig is not of version 2 yet: edge-gateway models sign {walkway}/walkway" in said
    assert not (walkway / "walkway-onnx" / "2").exists()


def test_numbers_are_counted_up_over_those_that_were_refused(walkway: Path) -> None:
    refusal = RefusalRecord(5, Step.GOLDEN, "no", "mend it", 1.0)
    (walkway / ".edge-gateway").mkdir()
    StateStore(walkway / ".edge-gateway").write(ModelState("walkway", refused=(refusal,)))
    line = refused(walkway, "walkway", *files_of("walkway"), "--version", "5")
    assert "version 5 is not above 5" in line
    assert "--version 6" in line
    assert "version 6 written" in new(walkway, "walkway", *files_of("walkway"))


def test_another_models_files_are_no_next_version(walkway: Path, tmp_path: Path) -> None:
    line = refused(walkway, "walkway", *files_of("industrial-safety", "onnx"))
    assert f"{walkway}/walkway-onnx/config.pbtxt: declares input 'input', the model has 'images'" in line
    assert "nothing was written" in line
    torch_model(SumAndDifference(), tmp_path / "other.pt")
    assert "forward() of the TorchScript file" in refused(walkway, "walkway", "--torch", str(tmp_path / "other.pt"))


def test_options_without_effect_on_a_model_that_is_there(walkway: Path) -> None:
    line = refused(walkway, "walkway", *files_of("walkway"), "--layout", "classification")
    assert "the model is there already, and --layout has no effect on it" in line


def test_a_variant_that_the_model_does_not_have(walkway: Path) -> None:
    path = walkway / "walkway" / "model.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "variants": {"onnx": "walkway-onnx"}}))
    assert "has no variant 'torch', only onnx" in refused(walkway, "walkway", *files_of("walkway"))


# --- what the files say ---------------------------------------------------------------------------------


def test_forward_is_read_without_running_anything(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for module, expected in (
        (Double(), Forward(("x",), 1)),
        (SumAndDifference(), Forward(("a", "b"), 2)),
        (AsDict(), Forward(("a", "b"), None)),
        (FromDict(), None),
    ):
        torch_model(module, path)
        assert read_forward(path) == expected
    path.write_bytes(path.read_bytes()[:200])
    assert read_forward(path) is None
    assert read_forward(tmp_path / "nowhere") is None


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
SIDES = st.integers(1, 20).map(lambda side: side * 32)


@given(
    height=SIDES,
    width=SIDES,
    labels=st.lists(TEXT, min_size=1, max_size=9),
    names=st.tuples(TEXT, TEXT),
    batch=st.booleans(),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    labels: list[str],
    names: tuple[str, str],
    batch: bool,
) -> None:
    cells = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    first = -1 if batch else 1
    facts = OnnxFacts(
        (TensorSpec(names[0], "FP32", (first, 3, height, width)),),
        (TensorSpec(names[1], "FP32", (first, 4 + len(labels), cells)),),
    )
    skeleton = outline("mine", facts, TorchFacts(), Wishes(labels=tuple(labels), layout="yolov8"))
    folder = tmp_path_factory.mktemp("drop")
    (folder / "model.yaml").write_text(model_yaml(skeleton))
    if text := labels_txt(skeleton):
        (folder / "labels.txt").write_text(text, newline="")
        assert read_labels(read_spec(folder / "model.yaml"), folder / "model.yaml") == tuple(labels)
    spec = read_spec(folder / "model.yaml")
    assert (spec.preprocessing.resize, spec.layout.name) == ((height, width), "yolov8")
    for variant, signature in (("onnx", skeleton.signature), ("torch", skeleton.torch_signature)):
        path = folder / f"mine-{variant}" / "config.pbtxt"
        path.parent.mkdir()
        path.write_text(config_pbtxt(skeleton, variant))
        found: Any = read_config(path).signature
        assert (found.inputs, found.outputs) == (signature.inputs, signature.outputs)
        assert found.max_batch_size == signature.max_batch_size


@pytest.mark.triton
def test_triton_serves_what_it_wrote(repository: Path) -> None:
    import numpy as np
    import tritonclient.grpc as grpc

    new(repository, "thermometer", *files_of("temperature-anomaly"))
    answers = []
    with EmbeddedTriton(repository) as triton:
        client = grpc.InferenceServerClient(triton.grpc_url)
        for variant, name in (("onnx", "window"), ("torch", "window__0")):
            client.load_model(f"thermometer-{variant}", client_timeout=120)
            tensor = grpc.InferInput(name, (2, 32, 1), "FP32")
            tensor.set_data_from_numpy(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32, 1))
            reply = client.infer(f"thermometer-{variant}", [tensor], client_timeout=30)
            answers.append(reply.as_numpy("reconstruction" if variant == "onnx" else "reconstruction__0"))
        client.close()
    assert answers[0].shape == (2, 32, 1)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)


# --- the page that walks through it ---------------------------------------------------------------------

PAGE = (ROOT / "docs" / "howto" / "new-model.md").read_text()


def commands_of(page: str) -> list[list[str]]:
    """The lines of `edge-gateway models new` on the page, as arguments."""
    return [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("edge-gateway models new ")]


# As in an environment of somebody's own: the folder triton/ of this project, which an editable install puts on the
# path, is not to be taken for the module that torch looks for.
WITHOUT_THE_PROJECT = f"import runpy, sys; sys.path.remove({str(ROOT)!r}) if {str(ROOT)!r} in sys.path else None; "
WITHOUT_THE_PROJECT += "runpy.run_path(sys.argv[1])"


def test_the_page_works_as_it_is_printed(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "train.py").write_text(code)
    (tmp_path / "prepared").mkdir()
    (edit,) = re.findall(r"^sed .*$", PAGE, re.MULTILINE)
    first, second = commands_of(PAGE)
    gateway = [sys.executable, "-m", "gateway"]
    for command in (
        [sys.executable, "-c", WITHOUT_THE_PROJECT, "train.py"],
        [*gateway, *first],
        shlex.split(edit),
        [*gateway, "models", "check", "prepared/door"],
        [*gateway, "models", "manifest", "prepared/door"],
        [*gateway, *second, "--repository", "prepared"],
        [*gateway, "models", "manifest", "prepared/door"],
        [*gateway, "models", "check", "prepared/door-onnx"],
    ):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(PYTHONPATH="" if "train.py" in command else str(ROOT)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done
    found = {path for path in everything(tmp_path / "prepared") if "." in path}
    tree = re.search(r"^```\nprepared/\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert tree is not None
    named = {name.strip() for line in tree[1].splitlines() for name in line.partition("/")[2].split(",")}
    assert {path.partition("/")[2] for path in found if "/2/" not in path} >= named - {"golden/"}
    assert "stretch" in (tmp_path / "prepared" / "door" / "model.yaml").read_text()


def test_the_page_on_models_has_all_keys_of_rollout_with_their_usual_values() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    (block,) = re.findall(r"^```yaml\n(rollout:\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    keys = yaml.safe_load(block)["rollout"]
    assert set(keys) == set(RolloutSpec.model_fields)
    assert RolloutSpec.model_validate(keys) == RolloutSpec()
