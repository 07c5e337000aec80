"""`edge-gateway send`: be a camera with pictures and videos, or a sensor with readings."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import io
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gateway.addresses import shown
from gateway.errors import UserError
from gateway.local.broker import EmbeddedBroker
from gateway.local.processes import free_ports
from gateway.terminal.video import open_video
from tests.command_line import one_line, run, start
from tests.e2e.site import Client, payloads, until
from tests.flow.builders import jpeg

PICTURES = "model_repository/industrial-safety/golden"
FRAMES = 12
needs_video = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="PyAV is not installed (the extra `video`)"
)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg())
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'PICTURES...' (or --values). See edge-gateway send --help"),
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder. Check the path"),
        (["tests/flow"], "tests/flow: no pictures there. Name JPEG, PNG, WebP, BMP or TIFF files, or videos"),
        ([PICTURES, "--topic", "a/+/b"], "'a/+/b' has wildcards. Name one topic with --topic"),
        ([PICTURES, "--topic", ""], "is no topic. Name one topic with --topic"),
        ([PICTURES, "--as", "png"], "'png' is not one of 'json', 'raw'"),
        ([PICTURES, "--repeat", "0"], "0 is not in the range"),
        ([PICTURES, "--repeat", "2", "--loop"], "--loop and --repeat exclude each other"),
        ([PICTURES, "--values", "1"], "either PICTURES or --values, not both"),
        (["--values", "21.5;21.7"], "'21.5;21.7' is no list of numbers, such as 21.5,21.7"),
        (["--values", "nan"], "'nan' is no list of numbers"),
        (["--values", "1,2", "--as", "raw"], "a plain number is one value; several channels need the JSON form"),
    ],
)
def test_an_error_of_the_user_is_one_line_with_the_fix(arguments: list[str], said: str) -> None:
    assert said in one_line("send", *arguments)


def test_what_a_raw_message_cannot_carry_is_one_line() -> None:
    said = "--model and --backend need the JSON form, or pictures and MQTT 5. Leave --as raw out"
    assert said in one_line("send", PICTURES, "--as", "raw", "--model", "x", MQTT_PROTOCOL="3.1.1")
    assert said in one_line("send", "--values", "1", "--as", "raw", "--backend", "dual")


def test_an_unreadable_picture_is_one_line(tmp_path: Path, at: dict[str, str]) -> None:
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert "no such file or folder" in one_line("send", str(tmp_path / "loop.jpg"))
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(400 * 2**20)
    assert "is larger than 190 MiB. Send a smaller picture" in one_line("send", str(tmp_path / "huge.jpg"), **at)


# --- pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "raw"])
def test_what_send_sends_is_a_snapshot_of_the_device(form: str, picture: Path, at: dict[str, str]) -> None:
    done = run("send", str(picture), "--as", form, "--device", "cam9", "--repeat", "2", "--rate", "50", **at)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    topic = {"json": "edge-ai/default/default/gw/camera/snapshots", "raw": "azure-iot-operations/data/cam9/snapshot"}
    assert all(line.startswith("sent photo.jpg (") and line.endswith(f" to {topic[form]}") for line in lines)


def test_every_snapshot_that_send_repeats_is_a_new_one(
    broker: EmbeddedBroker, picture: Path, at: dict[str, str]
) -> None:
    arguments = ["--repeat", "3", "--rate", "50", "--topic", "repeated", "--model", "m", "--backend", "dual"]
    with payloads(broker, "repeated") as seen:
        assert run("send", str(picture), *arguments, **at).returncode == 0
        until(lambda: len(seen) == 3, "three snapshots")
    bodies = [json.loads(payload) for payload in seen]
    assert len({body["timestamp"] for body in bodies}) == 3
    assert {(body["device_id"], body["model_name"], body["backend_preference"]) for body in bodies} == {
        ("camera-01", "m", "dual")
    }


def test_a_raw_picture_asks_by_user_properties(broker: EmbeddedBroker, picture: Path, at: dict[str, str]) -> None:
    if broker.protocol != "5":
        pytest.skip("only MQTT 5 has user properties")
    seen: list[Any] = []
    client = Client(broker.port, "asking", on_message=lambda message: seen.append(message.properties))
    arguments = ["--as", "raw", "--topic", "asking", "--model", "m", "--backend", "torch"]
    assert run("send", str(picture), *arguments, **at).returncode == 0
    until(lambda: len(seen) == 1, "a snapshot")
    client.close()
    assert dict(seen[0].UserProperty) == {"model_name": "m", "backend_preference": "torch"}


def test_every_kind_of_picture_in_a_folder_is_sent_as_it_is(
    tmp_path: Path, broker: EmbeddedBroker, at: dict[str, str]
) -> None:
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("a.jpg", "b.png", "c.webp", "d.bmp", "e.tiff"):
        image.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    files = [path.read_bytes() for path in sorted(tmp_path.glob("?.*"))]
    with payloads(broker, "kinds/#") as seen:
        assert run("send", str(tmp_path), "--topic", "kinds/json", **at).returncode == 0
        assert run("send", str(tmp_path), "--topic", "kinds/raw", "--as", "raw", **at).returncode == 0
        until(lambda: len(seen) == 10, "ten snapshots")
    assert [base64.b64decode(json.loads(payload)["image_data"]) for payload in seen[:5]] == files
    assert seen[5:] == files


def test_send_fills_the_parts_of_any_input_topic(picture: Path, at: dict[str, str]) -> None:
    done = run("send", str(picture), MQTT_INPUT_TOPICS="$share/all/{site}/{camera}/picture", **at)
    assert done.stdout.rstrip().endswith(" to site/camera-01/picture")
    topics = "readings/{sensor},pictures/{camera}"
    for form in ("json", "raw"):
        done = run("send", str(picture), "--as", form, MQTT_INPUT_TOPICS=topics, **at)
        assert done.stdout.rstrip().endswith(" to pictures/camera-01")


def test_loop_goes_on_until_it_is_interrupted(picture: Path, at: dict[str, str]) -> None:
    with start("send", str(picture), "--loop", "--rate", "50", **at) as sending:
        sending.until(lambda: len(sending.out) >= 4, "several rounds")
        sending.interrupt(signal.SIGINT)
        assert sending.wait() == 128 + signal.SIGINT
    assert sending.err == []


# --- readings -------------------------------------------------------------------------------------------


def test_readings_are_sent_as_json_to_the_topic_of_sensors(broker: EmbeddedBroker, at: dict[str, str]) -> None:
    with payloads(broker, "edge-ai/default/default/gw/sensors/t-1") as seen:
        done = run("send", "--values", "21.5,21.7", "--values=-3", "--sensor-id", "t-1", "--model", "m", **at)
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: len(seen) == 2, "two readings")
    first, second = map(json.loads, seen)
    assert (first["sensor_id"], first["values"], first["model_name"]) == ("t-1", [21.5, 21.7], "m")
    assert second["values"] == [-3.0]
    assert first["timestamp"] <= second["timestamp"]
    assert done.stdout.startswith("sent t-1 21.5, 21.7 (")


def test_a_plain_number_is_what_many_sensors_send(broker: EmbeddedBroker, at: dict[str, str]) -> None:
    with payloads(broker, "edge-ai/default/default/gw/sensors/t-2") as seen:
        done = run(
            "send", "--values", "21.5", "--values", "1e-7", "--sensor", "t-2", "--as", "raw", "--repeat", "2", **at
        )
        assert done.returncode == 0, done
        until(lambda: len(seen) == 4, "four numbers")
    assert [float(payload) for payload in seen] == [21.5, 1e-7, 21.5, 1e-7]


def test_what_is_sent_is_read_as_a_reading() -> None:
    from gateway.flow.identify import identify
    from gateway.flow.ingest import open_message, take_contents
    from gateway.messages import Message, Reading
    from gateway.terminal.send import json_reading

    for payload in (json_reading((21.5, -1e-7), "t"), repr(-1e-07).encode(), repr(21.5).encode()):
        message = Message("sensors/t", payload, 0.0)
        origin = identify(message, (), {"business_unit": "", "facility": "", "gateway_id": ""})
        reading = take_contents(open_message(message, origin, 1000))
        assert isinstance(reading, Reading)
        assert all(map(math.isfinite, reading.values))


# --- videos ---------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A film of 1.2 s, ten frames a second, each brighter than the one before."""
    av = pytest.importorskip("av", reason="PyAV is not installed (the extra `video`)")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(payload: bytes) -> float:
    with Image.open(io.BytesIO(payload)) as image:
        assert (image.format, image.size) == ("JPEG", (64, 48))
        return float(np.asarray(image).mean())


