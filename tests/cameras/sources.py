"""Cameras for tests: a film, and a real RTSP server with a camera behind it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.local.debian import install_package
from gateway.local.processes import ChildProcess, free_ports
from tests.mosquitto_server import accepts

PYTHON = Path("/usr/bin/python3")
"""The distribution's own: the bindings of GStreamer come as its packages."""
PACKAGES = ("python3-gi", "gstreamer1.0-plugins-base", "gstreamer1.0-plugins-good", "gir1.2-gst-rtsp-server-1.0")
USER, PASSWORD = "operator", "pass-word-7"
START_TIMEOUT_S = 30.0
_IMPORTS = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
assert all(Gst.ElementFactory.find(name) for name in ("videotestsrc", "jpegenc", "rtpjpegpay"))
"""
_SERVE = f"""{_IMPORTS}
port, user, password = sys.argv[1:]
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1"); server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory.new()
frames = "video/x-raw,format=I420,width=320,height=240,framerate=20/1"
factory.set_launch(f"( videotestsrc pattern=ball is-live=true ! {{frames}} ! jpegenc ! rtpjpegpay name=pay0 pt=26 )")
factory.set_shared(True)
allowed = GstRtspServer.RTSPPermissions.new()
for right in ("media.factory.access", "media.factory.construct"):
    allowed.add_permission_for_role("user", right, True)
factory.set_permissions(allowed)
token = GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "user")
auth = GstRtspServer.RTSPAuth.new()
auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
server.set_auth(auth)
server.get_mount_points().add_factory("/stream", factory)
server.attach(None)
GLib.MainLoop().run()
"""


class RtspCamera:
    """GStreamer's RTSP server with a moving picture of 320x240, 20 frames a second, for one user."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        arguments = [str(PYTHON), "-c", _SERVE, str(self.port), USER, PASSWORD]
        self._process = ChildProcess("the RTSP server", arguments)

    def address(self, password: str = PASSWORD) -> str:
        return f"rtsp://{USER}:{password}@127.0.0.1:{self.port}/stream"

    def start(self) -> None:
        self._process.start()
        self._process.wait_ready(self._accepts, START_TIMEOUT_S, fix="See its log")

    def kill(self) -> None:
        self._process.kill()

    def _accepts(self) -> bool:
        return accepts(self.port)


def _is_there() -> bool:
    if not PYTHON.exists():
        return False
    return subprocess.run([PYTHON, "-c", _IMPORTS], capture_output=True, check=False).returncode == 0


@pytest.fixture
def rtsp_camera() -> Iterator[RtspCamera]:
    """Started; GStreamer's packages are installed where that is possible, else the test is skipped."""
    pytest.importorskip("av", reason="PyAV is not installed (the extra `video`)")
    if not _is_there():
        installed = [install_package(name, "The tests need a real RTSP server") for name in PACKAGES]
        if not all(installed) or not _is_there():
            pytest.skip("there is no RTSP server of GStreamer here, and it cannot be installed")
    camera = RtspCamera()
    camera.start()
    yield camera
    camera.kill()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """1 s, ten frames, each brighter than the one before."""
    av = pytest.importorskip("av", reason="PyAV is not installed (the extra `video`)")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"g": "10", "sc_threshold": "1000000000"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
