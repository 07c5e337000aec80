"""`edge-gateway models`: what is listed, and what is said of a drop before anything is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import layouts
from gateway.doctor.drops import DropReport, disagreement
from gateway.layouts.binding import BoundOutput
from gateway.local.processes import free_ports
from gateway.local.tritonserver import EmbeddedTriton
from gateway.models.catalog import ServedVariant
from gateway.models.repository import read_model
from tests.command_line import ROOT, one_line, run

REPOSITORY = ROOT / "model_repository"
MODELS = sorted(path.parent.name for path in REPOSITORY.glob("*/model.yaml"))


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """A repository with one model and its two variants."""
    for name in ("industrial-safety", "industrial-safety-onnx", "industrial-safety-torch"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def nowhere() -> str:
    """An address at which there is no Triton."""
    return f"127.0.0.1:{free_ports(1)[0]}"


def change(path: Path, **keys: Any) -> None:
    """Other keys in a model.yaml."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))


def checked(folder: Path, code: int = 0) -> dict[str, Any]:
    """What `models check --json` says, after its exit code has been checked."""
    done = run("models", "check", str(folder), "--json")
    assert (done.returncode, done.stderr) == (code, ""), done
    body: dict[str, Any] = json.loads(done.stdout)
    assert body["ok"] is (code == 0)
    return body


def problems(folder: Path) -> list[str]:
    """The lines with problems of a drop that is wrong."""
    done = run("models", "check", str(folder))
    assert (done.returncode, done.stderr) == (2, "")
    return [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("problem")]


# --- list -----------------------------------------------------------------------------------------------


