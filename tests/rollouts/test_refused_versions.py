"""Versions that must not serve: each is refused with its reason, and the stable one answers all the while."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from tests.rollouts import detectors
from tests.rollouts.bench import Bench, wait
from tests.rollouts.drops import Model

pytestmark = pytest.mark.triton
_versions = itertools.count(2)


@pytest.fixture(scope="module")
def shared(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One gateway for the tests of this file; each drops a version of its own, and takes it away again."""
    with Bench(broker, tmp_path_factory.mktemp("refused")) as bench:
        detector = bench.model()
        detector.write_logical()
        detector.drop(1)
        yield bench.start()


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    """The shared one with cameras; at the end every snapshot has its result, and by version 1."""
    shared.watch()
    yield shared
    shared.more()
    shared.audit()
    shared.changes_once(shared.model(), 1)


@pytest.fixture
def model(bench: Bench) -> Model:
    """The detector that serves as version 1."""
    return bench.model()


@pytest.fixture
def version(model: Model) -> Iterator[int]:
    """A number that no test has used; what lies under it is removed afterwards."""
    version = next(_versions)
    yield version
    model.remove(version)


def test_garbage(bench: Bench, model: Model, version: int) -> None:
    model.write("onnx", version, b"this is no ONNX file " * 1000)
    bench.is_refused(model, version, "ONNX", step="verified")


def test_a_config_that_disagrees_with_the_model(bench: Bench, model: Model, version: int) -> None:
    config = model.triton_folder("onnx") / "config.pbtxt"
    before = config.read_text()
    model.write("onnx", version, model.content("onnx", version), detectors.config_text("onnx", anchors=22))
    bench.is_refused(model, version, "output0", "22", step="verified")
    model.remove(version)
    config.write_text(before)


def test_one_label_too_few(bench: Bench, model: Model, version: int) -> None:
    labels = model.folder / "labels.txt"
    before = labels.read_text()
    labels.write_text("person\n")
    model.drop(version)
    bench.is_refused(model, version, "label")
    model.remove(version)
    labels.write_text(before)


def test_right_shapes_and_wrong_weights(bench: Bench, model: Model, version: int) -> None:
    model.drop(version, swapped=["onnx"])
    bench.is_refused(model, version, "red.png", "person", step="golden")


def test_five_times_slower(bench: Bench, model: Model, version: int) -> None:
    model.drop(version, slow=True)
    bench.is_refused(model, version, "stable version's (p99|median) is", step="shadow")


def test_a_partial_copy_that_stops(bench: Bench, model: Model, version: int) -> None:
    whole = model.content("onnx", version)
    model.write("onnx", version, whole[: len(whole) // 2])
    bench.is_refused(model, version, "ONNX|truncated|cut off|incomplete", step="verified")


def test_a_partial_copy_that_stops_by_its_manifest(bench: Bench, model: Model, version: int) -> None:
    whole = model.content("onnx", version)
    path = model.file("onnx", version)
    folders = (model.folder, model.triton_folder("onnx"))
    files = [each for folder in folders for each in folder.rglob("*") if each.is_file()]
    listed = {each: each.read_bytes() for each in files} | {path: whole}
    sums = model.folder / "SHA256SUMS"
    sums.write_text(
        "".join(
            f"{hashlib.sha256(content).hexdigest()}  {each.relative_to(model.repository)}\n"
            for each, content in listed.items()
        )
    )
    model.write("onnx", version, whole[: len(whole) // 2])
    bench.is_refused(model, version, "match|missing")
    assert "loaded" not in [each["step"] for each in bench.rollout(model)["steps"]]
    model.remove(version)
    sums.unlink()


def test_a_link_out_of_the_repository(bench: Bench, model: Model, version: int, tmp_path: Path) -> None:
    outside = tmp_path / "model.onnx"
    outside.write_bytes(model.content("onnx", version))
    path = model.file("onnx", version)
    path.parent.mkdir()
    path.symlink_to(outside)
    bench.is_refused(model, version, "outside|out of|leads", step="verified")


def test_variants_that_disagree(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        pair = bench.model("pair", "onnx", "torch")
        pair.write_logical()
        pair.drop(1)
        bench.start()
        wait(lambda: bench.loads_only(pair, 1), "both variants")
        bench.watch()
        shutil.rmtree(pair.folder / "golden")  # they would tell which of the two is wrong
        pair.drop(2, swapped=["torch"])
        bench.is_refused(pair, 2, "onnx and torch agree by 0.00", step="shadow")
        bench.more()
        bench.audit()
        bench.changes_once(pair, 1)


@pytest.mark.parametrize("request_number", [3, pytest.param(25, marks=pytest.mark.long)])
def test_a_model_that_crashes_its_process(broker: EmbeddedBroker, tmp_path: Path, request_number: int) -> None:
    """At the third request, which is one of the warm-up, and at one of the shadow."""
    with Bench(broker, tmp_path) as bench:
        fragile = bench.model("fragile", "python")
        fragile.write_logical(backend="python")
        fragile.drop(1)
        bench.start()
        bench.watch()
        fragile.write("python", 2, detectors.python_detector(crashes_at=request_number))
        bench.is_refused(fragile, 2)
        bench.more()
        bench.audit()
        bench.changes_once(fragile, 1)


def test_no_read_permission(broker: EmbeddedBroker, tmp_path: Path) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and there is no setpriv to take that away")
    launcher = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    with Bench(broker, tmp_path, launcher=launcher) as bench:
        model = bench.model()
        model.write_logical()
        model.drop(1)
        bench.start()
        bench.watch()
        path = model.file("onnx", 2)
        path.parent.mkdir()
        path.touch(0o000)
        path.write_bytes(model.content("onnx", 2))
        path.chmod(0o000)
        bench.is_refused(model, 2, "[Pp]ermission", step="verified")
        path.chmod(0o644)
        bench.is_promoted(model, 2)
        bench.more()
        bench.audit()
        bench.changes_once(model, 1, 2)


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few kilobytes."""
    volume = tmp_path / "state"
    volume.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(volume)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield volume
    subprocess.run(["umount", "--lazy", str(volume)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more fits on the volume."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(path.parent).free == 0


def test_no_space_left_on_the_volume(broker: EmbeddedBroker, tmp_path: Path, small_volume: Path) -> None:
    with Bench(broker, tmp_path) as bench:
        model = bench.model()
        model.write_logical()
        model.drop(1)
        bench.start()
        bench.watch()
        filler = small_volume / "filler"
        fill(filler)
        model.drop(2)
        bench.is_refused(model, 2, "No space left")
        filler.unlink()
        model.drop(3)
        bench.is_promoted(model, 3)
        bench.more()
        bench.audit()
        bench.changes_once(model, 1, 3)
