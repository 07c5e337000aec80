"""The demo as a newcomer runs it: results, comparisons, pictures and a summary, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.command_line import ROOT, Running, environment, start
from tests.e2e.site import Client

STOP_S = 30.0


def family(running: Running) -> list[psutil.Process]:
    """The demo's child processes and theirs: broker, Triton with its stubs, gateway, cameras."""
    return list(psutil.Process(running.process.pid).children(recursive=True))


def assert_gone(running: Running, children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=STOP_S)
    assert not alive, f"still there: {[child.cmdline() for child in alive]}\n{running.out}"


def figure(lines: list[str], name: str) -> int:
    """A figure of the summary."""
    return int(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def remembered() -> list[tuple[Path, int]]:
    """What gateways have written into the repository, and when."""
    return sorted((path, path.stat().st_mtime_ns) for path in (ROOT / "model_repository").glob(".edge-gateway/*"))


@pytest.mark.triton
def test_the_demo_ends_by_itself_with_results_pictures_and_a_summary(tmp_path: Path) -> None:
    states = remembered()
    with start("demo", "--seconds", "8", "--output", str(tmp_path)) as demo:
        demo.says("Cameras  ")
        assert remembered() == states  # of a gateway that serves the same repository beside it
        children = family(demo)
        assert len(children) >= 4
        assert demo.wait(120) == 0, demo.err
        assert_gone(demo, children)
    for kind in ("result    camera-json", "result    camera-raw", "compare   camera-json", "compare   camera-raw"):
        assert any(kind in line for line in demo.out), kind
    assert figure(demo.out, "results") == figure(demo.out, "snapshots") > 0
    assert figure(demo.out, "comparisons") == figure(demo.out, "results")
    assert figure(demo.out, "errors") == 0
    assert [line.split()[:2] for line in demo.out if line.startswith("variant ")] == [
        ["variant", "onnx"],
        ["variant", "torch"],
    ]
    pictures = sorted(tmp_path.glob("*.jpg"))
    assert {path.name.rsplit("-", 1)[0] for path in pictures} == {"camera-json", "camera-raw"}
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert (picture.format, picture.width, picture.height) == ("JPEG", 1920, 1080 + 48)  # a line of text
    assert not [line for line in demo.err if "Traceback" in line]


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_ends_everything_with_a_summary(tmp_path: Path, number: signal.Signals) -> None:
    with start("demo", "--output", str(tmp_path)) as demo:
        demo.says("result    camera-raw")
        children = family(demo)
        demo.interrupt(number)
        assert demo.wait(STOP_S) == 0, demo.err
        assert_gone(demo, children)
    assert figure(demo.out, "results") > 0
    assert demo.err == []


@pytest.mark.triton
def test_garbage_on_the_topics_does_no_harm(tmp_path: Path) -> None:
    with start("demo", "--output", str(tmp_path)) as demo:
        demo.says("result    camera-raw")
        (line,) = [line for line in demo.out if "Broker   " in line]
        if "osquitto" not in line:
            pytest.skip("the client of this test speaks MQTT 5")
        stranger = Client(int(line.rsplit(":", 1)[1]))
        for topic in ("edge-ai/a/b/c/camera/snapshots", "azure-iot-operations/data/camera-raw/snapshot"):
            for payload in (b"garbage", b"", b"\xff\xd8\xff", b"{", b'{"message_type": 5}'):
                stranger.publish(topic, payload)
        stranger.publish("edge-ai/a/b/c/ai/inference/vision", b'{"message_type": "ai_inference_result"}')
        stranger.close()
        demo.says("not as documented")
        shown = sum("result    camera-raw" in line for line in demo.out)
        demo.until(lambda: sum("result    camera-raw" in line for line in demo.out) > shown + 1, "the next results")
        demo.interrupt(signal.SIGINT)
        assert demo.wait(STOP_S) == 0, demo.err
    assert figure(demo.out, "results") > 0
    assert figure(demo.out, "snapshots") > 10
    assert not [line for line in demo.err if "Traceback" in line]


@pytest.mark.triton
def test_a_reader_that_goes_away_ends_it_without_a_traceback(tmp_path: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m gateway demo --output {tmp_path} | grep -m 1 result"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 128 + signal.SIGPIPE, done.stderr
    assert "result    camera" in done.stdout
    assert done.stderr == ""


@pytest.mark.triton
def test_ctrl_c_during_the_start_leaves_nothing_behind(tmp_path: Path) -> None:
    with start("demo", "--output", str(tmp_path)) as demo:
        demo.says("Broker  ")
        demo.until(lambda: len(family(demo)) >= 2, "Triton's process")
        children = family(demo)
        demo.interrupt(signal.SIGINT)
        assert demo.wait(STOP_S) == 128 + signal.SIGINT
        assert_gone(demo, children)
    assert not [line for line in demo.err if "Traceback" in line]


def test_an_empty_repository_is_said_in_one_line(tmp_path: Path) -> None:
    with start("demo", "--output", str(tmp_path / "out"), MODEL_REPOSITORY=str(tmp_path)) as demo:
        assert demo.wait() == 2
    (line,) = demo.err
    assert line.startswith(f"edge-gateway: {tmp_path}: no folder there has a model.yaml")
    assert demo.out == []
    assert not (tmp_path / "out").exists()