def test_the_list_has_models_variants_and_versions(nowhere: str) -> None:
    done = run("models", "list", "--json", MODEL_REPOSITORY=str(REPOSITORY), TRITON_GRPC_URL=nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    body = json.loads(done.stdout)
    assert [entry["name"] for entry in body["models"]] == MODELS
    assert body["broken"] == []
    assert nowhere in body["triton_unreachable"]
    (safety,) = (entry for entry in body["models"] if entry["name"] == "industrial-safety")
    assert (safety["model_type"], safety["layout"], safety["input_size"]) == ("object-detection", "yolov8", [256, 448])
    assert (safety["answers"], safety["answers_because"]) == ("onnx", "DEFAULT_BACKEND")
    assert [(each["variant"], each["versions"], each["triton"]) for each in safety["variants"]] == [
        ("onnx", [1], None),
        ("torch", [1], None),
    ]


def test_a_broken_model_yaml_stands_in_the_list_with_its_error(drop: Path, nowhere: str) -> None:
    (drop / "broken").mkdir()
    (drop / "broken" / "model.yaml").write_text("nmae: x\nmodel_type: object-detection")
    shutil.rmtree(drop / "industrial-safety-torch" / "1")
    done = run("models", "list", MODEL_REPOSITORY=str(drop), TRITON_GRPC_URL=nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "industrial-safety    object-detection, layout yolov8, input 256 high, 448 wide, 3 classes"
    )
    assert any("industrial-safety-torch  versions on disk: none; Triton not asked" in line for line in lines)
    assert any("problem: " in line and "has no version folder" in line for line in lines)
    (broken,) = (line for line in lines if line.startswith("broken "))
    assert "did you mean 'name'?" in broken
    assert lines[-1].startswith(f"Triton not asked: unreachable at {nowhere}")


@pytest.mark.parametrize(
    ("settings", "keys", "answers"),
    [
        ({"DEFAULT_BACKEND": "torch"}, {}, ("torch", "DEFAULT_BACKEND")),
        ({"DEFAULT_BACKEND": "candle"}, {}, ("torch", "DEFAULT_BACKEND")),
        ({"DEFAULT_BACKEND": "tensorrt"}, {}, ("onnx", "first variant")),
        ({"ENABLE_DUAL_BACKEND": "true"}, {"backend": "torch"}, ("dual", "ENABLE_DUAL_BACKEND")),
        ({}, {"backend": "dual"}, ("dual", "model.yaml")),
        ({}, {"backend": "torch"}, ("torch", "model.yaml")),
    ],
)
def test_who_answers(
    drop: Path, nowhere: str, settings: dict[str, str], keys: dict[str, Any], answers: tuple[str, str]
) -> None:
    change(drop / "industrial-safety" / "model.yaml", **keys)
    done = run("models", "list", "--json", MODEL_REPOSITORY=str(drop), TRITON_GRPC_URL=nowhere, **settings)
    (entry,) = json.loads(done.stdout)["models"]
    assert (entry["answers"], entry["answers_because"]) == answers


@pytest.fixture(scope="module")
def triton() -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(REPOSITORY) as running:
        yield running


def test_the_list_says_how_models_stand_at_triton(triton: EmbeddedTriton, drop: Path) -> None:
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(triton.grpc_url)
    client.load_model("walkway-onnx", client_timeout=120)
    done = run("models", "list", MODEL_REPOSITORY=str(REPOSITORY), TRITON_GRPC_URL=triton.grpc_url)
    client.unload_model("walkway-onnx", client_timeout=120)
    client.close()
    lines = done.stdout.splitlines()
    assert any("walkway-onnx  versions on disk: 1; Triton: version 1 READY" in line for line in lines)
    assert any("walkway-torch  versions on disk: 1; Triton: not loaded" in line for line in lines)
    (drop / "industrial-safety-onnx").rename(drop / "other-onnx")
    change(drop / "industrial-safety" / "model.yaml", variants={"onnx": "other-onnx"})
    done = run("models", "list", MODEL_REPOSITORY=str(drop), TRITON_GRPC_URL=triton.grpc_url)
    assert "Triton does not see it" in done.stdout


def test_a_repository_that_is_not_there_is_one_line() -> None:
    assert "MODEL_REPOSITORY=nowhere: no such folder" in one_line("models", "list", MODEL_REPOSITORY="nowhere")


# --- check ----------------------------------------------------------------------------------------------


def test_the_samples_fit_and_what_cannot_be_told_is_said() -> None:
    done = run("models", "check", str(REPOSITORY))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert [line for line in done.stdout.splitlines() if not line.startswith(" ")] == MODELS
    assert "ok        input images, 256 high and 448 wide, FP32" in lines
    assert "ok        takes images FP32 [-1, 3, 256, 448]" in lines
    assert "ok        gives output0 FP32 [-1, 7, 2352]" in lines
    assert "ok        3 classes" in lines
    assert not [line for line in lines if line.startswith("remark")]
    assert "ok        input window, 32x1 numbers, FP32" in lines
    assert "ok        config.pbtxt agrees with the ONNX file" in lines
    assert any(line.startswith("unknown   TorchScript holds no shapes") for line in lines)
    assert not [line for line in lines if line.startswith("problem")]


def test_each_kind_of_folder_is_checked_as_what_it_is(drop: Path) -> None:
    whole, logical = checked(drop), checked(drop / "industrial-safety")
    assert whole == logical
    (model,) = whole["models"]
    assert (model["name"], [each["variant"] for each in model["variants"]]) == ("industrial-safety", ["onnx", "torch"])
    onnx, _ = model["variants"]
    assert (onnx["input_size"], onnx["classes"], onnx["outputs"]) == ([256, 448], 3, {"output": "output0"})
    assert onnx["signature"]["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 256, 448]}]
    (alone,) = checked(drop / "industrial-safety-onnx")["models"]
    assert (alone["name"], alone["variants"]) == ("industrial-safety", [onnx])
    shutil.rmtree(drop / "industrial-safety")
    (alone,) = checked(drop / "industrial-safety-onnx")["models"]
    assert (alone["name"], alone["variants"][0]["ok"], alone["variants"][0]["input_size"]) == (None, True, None)
    assert [each["name"] for each in checked(drop)["models"]] == [None, None]


@pytest.mark.parametrize(
    ("keys", "said", "count"),
    [
        ({"preprocessing": {"resize": [64, 64]}}, "preprocessing.resize says [64, 64]. Set preprocessing.resize", 2),
        ({"labels": ["a", "b", "person_without_helmet"], "inference": {"output": "yolov5"}}, "expected yolov5", 2),
        ({"labels": [f"class-{n}" for n in range(80)], "inference": {}}, "expected yolov8: output [4+C, N]", 2),
        ({"labels": ["a"], "inference": {"alert_classes": ["b"]}}, "inference.alert_classes names 'b'", 1),
        ({"variants": {"onnx": "not-there"}}, "not-there: no such folder", 1),
        ({"nmae": "x"}, "did you mean 'name'?", 1),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_fix(drop: Path, keys: dict[str, Any], said: str, count: int) -> None:
    change(drop / "industrial-safety" / "model.yaml", **keys)
    lines = problems(drop)
    assert [said in line for line in lines] == [True] * count, lines


def without_labels(drop: Path, **keys: Any) -> Path:
    """Nothing names the classes any more, so the shapes alone tell how many there are; the config.pbtxt of torch."""
    (drop / "industrial-safety" / "labels.txt").unlink()
    path = drop / "industrial-safety" / "model.yaml"
    spec = yaml.safe_load(path.read_text())
    del spec["labels"]
    path.write_text(yaml.safe_dump({**spec, "inference": {}, **keys}))
    return drop / "industrial-safety-torch" / "config.pbtxt"


def test_without_labels_it_is_said_what_classes_will_be_called(drop: Path, nowhere: str) -> None:
    without_labels(drop)
    done = run("models", "check", str(drop))
    assert (done.returncode, done.stderr) == (0, "")
    (remark,) = (line.strip() for line in done.stdout.splitlines() if line.startswith("  remark "))
    assert remark.startswith("remark    no labels: classes will be called class_0, class_1")
    assert done.stdout.count("ok        3 classes\n") == 2
    (model,) = checked(drop)["models"]
    assert [remark.endswith(text) for text in model["remarks"]] == [True]
    listed = run("models", "list", MODEL_REPOSITORY=str(drop), TRITON_GRPC_URL=nowhere).stdout.splitlines()[0]
    assert "448 wide, 3 classes;" in listed


def test_one_class_is_one_class(drop: Path, nowhere: str) -> None:
    config = without_labels(drop, variants={"torch": "industrial-safety-torch"})
    config.write_text(config.read_text().replace("[ 7, 2352 ]", "[ 5, 2352 ]"))
    assert "ok        1 class\n" in run("models", "check", str(drop / "industrial-safety")).stdout
    listed = run("models", "list", MODEL_REPOSITORY=str(drop), TRITON_GRPC_URL=nowhere).stdout
    assert "448 wide, 1 class;" in listed


def test_variants_that_disagree_in_their_classes_are_a_problem(drop: Path) -> None:
    """A config.pbtxt copied from another model; each fits by itself."""
    config = without_labels(drop)
    config.write_text(config.read_text().replace("[ 7, 2352 ]", "[ 84, 2352 ]"))
    (line,) = problems(drop)
    assert "the variants disagree: onnx has 3 classes, torch has 80 classes. Export" in line
    assert line.endswith("correct dims in config.pbtxt")


def test_variants_with_the_same_tensors_in_other_roles_are_a_problem(drop: Path) -> None:
    def served(name: str, **tensors: str) -> DropReport:
        bound = {role: BoundOutput(tensor, batch_axis=True) for role, tensor in tensors.items()}
        return DropReport(name, name, drop, served=ServedVariant(name, name, outputs=bound))

    model = read_model(drop / "industrial-safety" / "model.yaml")
    onnx = served("onnx", boxes="a", scores="b")
    assert disagreement(model, [onnx, served("torch", boxes="a__0", scores="b__1")]) is None
    assert disagreement(model, [onnx, served("torch", boxes="OUTPUT__0", scores="OUTPUT__1")]) is None
    found = disagreement(model, [onnx, served("torch", boxes="b__0", scores="a__1")])
    assert found is not None
    assert "onnx gives boxes = a, scores = b; torch gives boxes = b__0, scores = a__1" in found.message


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07" * 1000])
@pytest.mark.parametrize("file", ["industrial-safety-onnx/1/model.onnx", "industrial-safety-torch/1/model.pt"])
def test_damaged_files_are_one_line(drop: Path, file: str, content: bytes) -> None:
    (drop / file).write_bytes(content)
    (line,) = problems(drop / "industrial-safety")
    assert str(drop / file) in line


def test_a_damaged_config_is_one_line(drop: Path) -> None:
    (drop / "industrial-safety-onnx" / "config.pbtxt").write_text('name: "industrial-safety-onnx"\nplatfrom: "x"')
    (line,) = problems(drop)
    assert "config.pbtxt" in line
    assert "line 2" in line


def test_a_folder_without_models_is_one_line(tmp_path: Path) -> None:
    assert "has neither a model.yaml nor" in one_line("models", "check", str(tmp_path))
    assert "nowhere: no such folder" in one_line("models", "check", "nowhere")


# --- layouts --------------------------------------------------------------------------------------------

CUSTOM = '''
from gateway.layouts import Classes, layout

@layout("two-numbers", task="image-classification", outputs={"output": (2,)})
def two_numbers(outputs, head):
    """Two numbers, the greater one wins."""
    return Classes(outputs["output"][:0].astype(int), outputs["output"][:0])
'''


def test_all_layouts_are_listed_those_of_the_user_too(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(CUSTOM)
    own = {"LAYOUTS_DIR": str(tmp_path)}
    done = run("models", "layouts", **own)
    assert (done.returncode, done.stderr) == (0, "")
    for name in (*layouts.names(), "two-numbers"):
        assert f"\n  {name} " in done.stdout
    assert "yolov8                   output [4+C, N]" in done.stdout
    assert "Two numbers, the greater one wins." in done.stdout
    known = {entry["name"]: entry for entry in json.loads(run("models", "layouts", "--json", **own).stdout)}
    assert set(known) == {*layouts.names(), "two-numbers"}
    assert known["two-numbers"]["outputs"] == {"output": [2]}


def test_a_layout_of_the_user_serves_in_a_check(drop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "layouts"
    folder.mkdir()
    own = CUSTOM.replace("(2,)", '(7, "N")').replace("image-classification", "object-detection")
    (folder / "own.py").write_text(own)
    change(drop / "industrial-safety" / "model.yaml", inference={"output": "two-numbers"})
    assert run("models", "check", str(drop), LAYOUTS_DIR=str(folder)).returncode == 0
    assert "unknown layout 'two-numbers'" in problems(drop)[0]
    (folder / "own.py").write_text("import nothing_of_that_name")
    assert f"{folder}/own.py:1" in one_line("models", "check", str(drop), LAYOUTS_DIR=str(folder))
