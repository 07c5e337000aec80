"""`edge-gateway camera` as a process: files and a real RTSP camera to a real broker, until it is told to end."""

from __future__ import annotations

import base64
import io
import json
import signal
from pathlib import Path

from PIL import Image

from gateway.local.broker import EmbeddedBroker
from tests.cameras.sources import RtspCamera
from tests.command_line import run, start
from tests.e2e.site import payloads, until
from tests.flow.builders import jpeg

INPUT = "edge-ai/default/default/gw/camera/snapshots"


def size(snapshot: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(json.loads(snapshot)["image_data"]))) as image:
        assert image.format == "JPEG"
        return image.size


def test_files_and_films_go_round_until_it_is_told_to_end(
    film: Path, broker: EmbeddedBroker, at: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg())
    (folder / "b.jpg").write_bytes(b"another")
    cameras = tmp_path / "cameras.yaml"
    cameras.write_text(
        f"cameras:\n  - {{device: files, source: '{folder}', rate: 20, form: raw, topic: files}}\n"
        f"  - {{device: film, source: '{film}', rate: 20, max_width: 32}}\n"
    )
    health = tmp_path / "health.json"
    arguments = ("camera", "--cameras", str(cameras), "--health-file", str(health))
    with payloads(broker, INPUT) as of_film, payloads(broker, "files") as of_files, start(*arguments, **at) as running:
        until(lambda: len(of_files) >= 5 and len(of_film) >= 12, "two rounds")
        # It has been written once a camera had sent.
        running.until(lambda: '"sends": true' in health.read_text(), "the file of the health")
        done = run("camera", "--check-health", str(health))
        running.interrupt(signal.SIGTERM)
        assert running.wait() == 0, running.err
    assert done.returncode == 0, done
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["files sends", "film sends"]
    assert of_files[:4] in ([jpeg(), b"another"] * 2, [b"another", jpeg()] * 2)
    assert {size(snapshot) for snapshot in of_film} == {(32, 24)}


def test_a_real_rtsp_camera_that_restarts(rtsp_camera: RtspCamera, broker: EmbeddedBroker, at: dict[str, str]) -> None:
    address = rtsp_camera.address()
    with payloads(broker, INPUT) as seen, start("camera", address, "--device", "gate", "--rate", "10", **at) as running:
        until(lambda: len(seen) >= 3, "pictures of the stream")
        rtsp_camera.kill()
        running.says("A camera cannot be read; it is tried again")
        before = len(seen)
        rtsp_camera.start()
        until(lambda: len(seen) >= before + 3, "pictures after its return")
        running.interrupt(signal.SIGINT)
        assert running.wait() == 0
    assert {size(snapshot) for snapshot in seen} == {(320, 240)}
    assert {json.loads(snapshot)["device_id"] for snapshot in seen} == {"gate"}
    times = [json.loads(snapshot)["timestamp"] for snapshot in seen]
    assert times == sorted(set(times)), "a frame was sent twice"
    assert "pass-word-7" not in "\n".join([*running.out, *running.err])


def test_a_wrong_password_is_said_and_not_shown(
    rtsp_camera: RtspCamera, broker: EmbeddedBroker, at: dict[str, str]
) -> None:
    with start("camera", rtsp_camera.address("wrong-word-8"), **at) as running:
        running.says("401 Unauthorized")
        running.interrupt(signal.SIGTERM)
        assert running.wait() == 0
    assert "wrong-word-8" not in "\n".join(running.err)