def test_a_video_is_sent_frame_by_frame(film: Path, broker: EmbeddedBroker, at: dict[str, str]) -> None:
    with payloads(broker, "film") as seen:
        done = run("send", str(film), "--as", "raw", "--topic", "film", "--rate", "500", **at)
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: len(seen) == FRAMES, "all frames")
    assert np.allclose([brightness(payload) for payload in seen], np.arange(FRAMES) * 20, atol=4)
    assert done.stdout.splitlines()[4].startswith("sent film.mp4 frame 5 (")


def test_every_nth_frame_of_all_videos_in_a_folder(film: Path, broker: EmbeddedBroker, at: dict[str, str]) -> None:
    (film.parent / "photo.jpg").write_bytes(jpeg())
    with payloads(broker, "some") as seen:
        done = run("send", str(film.parent), "--every", "5", "--topic", "some", "--repeat", "2", **at)
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: len(seen) == 8, "three frames and a picture, twice")
    names = [line.split(" (")[0] for line in done.stdout.splitlines()]
    assert names == ["sent film.mp4 frame 1", "sent film.mp4 frame 6", "sent film.mp4 frame 11", "sent photo.jpg"] * 2


async def test_without_a_rate_a_film_takes_its_own_time(film: Path) -> None:
    started = time.monotonic()
    names = [name async for name, _ in open_video(film, 1, 10_000).items(None)]
    assert len(names) == FRAMES
    assert time.monotonic() - started >= (FRAMES - 1) / 10


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        return


