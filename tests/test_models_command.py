"""`edge-gateway models`: what is listed, and what is said of a drop before anything is started."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from gateway import layouts
from gateway.doctor.drops import DropReport, disagreement
from gateway.layouts.binding import BoundOutput
from gateway.local.processes import free_ports
from gateway.local.tritonserver import EmbeddedTriton
from gateway.models.catalog import ServedVariant
from gateway.models.drop import digest_of_all, digests_of, take_drop
from gateway.models.repository import read_model
from gateway.rollout.state import ModelState, RefusalRecord
from gateway.rollout.steps import Step
from gateway.rollout.store import StateStore
from gateway.rollout.verify import Verified
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


def test_the_samples_fit_and_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    unknown = {"MODEL_REPOSITORY": str(REPOSITORY), "MODEL_STATE_DIR": str(tmp_path)}
    done = run("models", "check", str(REPOSITORY), **unknown)
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


# --- check: what would become of it ---------------------------------------------------------------------


def outlook(folder: Path, code: int = 0, *options: str, **settings: str) -> dict[str, Any]:
    """What `models check --json` says of the rollout of the one model there."""
    done = run("models", "check", str(folder), "--json", *options, **settings)
    assert (done.returncode, done.stderr) == (code, ""), done
    (model,) = json.loads(done.stdout)["models"]
    found: dict[str, Any] = model["rollout"]
    return found


def remember(drop: Path, version: int = 1, **more: Any) -> ModelState:
    """Let a gateway have promoted this version as it lies there."""
    taken = take_drop(read_model(drop / "industrial-safety" / "model.yaml"), drop, version, 2**30)
    stable = Verified(taken, digests_of(taken), {}).record(1.0)
    state = ModelState("industrial-safety", stable=stable, **more)
    StateStore(drop / ".edge-gateway").write(state)
    return state


def add_version(drop: Path, version: int, *variants: str) -> None:
    """Put the same files there under another number."""
    for variant in variants:
        folder = drop / f"industrial-safety-{variant}"
        shutil.copytree(folder / "1", folder / str(version))


def steps_of(found: dict[str, Any]) -> dict[str, str]:
    return {each["step"]: each["what"] for each in found["steps"]}


def test_the_first_version_is_tried_without_shadow_and_canary(drop: Path) -> None:
    found = outlook(drop)
    assert (found["version"], found["stable_version"], found["problem"]) == (1, None, None)
    steps = steps_of(found)
    assert list(steps) == ["stable_on_disk", "verified", "loaded", "signature", "warmed", "golden", "promoted"]
    assert "there is no SHA256SUMS" in steps["stable_on_disk"]
    assert steps["golden"].startswith("4 examples")


def test_a_further_version_is_held_against_the_one_that_serves(drop: Path) -> None:
    remember(drop)
    add_version(drop, 2, "onnx", "torch")
    change(drop / "industrial-safety" / "model.yaml", rollout={"shadow": 7, "canary": [20, 60], "hold": "5s"})
    found = outlook(drop / "industrial-safety", 0, DROP_QUIET_S="9")
    assert (found["version"], found["stable_version"], found["missing_variants"]) == (2, 1, [])
    steps = steps_of(found)
    assert "for 9 s" in steps["stable_on_disk"]
    assert steps["loaded"] == "onnx, torch beside version 1"
    assert steps["shadow"].startswith("7 snapshots")
    assert steps["canary"].startswith("20 %, 60 % of the cameras, 5 s")
    assert steps["drained"].startswith("version 1 is unloaded")
    said = run("models", "check", str(drop)).stdout
    assert "  version 2 against version 1, which serves, would be tried\n" in said
    assert "    would     canary: 20 %, 60 % of the cameras, 5 s" in said
    change(drop / "industrial-safety" / "model.yaml", rollout="immediate")
    assert {"shadow", "canary"} & set(steps_of(outlook(drop))) == set()


def test_what_serves_already_and_what_is_lower_is_not_tried(drop: Path) -> None:
    remember(drop)
    found = outlook(drop)
    assert (found["steps"], found["problem"]) == ([], None)
    assert found["remarks"] == []
    assert "\n  version 1 serves already\n" in run("models", "check", str(drop)).stdout
    add_version(drop, 2, "onnx", "torch")
    remember(drop, 2, unloaded=True)
    for variant in ("onnx", "torch"):
        shutil.rmtree(drop / f"industrial-safety-{variant}" / "2")
    remarks = outlook(drop)["remarks"]
    assert remarks[0] == "version 2 serves, and version 1 is lower: no rollout"
    assert "`edge-gateway models load industrial-safety`" in remarks[1]
    assert "version 1 against version 2, which serves, would not be tried" in run("models", "check", str(drop)).stdout


def test_a_version_that_brings_one_variant_says_so(drop: Path) -> None:
    add_version(drop, 2, "onnx")
    found = outlook(drop)
    assert found["missing_variants"] == ["torch"]
    assert found["remarks"] == ["version 2 brings no torch: the model is served without"]
    assert steps_of(found)["loaded"] == "onnx"


def test_a_number_used_again_is_refused_with_the_advice_to_count_up(drop: Path) -> None:
    remember(drop)
    shutil.copy(REPOSITORY / "industrial-safety-onnx/1/model.onnx", drop / "industrial-safety-onnx/1/model.onnx")
    assert outlook(drop)["problem"] is None  # the same weights, copied again
    with (drop / "industrial-safety-onnx" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\x32\x01x")  # a doc_string that it did not have
    problem = outlook(drop, 2)["problem"]
    assert "version 1 has served with other weights" in problem["message"]
    assert problem["fix"] == "Count up: put these weights into version 2"


def test_a_version_that_has_been_refused_is_refused_again(drop: Path) -> None:
    add_version(drop, 2, "onnx", "torch")
    seen = remember(drop, 2).stable
    assert seen is not None
    refusal = RefusalRecord(2, Step.GOLDEN, "no forklift on scene-1.jpg", "Train it", 1.0, digest_of_all(seen.digests))
    remember(drop, 1, refused=(refusal,))
    problem = outlook(drop, 2)["problem"]
    assert "version 2 has been refused at the step golden: no forklift on scene-1.jpg" in problem["message"]
    assert problem["fix"] == "Train it"
    others = dict.fromkeys(seen.digests, "another")
    remember(drop, 1, refused=(msgspec.structs.replace(refusal, weights=others, digest="other"),))
    assert "has been loaded with other weights" in outlook(drop, 2)["problem"]["message"]
    remember(drop, 1, refused=(msgspec.structs.replace(refusal, digest="other"),))
    assert outlook(drop)["problem"] is None  # mended, and Triton never had it


def test_links_out_of_the_repository_and_sizes_are_refused(
    drop: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    big = outlook(drop, 2, MAX_MODEL_BYTES=str(2**21))
    assert "the limit is 2.0 MiB" in big["problem"]["message"]
    other = tmp_path_factory.mktemp("elsewhere") / "model.onnx"
    shutil.copy(REPOSITORY / "industrial-safety-onnx/1/model.onnx", other)
    (drop / "industrial-safety-onnx" / "1" / "model.onnx").unlink()
    (drop / "industrial-safety-onnx" / "1" / "model.onnx").symlink_to(other)
    assert "is a link out of the repository" in outlook(drop, 2)["problem"]["message"]
    assert "  version 1 would be refused\n    problem   " in run("models", "check", str(drop)).stdout


def test_a_drop_prepared_elsewhere_is_held_against_the_repository_it_shall_go_into(
    drop: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(drop, site, dirs_exist_ok=True)
    remember(site)
    into = ["--repository", str(site)]
    problem = outlook(drop / "industrial-safety", 2, *into)["problem"]
    assert f"{site} has version 1 of 'industrial-safety'" in problem["message"]
    assert problem["fix"] == "Count up: rename the version folders to 2"
    for variant in ("onnx", "torch"):
        (drop / f"industrial-safety-{variant}" / "1").rename(drop / f"industrial-safety-{variant}" / "2")
    assert outlook(drop)["stable_version"] is None
    assert outlook(drop, 0, *into)["stable_version"] == 1
    assert "nowhere: no such folder" in one_line("models", "check", str(drop), "--repository", "nowhere")


def test_the_state_may_lie_elsewhere(drop: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    remember(drop)
    state = tmp_path_factory.mktemp("state")
    (drop / ".edge-gateway").rename(state / "s")
    settings = {"MODEL_STATE_DIR": str(state / "s"), "MODEL_REPOSITORY": str(drop)}
    assert outlook(drop, 0, **settings)["stable_version"] == 1
    assert outlook(drop, 0)["stable_version"] is None


def test_unsigned_drops_are_refused_where_a_key_is_configured(drop: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    problem = outlook(drop, 2, MODEL_PUBLIC_KEY_FILE=str(tmp_path / "key.pem"))["problem"]
    assert "the drop is not signed" in problem["message"]


def test_what_is_logged_does_not_stand_in_the_json(drop: Path) -> None:
    change(drop / "industrial-safety" / "model.yaml", backend="candle")
    (drop / ".edge-gateway").mkdir()
    (drop / ".edge-gateway" / "industrial-safety.json").write_text("{damaged")
    done = run("models", "check", str(drop), "--json")
    assert json.loads(done.stdout)["ok"]
    assert "Backend 'candle' is no variant here" in done.stderr
    assert "What was remembered of a model cannot be used" in done.stderr
    assert all(line.startswith("edge-gateway: ") for line in done.stderr.splitlines())


def test_golden_examples_that_cannot_be_used_are_a_problem(drop: Path) -> None:
    (drop / "industrial-safety" / "golden" / "scene-210009.jpg").unlink()
    assert "scene-210009.jpg" in outlook(drop, 2)["problem"]["where"]


def test_hidden_folders_are_no_models(drop: Path) -> None:
    shutil.copytree(drop / "industrial-safety", drop / ".old")
    shutil.copytree(drop / "industrial-safety-onnx", drop / ".old-onnx")
    assert [each["name"] for each in checked(drop)["models"]] == ["industrial-safety"]
    assert len(checked(drop / "industrial-safety-onnx")["models"]) == 1


# --- manifest -------------------------------------------------------------------------------------------


def sha256sum(repository: Path) -> int:
    return subprocess.run(
        ["sha256sum", "-c", "--strict", "industrial-safety/SHA256SUMS"],
        cwd=repository,
        check=False,
        capture_output=True,
    ).returncode


def test_a_manifest_is_what_sha256sum_checks_and_check_waits_for(drop: Path) -> None:
    (drop / "industrial-safety" / "golden" / "odd \n name\\.txt").write_text("x")
    done = run("models", "manifest", str(drop / "industrial-safety"))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "industrial-safety version 1: " in done.stdout
    assert sha256sum(drop) == 0
    assert "all files match SHA256SUMS" in steps_of(outlook(drop))["stable_on_disk"]
    config = drop / "industrial-safety-torch" / "config.pbtxt"
    config.write_text(f"{config.read_text()}# changed\n")
    assert "industrial-safety-torch/config.pbtxt does not match" in outlook(drop, 2)["problem"]["message"]
    assert sha256sum(drop) != 0
    settings = {"MODEL_REPOSITORY": str(drop)}
    assert run("models", "manifest", "industrial-safety", "1", **settings).returncode == 0
    assert sha256sum(drop) == 0


def test_a_manifest_is_of_one_version_and_keeps_what_it_said_of_others(drop: Path) -> None:
    path = drop / "industrial-safety" / "SHA256SUMS"
    add_version(drop, 2, "onnx", "torch")
    assert run("models", "manifest", str(path.parent)).returncode == 0
    assert "industrial-safety-onnx/2/model.onnx" in path.read_text()
    assert "industrial-safety-onnx/1/" not in path.read_text()
    assert run("models", "manifest", str(path.parent), "1").returncode == 0
    assert sha256sum(drop) == 0
    assert path.read_text().count("/model.onnx") == 2
    shutil.rmtree(drop / "industrial-safety-onnx" / "2")
    assert run("models", "manifest", str(path.parent), "1").returncode == 0
    assert sha256sum(drop) == 0
    path.write_text("no manifest")
    assert run("models", "manifest", str(path.parent), "1").returncode == 0
    assert sha256sum(drop) == 0
    assert "version 3 has no folder" in one_line("models", "manifest", str(drop / "industrial-safety"), "3")
    assert "there is no model 'nobody'" in one_line("models", "manifest", "nobody")


def test_a_manifest_that_cannot_be_written_is_one_line(drop: Path) -> None:
    (drop / "industrial-safety" / "SHA256SUMS").mkdir()
    assert "is no regular file" in one_line("models", "manifest", str(drop / "industrial-safety"))


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
