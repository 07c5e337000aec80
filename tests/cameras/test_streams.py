"""Cameras over HTTP: streams without a clock, streams whose pictures stop, and addresses of one picture."""

from __future__ import annotations

import contextlib
import fractions
import io
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from itertools import islice

import numpy as np
import pytest
from structlog.testing import capture_logs

from gateway.cameras import reading
from gateway.cameras.newest import Newest
from gateway.cameras.reading import source_of, start_reading
from gateway.cameras.spec import CameraSource
from gateway.cameras.status import Status
from gateway.errors import UserError
from gateway.terminal import video
from tests.flow.builders import jpeg

av = pytest.importorskip("av", reason="PyAV is not installed (the extra `video`)")
AUDIO_S, AUDIO_RATE, AUDIO_FRAME = 30, 48_000, 1152


@contextlib.contextmanager
def http_camera(kind: str, answer: Callable[[BufferedIOBase], None], length: int | None = None) -> Iterator[str]:
    """Answers each request with content of that kind, until the block ends."""

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            with contextlib.suppress(OSError):
                answer(self.wfile)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def camera(source: str, rate: float = 1) -> CameraSource:
    return CameraSource(device="gate", source=source, rate=rate)


@pytest.mark.parametrize("fps", [5, 10])
def test_a_stream_of_jpegs_is_read_at_the_camera_s_own_pace(fps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BEHIND_S", 0.5)  # of frames that ffmpeg takes for 25 a second

    def send(file: BufferedIOBase) -> None:
        while True:
            content = jpeg()
            head = f"--x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
            file.write(head.encode() + content + b"\r\n")
            time.sleep(1 / fps)

    with http_camera("multipart/x-mixed-replace; boundary=x", send) as url:
        frames = source_of(camera(url), 10_000, 2**20).play(Newest())
        assert sum(1 for _ in islice(frames, 2 * fps)) == 2 * fps


def film_with_sound() -> bytes:
    """1 s of pictures, and 30 s of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("mp2", rate=AUDIO_RATE)
        for _ in range(10):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(pictures.encode(picture))
        container.mux(pictures.encode())
        for pts in range(0, AUDIO_S * AUDIO_RATE, AUDIO_FRAME):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * AUDIO_FRAME), np.int16), layout="stereo")
            silence.sample_rate, silence.pts, silence.time_base = AUDIO_RATE, pts, fractions.Fraction(1, AUDIO_RATE)
            container.mux(sound.encode(silence))
    return file.getvalue()


def test_a_stream_of_which_the_sound_alone_goes_on_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "READ_LIMIT_S", 1.0)
    content, ended = film_with_sound(), threading.Event()

    def send(file: BufferedIOBase) -> None:
        step = len(content) // 300
        file.write(content[: 100 * step])  # what ffmpeg looks at before it begins
        for start in range(100 * step, len(content), step):
            file.write(content[start : start + step])
            time.sleep(0.1)
        ended.set()

    with http_camera("video/mp2t", send) as url, pytest.raises(UserError, match="no picture for 1 s"):
        for _ in source_of(camera(url), 10_000, 2**20).play(Newest()):
            pass
    assert not ended.is_set()


@pytest.mark.parametrize(("path", "length"), [("snapshot.jpg", len(jpeg())), ("snapshot.cgi", None)])
def test_an_address_of_one_picture_is_asked_again_at_the_rate(path: str, length: int | None) -> None:
    asked: list[float] = []

    def send(file: BufferedIOBase) -> None:
        asked.append(time.monotonic())
        file.write(jpeg())

    newest, status, taken = Newest(), Status(5), 0
    with http_camera("image/jpeg", send, length) as url, capture_logs() as log:
        one = camera(url + path, rate=5)
        start_reading(one, source_of(one, 10_000, 2**20), newest, status)
        deadline = time.monotonic() + 20
        while taken < 5 and time.monotonic() < deadline:
            taken += newest.take() is not None
            newest.rest(0.01)
        newest.close()
    assert taken == 5
    assert asked[4] - asked[0] > 0.7
    assert [line["event"] for line in log] == ["A camera is read"], [line.get("reason") for line in log]