class _Camera(BaseHTTPRequestHandler):
    """A camera whose pictures come as one long answer, as fast as they are taken."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        file = io.BytesIO()
        Image.new("RGB", (64, 48), "red").save(file, "JPEG")
        with contextlib.suppress(OSError):
            while True:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {file.tell()}\r\n\r\n"
                self.wfile.write(head.encode() + file.getvalue() + b"\r\n")

    def log_message(self, *_: Any) -> None:
        return


@contextlib.contextmanager
def http_server(handler: Any) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@needs_video
def test_a_stream_is_sent_until_it_is_interrupted_at_the_rate_that_is_asked(at: dict[str, str]) -> None:
    with (
        http_server(_Camera) as url,
        start("send", f"{url.replace('//', '//user:secret@')}/stream", "--rate", "20", "--topic", "s", **at) as sending,
    ):
        sending.until(lambda: len(sending.out) >= 5, "several frames")
        sending.interrupt(signal.SIGINT)
        assert sending.wait() == 128 + signal.SIGINT
    assert sending.err == []
    numbers = [int(line.split(" frame ")[1].split()[0]) for line in sending.out]
    assert numbers[4] > 5, "frames that come too early are left out"
    assert "secret" not in "".join(sending.out)


def test_a_film_behind_an_address_ends_as_it_does(film: Path, at: dict[str, str]) -> None:
    with http_server(functools.partial(_Quiet, directory=film.parent)) as url:
        done = run("send", f"{url}/film.mp4", "--topic", "s", **at)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == FRAMES


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"


@needs_video
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("noise.mp4", bytes(range(256)) * 50),
        ("text.avi", b"hello\n" * 100),
        ("list.ts", PLAYLIST),
        ("concat.mkv", b"ffconcat version 1.0\nfile /etc/passwd\n"),
    ],
)
def test_what_is_no_video_is_one_line(name: str, content: bytes, tmp_path: Path, at: dict[str, str]) -> None:
    (tmp_path / name).write_bytes(content)
    said = one_line("send", str(tmp_path / name), **at)
    assert said.startswith(f"edge-gateway: {name}: cannot be read as a video: ")
    assert said.endswith("Check that the file is a complete video")


def test_a_cut_off_or_damaged_film_never_ends_in_a_traceback(film: Path, at: dict[str, str]) -> None:
    content = bytearray(film.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 400] = bytes(400)
    for damaged in (film.read_bytes()[:-300], bytes(content)):
        film.write_bytes(damaged)
        done = run("send", str(film), "--rate", "500", "--topic", "s", **at)
        assert done.returncode in (0, 2)
        assert len(done.stderr.splitlines()) == (done.returncode == 2)


async def test_frames_that_are_too_large_are_refused(film: Path) -> None:
    # 64 x 48 is below the least that MAX_IMAGE_PIXELS may be, so the film is asked directly.
    with pytest.raises(UserError, match="has 64x48 pixels a frame, MAX_IMAGE_PIXELS is 3000"):
        async for _ in open_video(film, 1, 3000).items(500):
            pass


@needs_video
def test_an_address_that_does_not_answer_is_one_line(at: dict[str, str]) -> None:
    (port,) = free_ports(1)
    said = one_line("send", f"rtsp://user:secret@127.0.0.1:{port}/stream", **at)
    assert f"rtsp://127.0.0.1:{port}: cannot be read as a video: Connection refused. Check the address" in said
    assert "secret" not in said


def test_an_address_of_another_kind_is_one_line() -> None:
    said = one_line("send", "file:///etc/passwd")
    assert "file://***: is no address that is read. Use one of rtsp, rtsps, http, https" in said


def test_without_pyav_it_says_what_to_install(film_without_av: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'triton-edge-gateway\[video\]'") as error:
        open_video(film_without_av, 1, 10_000)
    assert error.value.where == "film.mp4"


@pytest.fixture
def film_without_av(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"")
    return path


def test_an_address_is_shown_without_its_password() -> None:
    assert shown("rtsp://u:p@host:554/a?b=1") == "rtsp://***@host:554/a?b=1"
    assert shown("rtsp://host/a") == "rtsp://host/a"
